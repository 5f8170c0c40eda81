"""A denoiser whose prediction, Jacobian and posterior covariance are known exactly: Gaussian mixtures in float64.

x = a x0 + b n with x0 from a mixture of Gaussians N(m_k, S_k) with weights w_k; each prompt is a mixture of its own.
With C_k = a^2 S_k + b^2 I, r_k the posterior weights and d_k = m_k + a S_k C_k^-1 (x - a m_k):
    D(x) = sum_k r_k d_k,    Cov[x0 | x] = sum_k r_k (S_k - a^2 S_k C_k^-1 S_k + d_k d_k') - D D',
    J = dD/dx = (a / b^2) Cov[x0 | x],    K = a J.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latent_directions.core.denoiser import SOURCE, Denoiser, EvaluationCounter, Features
from latent_directions.core.operators import Jacobian, prediction_jacobian
from latent_directions.core.search import Search, Settings

torch.set_num_threads(1)  # matrices of 24 x 24: threads would only wait for each other

SHAPE = (1, 2, 3, 4)
SIZE = 24
EYE = torch.eye(SIZE, dtype=torch.float64)
# what the features h = tanh(MIX (x + D(x))) mix
MIX = torch.randn(10, SIZE, generator=torch.Generator().manual_seed(7), dtype=torch.float64) / 30
SCALES = {
    "eps": lambda sigma: (1.0, sigma),
    "flow": lambda sigma: (1.0 - sigma, sigma),
    "vp": lambda sigma: (1 / (1 + sigma**2) ** 0.5, sigma / (1 + sigma**2) ** 0.5),  # variance-preserving
}
SIGMA = {"eps": 1.3, "flow": 0.6, "vp": 1.3}


@dataclass(frozen=True)
class Mixture:
    """Weights (k,), means (k, N) and covariances (k, N, N)."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def posterior(self, x: Tensor, a: float, b: float) -> tuple[Tensor, Tensor]:
        """Weights r (B, k) and conditional means d (B, k, N) of x0 given x (B, N)."""
        noisy = a**2 * self.covariances + b**2 * torch.eye(x.shape[1], dtype=x.dtype)  # k N N
        centred = (x[:, None] - a * self.means).transpose(0, 1)  # k B N
        whitened = torch.linalg.solve(noisy, centred.transpose(1, 2)).transpose(1, 2)  # k B N
        logs = self.weights.log()[:, None] - 0.5 * (centred * whitened).sum(-1) - 0.5 * torch.logdet(noisy)[:, None]
        return logs.softmax(dim=0).T, (self.means[:, None] + a * whitened @ self.covariances).transpose(0, 1)

    def log_density(self, x: Tensor, a: float, b: float) -> Tensor:
        """log p(x) up to a constant, x (N,)."""
        noisy = a**2 * self.covariances + b**2 * torch.eye(len(x), dtype=x.dtype)
        centred = x - a * self.means
        quadratic = (centred * torch.linalg.solve(noisy, centred[..., None])[..., 0]).sum(-1)
        return torch.logsumexp(self.weights.log() - 0.5 * quadratic - 0.5 * torch.logdet(noisy), dim=0)

    def prediction(self, x: Tensor, a: float, b: float) -> Tensor:
        """D(x) = E[x0 | x] for x (B, N)."""
        r, d = self.posterior(x, a, b)
        return (r[..., None] * d).sum(1)

    def covariance(self, x: Tensor, a: float, b: float) -> Tensor:
        """Cov[x0 | x] (N, N) for x (1, N)."""
        r, d = self.posterior(x, a, b)
        noisy = a**2 * self.covariances + b**2 * torch.eye(x.shape[1], dtype=x.dtype)
        within = self.covariances - a**2 * self.covariances @ torch.linalg.solve(noisy, self.covariances)
        second = within + d[0, :, :, None] * d[0, :, None, :]
        mean = (r[0, :, None] * d[0]).sum(0)
        return (r[0, :, None, None] * second).sum(0) - mean[:, None] * mean[None]

    def moved(self, change: Tensor, weights: Tensor) -> "Mixture":
        """Another prompt: all means moved by `change` (N,), other weights."""
        return Mixture(weights, self.means + change, self.covariances)


