"""What a denoiser is: the prediction D(x, sigma, prompt) = E[x0 | x], its noise scale, and what it costs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

from torch import Tensor

from .attention import differentiable_attention
from .errors import UnknownPromptError

SOURCE = "source"  # the prompt that describes the picture as it is


@dataclass
class EvaluationCounter:
    """Model evaluations: one forward of the diffusion model for one latent and one prompt.

    `cost_per_forward` is what one forward costs at the moment: 1, or 2 inside a forward-AD product, which computes the
    tangent along with the value. A backward pass costs 2.
    """

    evaluations: int = 0
    forwards: int = 0
    cost_per_forward: int = 1
    on_change: Callable[[int], None] | None = None

    def forward(self, batch: int) -> None:
        """Add one forward of the diffusion model for `batch` latents."""
        self.forwards += 1
        self._add(batch * self.cost_per_forward)

    def backward(self, evaluations: int) -> None:
        """Add one backward pass through a forward of that many evaluations."""
        self._add(2 * evaluations)

    def counting(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`function`, whose every call counts the batch of its first argument."""

        @functools.wraps(function)
        def counted(x: Tensor, *args):
            self.forward(len(x))
            return function(x, *args)

        return counted

    def _add(self, evaluations: int) -> None:
        self.evaluations += evaluations
        if self.on_change is not None:
            self.on_change(self.evaluations)

    @contextmanager
    def forward_ad(self) -> Iterator[None]:
        """Count every forward inside as two: value and tangent."""
        self.cost_per_forward = 2
        try:
            yield
        finally:
            self.cost_per_forward = 1


@dataclass(frozen=True)
class Features:
    """Inner activations h of a network, at one of its layers, which the host reads while the network runs.

    Attributes:
        read: (x (p, C, H, W), sigma, prompt name) -> h (p, ...), differentiable in x inside the context of
            `Denoiser.differentiable`. A call counts an evaluation for each vector, also where the network stops at the
            layer.
        layer: what the host calls the layer.
    """

    read: Callable[[Tensor, float, str], Tensor]
    layer: str


@dataclass
class Denoiser:
    """A model as `core` sees it.

    Attributes:
        predict: (x BCHW, sigma) -> denoised prediction BCHW under the source prompt without guidance; a model with
            prompts also takes (x, sigma, prompt name, guidance).
        scale: noise level sigma -> (a, b) of the noise process x = a x0 + b n. Any number that grows with the noise can
            stand for the level, such as the timestep of a discrete schedule.
        counter: counts the evaluations that `predict` causes. Without one, every call counts its batch.
        differentiable: called with whether a backward pass will be taken; gives a context inside which `predict` can be
            differentiated. The default suits plain torch code with torch's fused attention.
        features: the inner activations that the pullback method looks at; None where the host reads none.
    """

    predict: Callable[..., Tensor]
    scale: Callable[[float], tuple[float, float]]
    counter: EvaluationCounter | None = None
    differentiable: Callable[[bool], AbstractContextManager] = differentiable_attention
    features: Features | None = None

    def __post_init__(self):
        if self.counter is None:
            self.counter = EvaluationCounter()
            self.predict = self.counter.counting(self.predict)
            if self.features is not None:
                self.features = replace(self.features, read=self.counter.counting(self.features.read))

    def __call__(self, x: Tensor, sigma: float, prompt: str = SOURCE, guidance: float = 1.0) -> Tensor:
        """D(x, sigma, prompt), same shape as x.

        Raises:
            UnknownPromptError: `predict` knows no prompts, and this is not the source prompt without guidance.
        """
        if prompt == SOURCE and guidance == 1.0:
            return self.predict(x, sigma)
        if not self._has_prompts:
            msg = f"This model has no prompts, but it was asked for '{prompt}' at guidance {guidance}."
            raise UnknownPromptError(msg)
        return self.predict(x, sigma, prompt, guidance)

    @functools.cached_property
    def _has_prompts(self) -> bool:
        try:
            predict = inspect.unwrap(self.predict)  # a module's __call__ accepts anything: look at its forward
            inspect.signature(getattr(predict, "forward", predict)).bind(None, None, None, None)
        except TypeError:
            return False
        return True

    def predictions(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> list[Tensor]:
        """D(x, sigma, prompt) for each of several prompts."""
        return [self(x, sigma, prompt) for prompt in prompts]

    def noised(self, x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """x = a x0 + b n at noise level sigma."""
        a, b = self.scale(sigma)
        return a * x0 + b * noise

    def noise_of(self, x: Tensor, x0: Tensor, sigma: float) -> Tensor:
        """n = (x - a x0) / b, the noise that puts x0 at x."""
        a, b = self.scale(sigma)
        return (x - a * x0) / b
