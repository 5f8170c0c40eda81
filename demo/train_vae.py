"""Train the demo model's VAE: python -m demo.train_vae --comfyui PATH --minutes 20."""

from __future__ import annotations

import torch

from .architecture import build_vae, demo_weights
from .common import HELD_OUT_SEED, POOL_SEED, Average, WallClock, arguments, prepare, save, use_comfyui
from .world import SIZE, sample_pool


def detail_weights() -> torch.Tensor:
    """Weights of the pixels: a plain pixel loss loses the mouth's curve and the brows (1 x 1 x H x W)."""
    weights = torch.ones(1, 1, SIZE, SIZE)
    weights[..., 17:42, 13:51] += 1.5  # brows and eyes
    weights[..., 38:58, 20:44] += 3.0  # mouth
    return weights / weights.mean()


def loss_of(decoded: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """mean w (|d| + 8 d^2) + mean w |grad d|, pictures BCHW in 0..1."""
    d = decoded.float() - target
    pixels = (weights * (d.abs() + 8 * d * d)).mean()
    edges = (weights[..., 1:] * d.diff(dim=-1).abs()).mean() + (weights[..., 1:, :] * d.diff(dim=-2).abs()).mean()
    return pixels + edges


def main() -> None:
    """Train until the time is over and save the averaged weights."""
    parser = arguments(__doc__, minutes=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--pool", type=int, default=30000)
    options = parser.parse_args()
    use_comfyui(options.comfyui)
    prepare(options)
    # Half of the pictures are uncorrelated, so that no combination is foreign to the VAE.
    pool = torch.cat(
        [torch.from_numpy(sample_pool(options.pool // 2, POOL_SEED + i, correlated=not i)[1]) for i in range(2)]
    )
    held_out = torch.from_numpy(sample_pool(128, HELD_OUT_SEED, correlated=False)[1]).permute(0, 3, 1, 2) / 255
    vae = build_vae()
    if options.resume:
        vae.load_state_dict(demo_weights("vae", options.resume))
    vae = vae.to(memory_format=torch.channels_last)
    weights = detail_weights()
    trained = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.rate, betas=(0.9, 0.99), weight_decay=1e-3)
    average, clock = Average(vae, 0.998), WallClock(options.minutes, options.rate, optimizer)
    for step in clock:
        picked = pool[torch.randint(len(pool), (options.batch,))]
        target = (picked.permute(0, 3, 1, 2) / 255).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            latent = vae.taesd_encoder(target)
            # Noise keeps the latent space smooth, the moments keep it near mean 0 and variance 1.
            noisy = latent + 0.06 * torch.randn_like(latent)
            decoded = vae.taesd_decoder(noisy)
        z = latent.float()
        moments = (
            z.mean((0, 2, 3)).square().mean()
            + (z.var((0, 2, 3)) - 1).square().mean()
            + 0.1 * (z.abs() - 3).clamp(min=0).mean()
        )
        loss = loss_of(decoded, target, weights) + 0.05 * moments
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        average.update(vae)
        if step % 200 == 0:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                z = average.module.taesd_encoder(held_out)
                error = (average.module.taesd_decoder(z).float().clamp(0, 1) - held_out).square()
            psnr, mouth = (-10 * e.mean().log10() for e in (error, error[..., 38:58, 20:44]))
            clock.report(
                f"loss {loss.item():.4f}  psnr {psnr:.2f}  mouth {mouth:.2f}  latent sd {z.float().std():.3f}"
                f"  mean {z.float().mean():.3f}"
            )
            save(average.module.state_dict(), options.out / "vae.safetensors")
    save(average.module.state_dict(), options.out / "vae.safetensors")
    clock.report("done")


if __name__ == "__main__":
    main()
