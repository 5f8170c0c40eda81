"""One case inside ComfyUI's sampling: predictions under its prompts, ComfyUI's Euler sampler, and pictures."""

from collections.abc import Callable, Sequence

import comfy.k_diffusion.sampling
import numpy as np
import torch
from torch import Tensor

from benchmarks.portraits import Bench, Case, eight_bit
from latent_directions.core.denoiser import SOURCE, Denoiser
from latent_directions.core.inversion import invert, seeded_noise
from latent_directions.nodes.host import run
from latent_directions.nodes.prompts import parse_keep
from latent_directions.nodes.sampling import schedule_from, sigma_at_level

TARGET, EMPTY = "target", "empty"


class Editor:
    """The picture of a case as a latent, and its prompts.

    Several strengths are sampled as one batch, and a hook on the network counts every latent of it. The predictions
    are those of ComfyUI's sampling functions; guidance that differs by strength is put together from them by `guided`.
    """

    def __init__(self, bench: Bench, case: Case, texts: dict[str, str] | None = None):
        """Encode the picture, and the prompts of the case and `texts` under their names."""
        self.bench = bench
        self.latent = {"samples": bench.vae.encode(bench.picture(case.portrait))}
        texts = {SOURCE: case.source, TARGET: case.target, EMPTY: "", **(texts or {})}
        self.keep = tuple(parse_keep(case.keep))
        texts |= {text: text for pair in self.keep for text in pair}
        self.prompts = {name: bench.prompt(text) for name, text in texts.items()}

    def run(self, body: Callable[[Denoiser, Tensor], object], prompts: dict[str, list] | None = None):
        """What `body(denoiser, x0)` returns, x0 (1, C, H, W) the clean latent in the model's space."""
        return run(self.bench.model, {**self.prompts, **(prompts or {})}, self.latent, 0.5, body)[0]

    def schedule(self, level: float, steps: int) -> Tensor:
        """`steps` steps of ComfyUI's simple schedule from a share of it down to 0."""
        sampling = self.bench.model.get_model_object("model_sampling")
        return schedule_from(sampling, "simple", steps, self.sigma(level))

    def sigma(self, level: float) -> float:
        """Noise level at a share of the schedule."""
        sampling = self.bench.model.get_model_object("model_sampling")
        return sigma_at_level(sampling.percent_to_sigma, level, float(sampling.sigma_min), float(sampling.sigma_max))

    def inverted(self, sigmas: Tensor) -> Tensor:
        """The noisy latent at sigmas[0] by inversion under the source prompt."""
        ascending = [float(s) for s in sigmas.flip(0) if s > 0]
        return self.run(lambda denoiser, x0: invert(denoiser, x0, ascending))

    def pictures(self, latents: Tensor) -> list[np.ndarray]:
        """8-bit pictures (HWC) of clean latents (B, C, H, W) in the model's space."""
        images = self.bench.vae.decode(self.bench.model.model.process_latent_out(latents))
        return list(eight_bit(images))

    def original(self) -> np.ndarray:
        """The picture as the VAE gives it back."""
        return self.pictures(self.run(lambda _, x0: x0))[0]


def per_sample(values: Sequence[float] | np.ndarray, like: Tensor) -> Tensor:
    """Numbers, one a sample, that broadcast over (B, C, H, W)."""
    return torch.as_tensor(np.asarray(values), dtype=like.dtype).view(-1, 1, 1, 1)


def guided(
    denoiser: Denoiser, x: Tensor, sigma: float, prompt: str, guidance: Tensor | float, negative: str = EMPTY
) -> Tensor:
    """Guided prediction (B, C, H, W), as ComfyUI's `cfg_function`: D_neg + g (D - D_neg), D alone where all g are 1.

    Args:
        denoiser: the model.
        x: (B, C, H, W).
        sigma: noise level.
        prompt: name of the positive prompt.
        guidance: g, one number or one a sample (B, 1, 1, 1).
        negative: name of the negative prompt.
    """
    positive = denoiser(x, sigma, prompt)
    if (torch.as_tensor(guidance) == 1).all():
        return positive
    without = denoiser(x, sigma, negative)
    return without + guidance * (positive - without)


def euler(predict: Callable[[Tensor, float], Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
    """ComfyUI's own Euler sampler on a prediction (x, sigma) -> D."""
    return comfy.k_diffusion.sampling.sample_euler(
        lambda point, level, **_: predict(point, float(level.flatten()[0])), x, sigmas, disable=True
    )


def step_noise(x0: Tensor, step: int) -> Tensor:
    """Noise (1, C, H, W) of one step, the same in every run."""
    return seeded_noise(x0, 1000 + step)
