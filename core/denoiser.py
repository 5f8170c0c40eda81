"""What a denoiser is: the prediction D(x, sigma, prompt) = E[x0 | x], its noise scale, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from .errors import CachedModelError, InputError, UnsupportedModelError

CACHED = (
    "The model answered without running its network: a cache node (such as EasyCache or LazyCache) sits on the MODEL. "
    "Connect the model from before that node."
)


@dataclass
class EvaluationCounter:
    """Model evaluations: one forward of the diffusion model for one latent and one prompt.

    `forward` is called by a hook on the diffusion model with the batch size it ran. `weight` is what one forward
    costs at the moment: 1, or 2 inside a forward-AD product (the tangent runs along). A backward pass adds 2.
    """

    evaluations: int = 0
    forwards: int = 0
    weight: int = 1
    on_change: Callable[[int], None] | None = None

    def forward(self, batch: int) -> None:
        """Add one forward of the diffusion model for `batch` latents."""
        self.forwards += 1
        self._add(batch * self.weight)

    def backward(self, evaluations: int) -> None:
        """Add one backward pass through a forward of that many evaluations, which costs about two of it."""
        self._add(2 * evaluations)

    def _add(self, evaluations: int) -> None:
        self.evaluations += evaluations
        if self.on_change is not None:
            self.on_change(self.evaluations)

    @contextmanager
    def forward_ad(self) -> Iterator[None]:
        """Count every forward inside as two: value and tangent."""
        self.weight = 2
        try:
            yield
        finally:
            self.weight = 1


@dataclass
class Denoiser:
    """A model as `core` sees it.

    Attributes:
        predict: (x BCHW, sigma, prompt name, guidance) -> denoised prediction BCHW, in the model's latent space.
        scale: sigma -> (a, b) of the noise process x = a x0 + b n.
        counter: counts the evaluations that `predict` causes.
        differentiable: reverse -> context in which `predict` can be differentiated, backward too with `reverse`.
        network: what must run at every call, layer for layer; None stands for whatever runs.
        layers: what the first call of a kind ran: noise level, prompt, guidance, and whether it was differentiated, for
            some models take other layers then.
    """

    predict: Callable[[Tensor, float, str, float], Tensor]
    scale: Callable[[float], tuple[float, float]]
    counter: EvaluationCounter = field(default_factory=EvaluationCounter)
    differentiable: Callable[[bool], AbstractContextManager] = nullcontext
    network: torch.nn.Module | None = None
    layers: dict[tuple[float, str, float, bool], set[torch.nn.Module]] = field(default_factory=dict)
    _differentiated: bool = False

    def __call__(self, x: Tensor, sigma: float, prompt: str = "source", guidance: float = 1.0) -> Tensor:
        """D(x, sigma, prompt), same shape as x.

        Raises:
            CachedModelError: the network did not run, or not the layers that it ran before.
        """
        before = self.counter.forwards
        with _called_layers(self.network) as called:
            value = self.predict(x, sigma, prompt, guidance)
        first = self.layers.setdefault((sigma, prompt, guidance, self._differentiated), called)
        if self.counter.forwards == before or called != first or (called is first and _runs_no_inner_layer(called)):
            raise CachedModelError(CACHED)
        return value

    @contextmanager
    def derivative(self, reverse: bool) -> Iterator[None]:
        """Entered around everything that is differentiated, and around nothing else."""
        self._differentiated = True
        try:
            with self.differentiable(reverse):
                yield
        finally:
            self._differentiated = False

    def noised(self, x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """x = a x0 + b n at noise level sigma."""
        a, b = self.scale(sigma)
        return a * x0 + b * noise

    def noise_of(self, x: Tensor, x0: Tensor, sigma: float) -> Tensor:
        """n = (x - a x0) / b, the noise that puts x0 at x."""
        a, b = self.scale(sigma)
        return (x - a * x0) / b


@contextmanager
def _called_layers(network: torch.nn.Module | None) -> Iterator[set[torch.nn.Module]]:
    """The torch modules, of one network or any, that are called while the block runs.

    What runs beside it may run once and be kept: a ControlNet encodes its hint with a VAE at the first call alone.
    """
    called = set()
    hook = register_module_forward_pre_hook(lambda module, _inputs: called.add(module))
    try:
        yield called
    finally:
        hook.remove()
        if network is not None:
            called.intersection_update(network.modules())


def _runs_no_inner_layer(called: set[torch.nn.Module]) -> bool:
    """Whether a network was called whose own layers were not: a cache sits inside it."""
    inner = {part for network in called for part in list(network.modules())[1:]}
    return any(
        list(network.children()) and not any(part in called for part in list(network.modules())[1:])
        for network in called
        if network not in inner
    )


def linear_scale(noise_scaling: Callable[..., Tensor], sigma: float) -> tuple[float, float]:
    """Read (a, b) of x = a x0 + b n from a model's own `noise_scaling(sigma, noise, latent)`.

    Raises:
        UnsupportedModelError: x is not of this form (an offset, or a or b is 0), so Tweedie's formula does not hold.
    """
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    level = torch.tensor([sigma])

    def at(noise: Tensor, latent: Tensor) -> float:
        # some families scale in place, so every call gets its own tensors
        return float(noise_scaling(level, noise.clone(), latent.clone()))

    a, b, offset, both = at(zero, one), at(one, zero), at(zero, zero), at(one, one)
    if abs(offset) > 1e-6 or abs(both - a - b) > 1e-4 * (abs(a) + abs(b)):
        msg = (
            "This model does not noise a picture as 'picture + noise', which the slider's formulas need. "
            "Use an image model of the eps, v or flow kind."
        )
        raise UnsupportedModelError(msg)
    if a <= 1e-6 or b <= 1e-6:
        msg = (
            f"Noise level sigma {sigma:.4g} leaves {'nothing of the picture' if a <= 1e-6 else 'no noise'} in the "
            "latent, so there is nothing to edit at it. Set 'level' to a value between 0.05 and 0.95."
        )
        raise UnsupportedModelError(msg)
    return a, b


def sigma_at_level(
    percent_to_sigma: Callable[[float], float], level: float, sigma_min: float, sigma_max: float
) -> float:
    """Sigma of noise level f in (0, 1]: `percent_to_sigma(1 - f)`, clamped to the model's range.

    Raises:
        InputError: f is outside (0, 1] or not a number.
    """
    if not (math.isfinite(level) and 0.0 < level <= 1.0):
        msg = (
            f"'level' is {level}, outside the schedule: it is the share of the noise schedule to go back, more than 0 "
            "and at most 1. Typical values are 0.5 to 0.8."
        )
        raise InputError(msg)
    return min(max(float(percent_to_sigma(1.0 - level)), sigma_min), sigma_max)
