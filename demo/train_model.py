"""Train the demo's diffusion model and text encoder: python -m demo.train_model --comfyui PATH --minutes 50."""

from __future__ import annotations

import json

import numpy as np
import torch

from .architecture import UNKNOWN, build_mmdit, build_text, build_vae, demo_weights
from .common import HELD_OUT_SEED, POOL_SEED, Average, WallClock, arguments, prepare, save, use_comfyui
from .world import caption, sample_pool


@torch.no_grad()
def encode_pool(vae, pictures: np.ndarray) -> torch.Tensor:
    """Raw latents of pictures: uint8 NHWC -> N x 16 x 8 x 8."""
    encoder, latents = vae.taesd_encoder.to(memory_format=torch.channels_last), []
    for start in range(0, len(pictures), 64):
        batch = torch.from_numpy(pictures[start : start + 64]).permute(0, 3, 1, 2) / 255
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(encoder(batch.contiguous(memory_format=torch.channels_last)).float().contiguous())
    return torch.cat(latents)


def fit_preview_colours(latents: torch.Tensor, pictures: np.ndarray) -> dict:
    """Least squares from latent cells to the mean colours (-1..1) of their 8 x 8 pixels."""
    count = len(latents)
    cells = torch.from_numpy(pictures[:count]).float().div(127.5).sub(1).reshape(count, 8, 8, 8, 8, 3).mean((2, 4))
    rows = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
    solution = torch.linalg.lstsq(rows, cells.reshape(-1, 3)).solution
    return {"factors": solution[:-1].tolist(), "bias": solution[-1].tolist()}


def tokens_of(tokenizer, text: str) -> list[int]:
    """The 32 tokens of a prompt, as ComfyUI's tokenizer gives them."""
    return [token for token, _ in tokenizer.tokenize_with_weights(text)["demo"][0]]


def clone_layer_norm_inputs(module: torch.nn.Module) -> None:
    """ComfyUI's CLIP layers add in place to what a LayerNorm has saved for its derivative; give it a copy."""
    for part in module.modules():
        if isinstance(part, torch.nn.LayerNorm):
            part.register_forward_pre_hook(lambda _, inputs: (inputs[0].clone(),))


def flow_loss(mmdit, encoder, latents, tokens, sigma, noise) -> torch.Tensor:
    """Rectified flow: x = (1 - sigma) x0 + sigma n, target n - x0, time 1000 sigma; squared error per sample."""
    s = sigma.reshape(-1, 1, 1, 1)
    context, pooled = encoder(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        velocity = mmdit((1 - s) * latents + s * noise, sigma * 1000, context=context, y=pooled)
    return (velocity.float() - (noise - latents)).square().mean((1, 2, 3))


def draw_sigma(count: int) -> torch.Tensor:
    """Noise levels: logit-normal, a little wider and higher than standard because SD3 samples with shift 3."""
    return torch.sigmoid(0.2 + 1.2 * torch.randn(count))


def main() -> None:
    """Train until the time is over; save the averaged weights every few hundred steps."""
    parser = arguments(__doc__, minutes=50)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument("--pool", type=int, default=50000)
    options = parser.parse_args()
    use_comfyui(options.comfyui)
    prepare(options)
    rng = np.random.default_rng(options.seed)
    vae = build_vae()
    vae.load_state_dict(demo_weights("vae", options.out if (options.out / "vae.safetensors").is_file() else None))
    portraits, pictures = sample_pool(options.pool, POOL_SEED + 10)
    latents = encode_pool(vae, pictures)
    colours = fit_preview_colours(latents[:4000], pictures)
    (options.out / "latent_rgb.json").write_text(json.dumps(colours))
    held_portraits, held_pictures = sample_pool(256, HELD_OUT_SEED + 10)
    del pictures
    mmdit, (tokenizer, encoder) = build_mmdit(), build_text()
    if options.resume:
        mmdit.load_state_dict(demo_weights("model", options.resume))
        encoder.transformer.load_state_dict(demo_weights("text", options.resume))
    clone_layer_norm_inputs(encoder)
    held = (
        encode_pool(vae, held_pictures),
        [tokens_of(tokenizer, caption(p)) for p in held_portraits],
        torch.linspace(0.02, 0.98, 256),
        torch.randn(256, 16, 8, 8),
    )
    both = torch.nn.ModuleDict({"mmdit": mmdit, "encoder": encoder.transformer})
    trained = list(both.parameters())
    print(f"{sum(p.numel() for p in trained) / 1e6:.1f} M weights, latent sd {latents.std():.3f}", flush=True)
    optimizer = torch.optim.AdamW(trained, lr=options.rate, betas=(0.9, 0.99), weight_decay=0.01)
    average, clock = Average(both, 0.998), WallClock(options.minutes, options.rate, optimizer, warmup=200)

    def keep() -> None:
        save(average.module["mmdit"].state_dict(), options.out / "model.safetensors")
        save(average.module["encoder"].state_dict(), options.out / "text.safetensors")

    running = 0.0
    for step in clock:
        picked = torch.randint(len(latents), (options.batch,))
        # One prompt in ten is empty, so that guidance has its other side; a few words are unknown ones.
        prompts = ["" if rng.random() < 0.1 else caption(portraits[i], rng) for i in picked.tolist()]
        tokens = [tokens_of(tokenizer, prompt) for prompt in prompts]
        tokens = [[UNKNOWN if t > UNKNOWN and rng.random() < 0.01 else t for t in row] for row in tokens]
        batch = latents[picked]
        loss = flow_loss(mmdit, encoder, batch, tokens, draw_sigma(options.batch), torch.randn_like(batch)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        average.update(both)
        running += (loss.item() - running) * max(0.01, 1 / (step + 1))
        if step % 250 == 0:
            fresh, encoder.transformer = encoder.transformer, average.module["encoder"]
            with torch.no_grad():
                errors = flow_loss(average.module["mmdit"], encoder, *held[:2], *held[2:])
            encoder.transformer = fresh
            thirds = " ".join(f"{e.mean():.4f}" for e in errors.split(86))
            clock.report(f"loss {running:.4f}  held out {errors.mean():.4f} (low, middle, high noise: {thirds})")
            keep()
    keep()
    clock.report("done")


if __name__ == "__main__":
    main()
