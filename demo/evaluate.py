"""Print the held-out table of the demo model: python -m demo.evaluate --comfyui PATH."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from . import architecture
from .common import HELD_OUT_SEED, comfyui_option, use_comfyui
from .world import ATTRIBUTES, caption, masks, sample_pool, sample_portrait

LATENT = 8


def values_of(portraits, name: str) -> torch.Tensor:
    """True values of one attribute: floats, or class indices."""
    a = ATTRIBUTES[name]
    values = [getattr(p, name) for p in portraits]
    return torch.tensor(values if a.kind == "continuous" else [float(a.classes.index(v)) for v in values])


def chosen_value(name: str, output: torch.Tensor) -> torch.Tensor:
    """The probe's value or class index from its output for one attribute."""
    kind = ATTRIBUTES[name].kind
    if kind == "continuous":
        return output
    return output.argmax(1).float() if kind == "categorical" else (output > 0.5).float()


def score(name: str, output: torch.Tensor, portraits) -> float:
    """R2 of a continuous attribute, accuracy of the others."""
    truth, value = values_of(portraits, name), chosen_value(name, output)
    if ATTRIBUTES[name].kind == "continuous":
        return 1 - float((value - truth).square().mean() / truth.var(unbiased=False))
    return float((value == truth).float().mean())


def psnr(error: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of squared errors of pictures in 0..1."""
    return float(-10 * error.mean().log10())


def sample(model, clip, vae, prompts: list[str], seed: int, steps: int, cfg: float) -> torch.Tensor:
    """Pictures of prompts by ComfyUI's own sampler (euler, simple): BHWC in 0..1."""
    import comfy.sample

    def condition(texts):
        parts = [clip.encode_from_tokens_scheduled(clip.tokenize(t))[0] for t in texts]
        pooled = torch.cat([extra["pooled_output"] for _, extra in parts])
        return [[torch.cat([tokens for tokens, _ in parts]), {"pooled_output": pooled}]]

    latent = torch.zeros(len(prompts), 16, LATENT, LATENT)
    noise = comfy.sample.prepare_noise(latent, seed)
    samples = comfy.sample.sample(
        model,
        noise,
        steps,
        cfg,
        "euler",
        "simple",
        condition(prompts),
        condition([""]),
        latent,
        seed=seed,
        disable_pbar=True,
    )
    return vae.decode(samples)


def prompt_hits(model, clip, vae, probe, count: int, steps: int, cfg: float) -> dict[str, tuple[float, float, int]]:
    """Per attribute: share of sampled pictures inside the named interval or class, chance, number of prompts.

    The prompts are training-like captions of held-out portraits. Chance is the same share where the prompts are
    dealt out to the pictures in another order, so it knows the correlations of the world.
    """
    rng, prompts, named = np.random.default_rng(HELD_OUT_SEED + 3), [], []
    while len(prompts) < count:
        portrait = sample_portrait(rng)
        chosen = [n for n in ATTRIBUTES if rng.random() < 0.5]
        prompts.append(caption(portrait, attributes=chosen))
        named.append({n: ATTRIBUTES[n].phrase(getattr(portrait, n)) for n in chosen})
    with torch.inference_mode():
        images = torch.cat(
            [sample(model, clip, vae, prompts[i : i + 50], HELD_OUT_SEED + i, steps, cfg) for i in range(0, count, 50)]
        )
        read = probe(images)
    table = {}
    for name, a in ATTRIBUTES.items():
        value = chosen_value(name, read[name])
        found = [float(v) if a.kind == "continuous" else a.classes[int(v)] for v in value]
        rows = [i for i in range(count) if name in named[i]]
        hits = [a.names(named[i][name], found[i]) for i in rows]
        chance = [a.names(named[i][name], found[j]) for i in rows for j in range(count) if j != i]
        table[name] = float(np.mean(hits)), float(np.mean(chance)), len(rows)
    return table


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    comfyui_option(parser)
    parser.add_argument("--weights", type=Path, default=architecture.WEIGHTS)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=3.0)
    options = parser.parse_args()
    use_comfyui(options.comfyui)
    architecture.WEIGHTS = options.weights
    model, clip, vae = architecture.load_demo_model()
    probe = architecture.load_probe()
    portraits, pictures = sample_pool(options.pictures, HELD_OUT_SEED + 1, correlated=False)
    clean = torch.from_numpy(pictures).float() / 255
    with torch.inference_mode():
        again = torch.cat([vae.decode(vae.encode(part)) for part in clean.split(100)]).clamp(0, 1)
        read, read_again = probe(clean), probe(again)
    error = (again - clean).square()
    mouths = torch.from_numpy(np.stack([masks(p)["mouth"] for p in portraits])) > 0
    print(
        f"VAE, {options.pictures} held-out pictures: PSNR {psnr(error):.1f} dB, "
        f"inside the mouth box {psnr(error[mouths]):.1f} dB\n"
    )
    hits = prompt_hits(model, clip, vae, probe, options.prompts, options.steps, options.cfg)
    print("| attribute | measure | clean drawings | VAE round trips | prompts hit | chance | prompts |")
    print("|---|---|---|---|---|---|---|")
    for name, a in ATTRIBUTES.items():
        hit, chance, count = hits[name]
        measure = "R2" if a.kind == "continuous" else "accuracy"
        print(
            f"| {name} | {measure} | {score(name, read[name], portraits):.3f} | "
            f"{score(name, read_again[name], portraits):.3f} | {hit:.1%} | {chance:.1%} | {count} |"
        )
    total = sum(n for *_, n in hits.values())
    mean = [sum(row[i] * row[2] for row in hits.values()) / total for i in (0, 1)]
    print(
        f"\nAll named attributes of {options.prompts} prompts ({options.steps} steps, guidance {options.cfg}): "
        f"{mean[0]:.1%} hit, chance {mean[1]:.1%}"
    )


if __name__ == "__main__":
    main()
