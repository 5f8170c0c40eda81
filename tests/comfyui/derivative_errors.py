"""Errors of derivatives through a MODEL against converged differences of a float64 copy."""

from dataclasses import dataclass, replace

import torch
from families import TestModel
from model_variants import in_float64
from torch import Tensor
from torch.overrides import TorchFunctionMode

from latent_directions.core.denoiser import Denoiser
from latent_directions.core.errors import DerivativeError, NotFiniteError
from latent_directions.core.operators import DOUBLE_BACKWARD, prediction_jacobian
from latent_directions.core.self_check import SelfCheck, self_check
from latent_directions.nodes.errors import CachedModelError
from latent_directions.nodes.host import run

STEP = 1e-2  # of the reference's largest difference, relative to the norm of x


@dataclass(frozen=True)
class Reference:
    """D and J v of the float64 model at one point, and how far J v changed at the last refinement."""

    value: Tensor
    products: Tensor
    uncertainty: float


@dataclass(frozen=True)
class Errors:
    """What came out of one model at one guidance.

    Attributes:
        check: the self-check, or None where it refused.
        refusal: the words of the refusal.
        distance: of the sampled prediction to the reference's, relative.
        forward: largest relative error of a block's J v by its size; empty where refused.
        double: the same by double backward; empty where backward products are refused.
        adjoint: |<Jv, Jv> - <v, J'Jv>| / |J'Jv| by block size; empty where backward products are refused.
    """

    check: SelfCheck | None
    refusal: str
    distance: float
    forward: dict[int, float]
    double: dict[int, float]
    adjoint: dict[int, float]


class Float64(TorchFunctionMode):
    """Keeps in float64 what model code would bring from there to float32, such as queries, keys and outputs."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        to_float32 = func is torch.Tensor.float or (
            func is torch.Tensor.to and (torch.float32 in args[1:] or kwargs.get("dtype") is torch.float32)
        )
        return args[0] if to_float32 and args[0].dtype is torch.float64 else func(*args, **kwargs)


def at_point(test_model: TestModel, body):
    """body(denoiser, x) at a noisy latent of the test model, within ComfyUI's sampling."""
    generator = torch.Generator().manual_seed(21)
    x0, noise = torch.randn(2, *test_model.latent_shape, generator=generator)
    with torch.inference_mode():
        latent = {"samples": test_model.model.get_model_object("latent_format").process_out(x0)}
        prompts = {"source": test_model.positive, "negative": test_model.negative}
        noised = lambda denoiser, x0: denoiser.noised(x0, noise, test_model.sigma)  # noqa: E731
        return run(test_model.model, prompts, latent, test_model.sigma, lambda d, x0: body(d, noised(d, x0)))[0]


def directions(test_model: TestModel, count: int = 2) -> Tensor:
    """Random directions in the latent of a test model, (count, C, ...)."""
    shape = (count, *test_model.latent_shape[1:])
    return torch.randn(shape, generator=torch.Generator().manual_seed(22))


def reference(test_model: TestModel, guidance: float) -> Reference:
    """D and J v by differences at three steps, extrapolated: the error is of fourth order in the step."""
    exact = in_float64(test_model)
    v = directions(exact).double()

    def body(denoiser: Denoiser, x: Tensor) -> Reference:
        with denoiser.differentiable(False), Float64():
            x = x.double()
            predict = lambda x: denoiser(x, exact.sigma, "source", guidance)  # noqa: E731
            scale = STEP * x.norm() / v.flatten(1).norm(dim=1).view(-1, *[1] * (v.ndim - 1))
            steps = [scale / 2**k for k in range(3)]
            coarse, middle, fine = ((predict(x + h * v) - predict(x - h * v)) / (2 * h) for h in steps)
            first, last = (4 * middle - coarse) / 3, (4 * fine - middle) / 3
            return Reference(predict(x), last, relative(first, last))

    return at_point(exact, body)


def measure(test_model: TestModel, truth: Reference, guidance: float, blocks: tuple[int, ...] = (1, 2)) -> Errors:
    """Self-check a model and compare its products on blocks of directions with the reference."""
    v = directions(test_model)

    def body(denoiser: Denoiser, x: Tensor) -> Errors:
        value = denoiser(x, test_model.sigma, "source", guidance)
        distance = relative(value, truth.value)
        candidate = prediction_jacobian(denoiser, x, test_model.sigma, guidance=guidance)
        try:
            check = self_check(candidate)
        except (CachedModelError, DerivativeError, NotFiniteError) as error:
            return Errors(None, str(error), distance, {}, {}, {})
        jacobian, forward, double, adjoint = check.jacobian, {}, {}, {}
        for block in blocks:
            products = jacobian.matvec(v[:block])
            forward[block] = worst(products, truth)
            if check.backward:
                transposed = jacobian.rmatvec(products)
                gap = (products.square() - v[:block] * transposed).flatten(1).sum(1).abs()
                adjoint[block] = float((gap / transposed.flatten(1).norm(dim=1)).max())
                double[block] = worst(replace(jacobian, mode=DOUBLE_BACKWARD).matvec(v[:block]), truth)
        return Errors(check, "", distance, forward, double, adjoint)

    return at_point(test_model, body)


def worst(products: Tensor, truth: Reference) -> float:
    """Largest relative error of a block of products."""
    return max(relative(a, b) for a, b in zip(products, truth.products, strict=False))


def relative(value: Tensor, exact: Tensor) -> float:
    """|value - exact| / |exact| in float64."""
    return float((value.double() - exact.double()).norm() / exact.double().norm())
