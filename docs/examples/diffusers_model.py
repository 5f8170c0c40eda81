"""A slider on a pixel-space diffusers model of random weights: exact inversion, directions by LOCO, and a strip.

Needs torch and diffusers alone: python docs/examples/diffusers_model.py [strip.png]
"""

import sys
from pathlib import Path

import diffusers
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from core import METHODS, AnchoredPrediction, Denoiser, NoiseMove, NoisePaths, Search, Settings, invert, moved_noise
from core.contact_sheet import contact_sheet

torch.manual_seed(0)
network = diffusers.UNet2DModel(32, layers_per_block=1, block_out_channels=(16, 16, 32, 32), norm_num_groups=8)
network.requires_grad_(False)
scheduler = diffusers.DDIMScheduler(clip_sample=False)
scheduler.set_timesteps(20)
levels = [int(timestep) for timestep in scheduler.timesteps.flip(0) if timestep <= 600]


def scale(timestep: float) -> tuple[float, float]:
    """(a, b) of x = a x0 + b n."""
    signal = float(scheduler.alphas_cumprod[int(timestep)])
    return signal**0.5, (1 - signal) ** 0.5


def predict(x: torch.Tensor, timestep: float) -> torch.Tensor:
    """The denoised prediction of a network that predicts noise."""
    a, b = scale(timestep)
    return (x - b * network(x, timestep).sample) / a


denoiser = Denoiser(predict, scale)
picture = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4) * 2 - 1, 32, mode="bicubic")
x = invert(denoiser, picture, levels)
paths = NoisePaths(denoiser.noise_of(x, picture, levels[-1]))
mask = torch.nn.functional.pad(torch.ones(1, 1, 16, 16), (8, 8, 8, 8))
before = denoiser.counter.evaluations
(found,) = METHODS["LOCO"].run(Search(denoiser, x, levels[-1], mask, Settings(count=1, null_rank=2)))
print(f"evaluations of the search: {denoiser.counter.evaluations - before}")


def sample(strength: float) -> torch.Tensor:
    """The picture with the slider at a strength, by the scheduler's own deterministic steps."""
    moves = [NoiseMove(strength=strength, displacement=found.step * found.vector[0])]
    anchored = AnchoredPrediction(picture, paths, denoiser.noised, moves)
    x = denoiser.noised(picture, moved_noise(paths.base, moves, scale(levels[-1])[1]), levels[-1])
    for timestep in reversed(levels):
        a, b = scale(timestep)
        x = scheduler.step((x - a * anchored(x, timestep, denoiser.predictions)) / b, timestep, x).prev_sample
    return x


pictures = {strength: sample(strength) for strength in (-2, -1, 0, 1, 2)}
print(f"zero-strength difference: {float((pictures[0] - picture).abs().max()):.1e}")
shown = [(f"{strength:+d}", diffusers.utils.pt_to_pil(made)[0]) for strength, made in pictures.items()]
contact_sheet([("LOCO", shown)]).save((sys.argv + ["strip.png"])[1])
