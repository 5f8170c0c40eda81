"""Settings from the papers or their released code, and how they translate to another model.

Sources: LOCO Edit (arXiv 2409.02374) and the scripts of its code (ChicyChen/LOCO-Edit); the pullback papers (arXiv
2302.12469, 2307.12868) and their code (enkeejunior1/Diffusion-Pullback). The papers' noisy latents are
variance-preserving, x_vp = x / sqrt(a^2 + b^2) for x = a x0 + b n, and so are the lengths of their moves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from .search import GUIDED, PROJECT_AFTER, RESTRICT_FIRST, STRAIGHT, Settings

LOCO, T_LOCO, PULLBACK = "LOCO", "T-LOCO", "pullback"
OTHER_LEVEL = (
    "The picture was inverted at noise level {used:.3g}. '{name}' was published for a level of {levels} of the"
    " schedule, which is {sigmas} on this model."
)
ADDED = (
    "In the published '{name}' the target prompt is added to the source's guidance of {guidance:g} with a guidance of"
    " its own, {own:g}. Here both prompts are compared at {guidance:g}."
)
TOLD = (
    "The model of '{name}' is told its guidance, {told:g}, in place of being asked twice. Give the same number to"
    " FluxGuidance on the prompt."
)


@dataclass(frozen=True)
class Preset:
    """One row of published settings.

    Attributes:
        name: what an artist sees.
        method: name of the method here.
        levels: lowest and highest noise level, as shares of the schedule.
        count: directions that were looked for (the papers' r).
        null_rank: directions outside the mask that were ruled out (the papers' r').
        guidance: guidance of the prediction, and of its Jacobian where that is above 1.
        target_guidance: that of the target prompt where the paper adds it to the source's; None where it has none.
        told_guidance: what a guidance-distilled model was told; None for others.
        strength: length of the move in units of the variance-preserving latent (the papers' lambda); None for
            pullback, whose moves have no fixed length.
        largest: the longest move shown, either way, where that was published.
        decoded: whether mask and Jacobian are those of decoded pictures.
        steps: steps of a path, 1 for a straight move.
        gamma: share of the change of the noise prediction that each step of a path adds to the latent.
        delta: length of the move whose change of the noise prediction a step of a path follows.
    """

    name: str
    method: str
    levels: tuple[float, float]
    count: int
    null_rank: int = 0
    guidance: float = 1.0
    target_guidance: float | None = None
    told_guidance: float | None = None
    strength: float | None = None
    largest: float | None = None
    decoded: bool = False
    steps: int = 1
    gamma: float = Settings.path_gamma
    delta: float = Settings.path_delta

    @property
    def guided(self) -> bool:
        """Whether the Jacobian is that of the prediction under guidance."""
        return self.guidance != 1.0


_ROWS = (
    Preset("LOCO, faces (DDPM)", LOCO, (0.6, 0.6), 1, 5, strength=8.0, largest=15.0),
    Preset("LOCO, churches (DDPM)", LOCO, (0.6, 0.6), 5, 5, strength=4.0),
    Preset("LOCO, flowers (P2)", LOCO, (0.7, 0.7), 5, 5, strength=8.0),
    Preset("LOCO, faces (FFHQ, P2)", LOCO, (0.2, 0.5), 3, 5, strength=12.0),
    Preset("LOCO, animals (AFHQ, P2)", LOCO, (0.7, 0.7), 1, 10, strength=3.2),
    Preset("LOCO, Stable Diffusion 2.1", LOCO, (0.7, 0.7), 5, 5, guidance=7.5, strength=3.2, decoded=True),
    Preset(
        "T-LOCO, Stable Diffusion 2.1",
        T_LOCO,
        (0.7, 0.7),
        1,
        5,
        guidance=7.5,
        target_guidance=4.0,
        strength=8.0,
        decoded=True,
    ),
    Preset("LOCO, DeepFloyd IF", LOCO, (0.75, 0.75), 5, 5, guidance=15.0, strength=12.8),
    Preset("T-LOCO, DeepFloyd IF", T_LOCO, (0.75, 0.75), 1, 5, guidance=7.5, target_guidance=7.5, strength=10.0),
    # after two of four steps: the third timestep is 499 in today's diffusers and was 519
    Preset("LOCO, LCM in four steps", LOCO, (0.5, 0.52), 5, 5, told_guidance=7.5, strength=9.6, decoded=True),
    Preset("T-LOCO, LCM in four steps", T_LOCO, (0.5, 0.52), 1, 5, told_guidance=7.5, strength=5.0, decoded=True),
    Preset("pullback, faces (DDPM)", PULLBACK, (0.6, 1.0), 2, steps=16, gamma=0.1, delta=1.0),
    Preset("pullback, Stable Diffusion 2.1", PULLBACK, (0.6, 0.7), 2, steps=16, gamma=1.0, delta=1.0),
    Preset("pullback, Stable Diffusion 2.1, 64 steps", PULLBACK, (0.6, 0.7), 2, steps=64, gamma=1.0, delta=1.0),
)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ROWS}


def has_presets(method: str) -> bool:
    """Whether settings were published for the method of this name."""
    return any(preset.method == method for preset in PRESETS.values())


def with_preset(settings: Settings, preset: Preset) -> Settings:
    """Settings with what a preset says; the rest, such as seed and derivatives, stays.

    LOCO gets the paper's order of projection.
    """
    return replace(
        settings,
        count=preset.count,
        null_rank=preset.null_rank,
        guidance=preset.guidance,
        guided=preset.guided,
        projection=PROJECT_AFTER if preset.method == LOCO else RESTRICT_FIRST,
        path=STRAIGHT if preset.steps == 1 else GUIDED,
        path_steps=Settings.path_steps if preset.steps == 1 else preset.steps,
        path_delta=preset.delta,
        path_gamma=preset.gamma,
    )


def preset_remarks(preset: Preset, sigma: float, sigma_of: Callable[[float], float]) -> list[str]:
    """Sentences on where a run with a preset differs from what was published.

    Args:
        preset: the row.
        sigma: noise level that the picture was inverted at.
        sigma_of: share of the schedule in (0, 1] -> noise level on this model.
    """
    low, high = (sigma_of(level) for level in preset.levels)
    remarks = []
    if not min(low, high) * 0.98 <= sigma <= max(low, high) * 1.02:
        remarks.append(
            OTHER_LEVEL.format(
                used=sigma, name=preset.name, levels=_span(*preset.levels), sigmas=_span(*sorted((low, high)))
            )
        )
    if preset.target_guidance is not None:
        remarks.append(ADDED.format(name=preset.name, guidance=preset.guidance, own=preset.target_guidance))
    if preset.told_guidance is not None:
        remarks.append(TOLD.format(name=preset.name, told=preset.told_guidance))
    return remarks


def paper_step(preset: Preset, scale: Callable[[float], tuple[float, float]], sigma: float) -> float | None:
    """The length of the published move, in units of this model's noisy latent; None where none was published.

    The papers' lambda times sqrt(a^2 + b^2), for a move of x there is that of x_vp times it.

    Args:
        preset: the row.
        scale: noise level -> (a, b) of x = a x0 + b n.
        sigma: noise level of the picture.
    """
    if preset.strength is None:
        return None
    a, b = scale(sigma)
    return preset.strength * (a**2 + b**2) ** 0.5


def _span(low: float, high: float) -> str:
    """A range of numbers in words: one of them where both are the same."""
    low, high = f"{low:.3g}", f"{high:.3g}"
    return low if low == high else f"{low} to {high}"
