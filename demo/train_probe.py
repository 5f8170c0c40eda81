"""Train the demo's attribute probe on the uncorrelated world: python -m demo.train_probe --comfyui PATH --minutes 4."""

from __future__ import annotations

import torch
from torch.nn import functional

from .architecture import Probe, build_vae, demo_weights, output_sizes
from .common import POOL_SEED, Average, WallClock, arguments, prepare, save, use_comfyui
from .train_model import encode_pool
from .world import ATTRIBUTES, sample_pool


def targets_of(portraits) -> torch.Tensor:
    """Attributes as numbers, N x 11: continuous in -1..1, class indices, 0 or 1."""
    rows = []
    for p in portraits:
        row = []
        for name, a in ATTRIBUTES.items():
            value = getattr(p, name)
            if a.kind == "continuous":
                row.append(2 * (value - a.low) / (a.high - a.low) - 1)
            else:
                row.append(float(a.classes.index(value)))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float32)


def loss_of(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Squared error of the continuous attributes (weight 4) and cross entropy of the others."""
    total = 0.0
    parts = outputs.split(list(output_sizes().values()), 1)
    for i, (a, part) in enumerate(zip(ATTRIBUTES.values(), parts, strict=True)):
        if a.kind == "continuous":
            total = total + 4 * functional.mse_loss(part[:, 0], targets[:, i])
        elif a.kind == "categorical":
            total = total + functional.cross_entropy(part, targets[:, i].long(), label_smoothing=0.01)
        else:
            total = total + functional.binary_cross_entropy_with_logits(part[:, 0], targets[:, i] * 0.98 + 0.01)
    return total


def soften(images: torch.Tensor) -> torch.Tensor:
    """Mild blur and noise of random strength per picture (BCHW): the probe will read sampled pictures."""
    count = len(images)
    blurred = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.lerp(images, blurred, 0.7 * torch.rand(count, 1, 1, 1))
    return images + 0.04 * torch.rand(count, 1, 1, 1) * torch.randn_like(images)


@torch.no_grad()
def round_trips(vae, pictures) -> torch.Tensor:
    """Pictures through the VAE with a little noise on the latent: uint8 NHWC -> uint8 NHWC."""
    latents, decoded = encode_pool(vae, pictures), []
    decoder = vae.taesd_decoder.to(memory_format=torch.channels_last)
    for z in latents.split(64):
        z = z + 0.2 * torch.rand(len(z), 1, 1, 1) * torch.randn_like(z)
        with torch.autocast("cpu", torch.bfloat16):
            image = decoder(z.contiguous(memory_format=torch.channels_last))
        decoded.append((image.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1))
    return torch.cat(decoded)


def main() -> None:
    """Train until the time is over and save the averaged weights."""
    parser = arguments(__doc__, minutes=4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--pool", type=int, default=40000)
    options = parser.parse_args()
    use_comfyui(options.comfyui)
    prepare(options)
    portraits, pictures = sample_pool(options.pool, POOL_SEED + 20, correlated=False)
    targets, pool = targets_of(portraits), torch.from_numpy(pictures)
    vae = build_vae()
    vae.load_state_dict(demo_weights("vae", options.out if (options.out / "vae.safetensors").is_file() else None))
    pool[: options.pool // 5] = round_trips(vae, pictures[: options.pool // 5].copy())
    probe = Probe()
    if options.resume:
        probe.load_state_dict(demo_weights("probe", options.resume))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=options.rate, weight_decay=0.01)
    average, clock = Average(probe, 0.998), WallClock(options.minutes, options.rate, optimizer)
    probe = probe.to(memory_format=torch.channels_last)
    for step in clock:
        picked = torch.randint(len(pool), (options.batch,))
        images = soften(pool[picked].permute(0, 3, 1, 2) / 255)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = probe.raw(images.permute(0, 2, 3, 1))
        loss = loss_of(outputs.float(), targets[picked])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(probe.parameters(), 1.0)
        optimizer.step()
        average.update(probe)
        if step % 200 == 0:
            clock.report(f"loss {loss.item():.4f}")
            save(average.module.state_dict(), options.out / "probe.safetensors")
    save(average.module.state_dict(), options.out / "probe.safetensors")
    clock.report("done")


if __name__ == "__main__":
    main()
