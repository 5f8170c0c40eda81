"""Train a small pixel-space DDPM of the demo's portraits, 32 x 32: python -m demo.train_ddpm --minutes 75.

Writes a folder in the layout of diffusers, `ddpm`, for Load Diffusers Model. A run can be stopped and started again
with the same command: it goes on where it was saved last, and --minutes is the time of all runs together.
"""

from __future__ import annotations

import time

import diffusers
import torch

from .common import HELD_OUT_SEED, POOL_SEED, Average, WallClock, arguments, prepare
from .world import sample_pool

PIXELS = 32
SAVE_EVERY = 120  # seconds
SCHEDULE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "clip_sample": False}


def build_unet() -> torch.nn.Module:
    """A U-Net of four levels, narrow where the picture is large, with attention at 8 x 8 pixels."""
    return diffusers.UNet2DModel(
        PIXELS,
        block_out_channels=(32, 64, 96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=16,
    )


def drawn(count: int, seed: int) -> torch.Tensor:
    """Pictures of random portraits, uint8 N x 3 x 32 x 32."""
    return torch.from_numpy(sample_pool(count, seed, size=PIXELS)[1]).permute(0, 3, 1, 2).contiguous()


def velocity_loss(unet, alphas, pictures, timesteps, noise) -> torch.Tensor:
    """Squared error of v = sqrt(abar) n - sqrt(1 - abar) x0 of each sample; pictures uint8."""
    x0 = pictures / 127.5 - 1
    a, b = (part[timesteps].sqrt().view(-1, 1, 1, 1) for part in (alphas, 1 - alphas))
    found = unet(a * x0 + b * noise, timesteps).sample
    return (found - (a * noise - b * x0)).square().mean((1, 2, 3))


def save(folder, average: Average, scheduler) -> None:
    """Write the averaged weights in float16, with the scheduler, as diffusers does."""
    unet = build_unet()
    unet.load_state_dict(average.module.state_dict())
    diffusers.DDPMPipeline(unet.half(), scheduler).save_pretrained(folder)


def main() -> None:
    """Train until the time is over; save every two minutes."""
    parser = arguments(__doc__, minutes=75)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--pool", type=int, default=30000)
    parser.add_argument("--stop-after", type=float, help="minutes of this run, where it is not to run to its end")
    parser.set_defaults(threads=1)  # of two threads on shared cores one mostly waits for the other
    options = parser.parse_args()
    prepare(options)
    state_file = options.out / "ddpm_training.pt"
    scheduler = diffusers.DDPMScheduler(**SCHEDULE)
    alphas, steps = scheduler.alphas_cumprod, len(scheduler.alphas_cumprod)
    unet = build_unet()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=options.rate, betas=(0.9, 0.99), weight_decay=0.01)
    average, spent = Average(unet, 0.998), 0.0
    if state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        unet.load_state_dict(state["unet"])
        average.module.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        average.steps, spent = state["steps"], state["seconds"]
        torch.manual_seed(options.seed + average.steps)
    print(f"{sum(p.numel() for p in unet.parameters()) / 1e6:.2f} M weights, step {average.steps}", flush=True)
    pool, held = drawn(options.pool, POOL_SEED + 30), drawn(256, HELD_OUT_SEED)
    held = held, torch.linspace(0, steps - 1, len(held)).long(), torch.randn(held.shape)
    clock = WallClock(options.minutes, options.rate, optimizer)
    clock.begin -= spent
    clock.steps = average.steps
    started = saved = time.time()
    running = None

    def keep() -> None:
        torch.save(
            {
                "unet": unet.state_dict(),
                "average": average.module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "steps": average.steps,
                "seconds": time.time() - clock.begin,
            },
            state_file,
        )
        save(options.out / "ddpm", average, scheduler)
        with torch.no_grad():
            error = velocity_loss(average.module, alphas, *held)
        thirds = " ".join(f"{part.mean():.4f}" for part in error.split(86))
        clock.report(f"loss {running or 0:.4f}  held out {error.mean():.4f} (low, middle, high noise: {thirds})")

    for _ in clock:
        pictures = pool[torch.randint(len(pool), (options.batch,))]
        timesteps = torch.randint(steps, (options.batch,))
        with torch.autocast("cpu", torch.bfloat16):
            loss = velocity_loss(unet, alphas, pictures, timesteps, torch.randn(pictures.shape)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        average.update(unet)
        running = loss.item() if running is None else running + 0.01 * (loss.item() - running)
        if time.time() - saved > SAVE_EVERY:
            keep()
            saved = time.time()
        if options.stop_after is not None and time.time() - started > 60 * options.stop_after:
            break
    keep()


if __name__ == "__main__":
    main()