def mixtures(seed: int = 0) -> dict[str, Mixture]:
    """Prompts with the names that a search asks for; "keep 0" shares a part of the target's change."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    spectrum = 1.5 * 0.7 ** torch.arange(SIZE, dtype=torch.float64)  # few large modes, as in pictures
    rotations = torch.linalg.qr(random(3, SIZE, SIZE))[0]
    source = Mixture(
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        0.8 * random(3, SIZE),
        (rotations * spectrum) @ rotations.transpose(1, 2),
    )
    wanted, kept = 0.3 * random(SIZE), 0.3 * random(SIZE)
    swapped = source.weights.flip(0)
    return {
        "source": source,
        "target": source.moved(wanted + 0.7 * kept, swapped),
        "free": source.moved(0 * wanted, torch.full((3,), 1 / 3, dtype=torch.float64)),
        "negative": source.moved(-wanted, source.weights),
        "keep 0 present": source.moved(kept, source.weights),
        "keep 0 absent": source.moved(-kept, source.weights),
    }


@dataclass
class Analytic:
    """The denoiser, the point it is looked at, and the exact answers there."""

    denoiser: Denoiser
    prompts: dict[str, Mixture]
    x: Tensor
    x0: Tensor
    sigma: float
    a: float
    b: float

    def exact(self, prompt: str = "source") -> Tensor:
        """D, shape of x."""
        return self.prompts[prompt].prediction(self.x.flatten(1), self.a, self.b).view_as(self.x)

    def jacobian(self, prompt: str = "source") -> Tensor:
        """J (N, N)."""
        return self.a / self.b**2 * self.prompts[prompt].covariance(self.x.flatten(1), self.a, self.b)

    def features(self, prompt: str = "source") -> Tensor:
        """h, (1, 5, 2)."""
        return ((MIX @ (self.x + self.exact(prompt)).flatten()).tanh()).view(1, 5, 2)

    def features_jacobian(self, prompt: str = "source") -> Tensor:
        """J_h = dh/dx (10, N)."""
        slopes = 1 - self.features(prompt).flatten().square()
        return slopes[:, None] * (MIX @ (EYE + self.jacobian(prompt)))

    def operator(self, prompt: str = "source", guidance: float = 1.0, **options) -> Jacobian:
        """J as the operator that is tested."""
        made = prediction_jacobian(self.denoiser, self.x, self.sigma, prompt, guidance)
        return replace(made, **options)

    def search(self, mask: Tensor | None = None, **settings) -> Search:
        """A search at the point."""
        return Search(self.denoiser, self.x, self.sigma, mask, Settings(**settings))


def denoiser_of(prompts: dict[str, Mixture], scale: Callable[[float], tuple[float, float]]) -> Denoiser:
    """A Denoiser over the mixtures, with features; guidance is taken against "negative", at two evaluations."""
    counter = EvaluationCounter()

    def under(x: Tensor, sigma: float, prompt: str) -> Tensor:
        return prompts[prompt].prediction(x.flatten(1), *scale(sigma)).view_as(x)

    def predict(x: Tensor, sigma: float, prompt: str = SOURCE, guidance: float = 1.0) -> Tensor:
        counter.forward(len(x) * (1 if guidance == 1.0 else 2))
        value = under(x, sigma, prompt)
        if guidance == 1.0:
            return value
        unguided = under(x, sigma, "negative")
        return unguided + guidance * (value - unguided)

    def read(x: Tensor, sigma: float, prompt: str) -> Tensor:
        counter.forward(len(x))
        return ((x + under(x, sigma, prompt)).flatten(1) @ MIX.T).tanh().view(-1, 5, 2)

    return Denoiser(predict, scale, counter, features=Features(read, "middle block"))


def analytic(kind: str = "flow", seed: int = 0) -> Analytic:
    """The mixtures under an eps or flow scale, at a noised sample of "source"."""
    scale, sigma = SCALES[kind], SIGMA[kind]
    prompts = mixtures(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    source = prompts["source"]
    root = torch.linalg.cholesky(source.covariances[0])
    x0 = source.means[0] + root @ torch.randn(SIZE, generator=generator, dtype=torch.float64)
    noise = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    a, b = scale(sigma)
    return Analytic(denoiser_of(prompts, scale), prompts, (a * x0 + b * noise).view(SHAPE), x0.view(SHAPE), sigma, a, b)


def box() -> Tensor:
    """A mask (1, 1, H, W) over half of the cells."""
    mask = torch.zeros(1, 1, *SHAPE[2:], dtype=torch.float64)
    mask[..., :2, 1:4] = 1
    return mask


def rows_of(mask: Tensor | None) -> Tensor:
    """The diagonal matrix P (N, N) that a mask stands for."""
    if mask is None:
        return torch.eye(SIZE, dtype=torch.float64)
    return torch.diag(mask.expand(SHAPE).flatten())


def dense(product: Callable[[Tensor], Tensor]) -> Tensor:
    """The matrix (M, N) of a product on blocks (p, ...), all its columns at once."""
    return product(torch.eye(SIZE, dtype=torch.float64).view(-1, *SHAPE[1:])).flatten(1).T


def planted(model: Analytic, function: Callable[[Tensor, Tensor], Tensor], **options) -> Jacobian:
    """The Jacobian of function(x, D(x)) in place of D, as an operator."""
    return Jacobian(lambda x: function(x, model.denoiser(x, model.sigma)), model.x, **options)


def ode_step(scale: Callable[[float], tuple[float, float]], x: Tensor, denoised: Tensor, here: float, there: float):
    """One step of the sampling ODE at a constant prediction: x_j = r x + g D, r = b_j / b_i, g = a_j - r a_i."""
    (a, b), (a_there, b_there) = scale(here), scale(there)
    return b_there / b * x + (a_there - b_there / b * a) * denoised


def sample_euler(scale, x: Tensor, sigmas: list[float], predict: Callable[[Tensor, float], Tensor]) -> Tensor:
    """Euler's method down the noise levels."""
    for here, there in zip(sigmas, sigmas[1:], strict=False):
        x = ode_step(scale, x, predict(x, here), here, there)
    return x


def sample_heun(scale, x: Tensor, sigmas: list[float], predict: Callable[[Tensor, float], Tensor]) -> Tensor:
    """Heun's method on dx = D da + n db, with an Euler step where it ends without noise."""
    for here, there in zip(sigmas, sigmas[1:], strict=False):
        (a, b), (a_there, b_there) = scale(here), scale(there)
        denoised = predict(x, here)
        end = ode_step(scale, x, denoised, here, there)
        if b_there == 0:
            x = end
        else:
            at_end = predict(end, there)
            noises = (x - a * denoised) / b + (end - a_there * at_end) / b_there
            x = x + (a_there - a) * (denoised + at_end) / 2 + (b_there - b) * noises / 2
    return x


def cosine(a: Tensor, b: Tensor) -> float:
    """The cosine of two tensors as vectors."""
    return float(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0))
