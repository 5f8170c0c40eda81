"""The published settings: each row against the papers' table, and what it comes to on a model of another scale."""

import math
from dataclasses import replace

import pytest
import torch
from analytic import SCALES, SHAPE, SIGMA, analytic, box

from latent_directions.core.methods import METHODS
from latent_directions.core.presets import PRESETS, Preset, paper_step, preset_remarks, with_preset
from latent_directions.core.search import GUIDED, PROJECT_AFTER, STRAIGHT, Settings

# name: method, levels, count / null rank, strength, guidance
PUBLISHED = {
    "LOCO, faces (DDPM)": ("LOCO", 0.6, 0.6, 1, 5, 8, 1),
    "LOCO, churches (DDPM)": ("LOCO", 0.6, 0.6, 5, 5, 4, 1),
    "LOCO, flowers (P2)": ("LOCO", 0.7, 0.7, 5, 5, 16 * 0.5, 1),
    "LOCO, faces (FFHQ, P2)": ("LOCO", 0.2, 0.5, 3, 5, 12, 1),
    "LOCO, animals (AFHQ, P2)": ("LOCO", 0.7, 0.7, 1, 10, 16 * 0.2, 1),
    "LOCO, Stable Diffusion 2.1": ("LOCO", 0.7, 0.7, 5, 5, 16 * 0.2, 7.5),
    "T-LOCO, Stable Diffusion 2.1": ("T-LOCO", 0.7, 0.7, 1, 5, 8, 7.5),
    "LOCO, DeepFloyd IF": ("LOCO", 0.75, 0.75, 5, 5, 64 * 0.2, 15),
    "T-LOCO, DeepFloyd IF": ("T-LOCO", 0.75, 0.75, 1, 5, 10, 7.5),
    "LOCO, LCM in four steps": ("LOCO", 0.5, 0.52, 5, 5, 24 * 0.4, 1),
    "T-LOCO, LCM in four steps": ("T-LOCO", 0.5, 0.52, 1, 5, 5, 1),
}
PATHS = {  # levels, directions, delta, gamma, steps
    "pullback, faces (DDPM)": (0.6, 1.0, 2, 1, 0.1, 16),
    "pullback, Stable Diffusion 2.1": (0.6, 0.7, 2, 1, 1, 16),
    "pullback, Stable Diffusion 2.1, 64 steps": (0.6, 0.7, 2, 1, 1, 64),
}


def test_every_row_is_as_published():
    assert set(PRESETS) == set(PUBLISHED) | set(PATHS)
    for name, (method, low, high, count, null_rank, strength, guidance) in PUBLISHED.items():
        row = PRESETS[name]
        assert (row.method, row.levels, row.count, row.null_rank) == (method, (low, high), count, null_rank)
        assert (row.strength, row.guidance, row.steps) == (pytest.approx(strength), guidance, 1)
    for name, (low, high, count, delta, gamma, steps) in PATHS.items():
        row = PRESETS[name]
        assert (row.method, row.levels, row.count) == ("pullback", (low, high), count)
        assert (row.delta, row.gamma, row.steps, row.strength) == (delta, gamma, steps, None)


def test_names_and_methods():
    for name, row in PRESETS.items():
        assert row.name == name
        assert row.method in METHODS or row.method == "pullback"


def test_settings_with_a_preset():
    own = Settings(seed=4, derivatives="double backward", damping=0.3, keep=2, words_source="free")
    made = with_preset(own, PRESETS["LOCO, Stable Diffusion 2.1"])
    assert made == replace(own, count=5, null_rank=5, guidance=7.5, guided=True, projection=PROJECT_AFTER)
    made = with_preset(own, PRESETS["LOCO, animals (AFHQ, P2)"])
    assert (made.guided, made.guidance, made.null_rank, made.path) == (False, 1.0, 10, STRAIGHT)
    made = with_preset(own, PRESETS["pullback, Stable Diffusion 2.1, 64 steps"])
    assert (made.path, made.path_steps, made.count) == (GUIDED, 64, 2)


@pytest.mark.parametrize("name", [name for name, row in PRESETS.items() if row.method in METHODS])
def test_every_row_runs(name):
    model, row = analytic(), PRESETS[name]
    search = replace(model.search(box()), settings=with_preset(Settings(), row))
    moves = METHODS[row.method].run(search)
    assert len(moves) == row.count
    assert all(move.vector.shape == SHAPE for move in moves)


@pytest.mark.parametrize("kind", SCALES)
def test_the_published_step_moves_the_variance_preserving_latent_by_lambda(kind):
    scale, sigma, row = SCALES[kind], SIGMA[kind], PRESETS["LOCO, faces (DDPM)"]
    a, b = scale(sigma)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).double()
    unit = x / x.norm()
    moved = x + paper_step(row, scale, sigma) * unit
    assert float((moved / math.hypot(a, b) - x / math.hypot(a, b)).norm()) == pytest.approx(8)
    if kind == "vp":
        assert paper_step(row, scale, sigma) == pytest.approx(8)


def test_no_step_for_a_path():
    assert paper_step(PRESETS["pullback, faces (DDPM)"], SCALES["eps"], 1.0) is None


class TestRemarks:
    def test_another_level(self):
        row = PRESETS["LOCO, faces (FFHQ, P2)"]
        (remark,) = preset_remarks(row, 4.0, lambda level: 5 * level)
        assert remark == (
            "The picture was inverted at noise level 4. 'LOCO, faces (FFHQ, P2)' was published for a level of 0.2 to"
            " 0.5 of the schedule, which is 1 to 2.5 on this model."
        )
        assert (
            "a level of 0.6 of the schedule, which is 3 on"
            in preset_remarks(PRESETS["LOCO, faces (DDPM)"], 1.0, lambda level: 5 * level)[0]
        )

    @pytest.mark.parametrize("sigma", [1.0, 1.7, 2.5, 2.52])
    def test_the_same_level(self, sigma):
        assert preset_remarks(PRESETS["LOCO, faces (FFHQ, P2)"], sigma, lambda level: 5 * level) == []

    def test_what_the_guidance_means(self):
        at = 0.7
        (remark,) = preset_remarks(PRESETS["T-LOCO, Stable Diffusion 2.1"], at, lambda level: level)
        assert "guidance of 7.5 with a guidance of its own, 4." in remark
        (remark,) = preset_remarks(PRESETS["LOCO, LCM in four steps"], 0.5, lambda level: level)
        assert "is told its guidance, 7.5" in remark


def test_a_row_cannot_be_changed():
    with pytest.raises(AttributeError):
        PRESETS["LOCO, faces (DDPM)"].strength = 3.0
    assert Preset("own", "LOCO", (0.5, 0.5), 1).guided is False
