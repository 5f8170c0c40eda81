"""The comparison of the Jacobian methods: measures on plain arrays, matched change, the order, rows, a small run."""

import functools
import json

import diffusers_folders
import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.jacobian import levels, measures, rows, subjects, tables
from benchmarks.jacobian.methods import FINDERS, found_by, noise_jacobian
from benchmarks.jacobian.run import main
from latent_directions.core.denoiser import Denoiser
from latent_directions.core.operators import Jacobian
from latent_directions.core.search import Search
from latent_directions.demo.world import ATTRIBUTES, Portrait, masks, sample_portrait

NAMES = list(ATTRIBUTES)
MOUTH, EYES = ["smile", "mouth_opening"], ["eye_size", "glasses"]


def change(**values: float) -> np.ndarray:
    return np.array([values.get(name, 0.0) for name in NAMES])


def row(method: str, picture: int, *edits: dict, **more) -> dict:
    made = {"key": {"model": "MMDiT", "method": method, "picture": picture}, "attributes": MOUTH, "edits": list(edits)}
    return made | {"best": 0, "on_another_picture": change(smile=1).tolist()} | more


def edit(outside: float = 0.0, **changes: float) -> dict:
    return {"reached": True, "inside": 1.0, "outside": outside, "changes": change(**changes).tolist()}


NOT_REACHED = {"reached": False, "inside": None, "outside": None, "changes": None}


def test_change_inside_and_outside_of_a_region():
    unmoved, pixels = np.full((4, 4, 3), 100, np.uint8), np.zeros((4, 4))
    pixels[:2] = 1
    picture = unmoved.copy()
    picture[:2] -= 3
    picture[3, 3] = 104
    rms, inside, outside = measures.parts_of_change(picture, unmoved, pixels)
    assert rms == pytest.approx(3)
    assert inside == pytest.approx(3 * 24**0.5)
    assert outside == pytest.approx(4 * 3**0.5)
    assert measures.leakage_ratio(3.0, 1.0) == 0.25


def test_a_local_edit_changes_an_attribute_of_the_region_plainly_and_alone():
    changed = measures.attribute_changed
    assert changed(change(smile=-0.9, mouth_opening=0.6), MOUTH) == "smile"
    assert changed(change(smile=0.4), MOUTH) is None
    assert changed(change(smile=0.9, hat=-0.5, glasses=0.5), MOUTH) is None
    assert changed(change(hat=-0.5, glasses=0.9), EYES) == "glasses"


def test_a_direction_carries_over_where_the_same_changes_to_the_same_side():
    here = change(smile=-0.9, hat=0.1)
    assert measures.carries_over(here, change(smile=-0.6, hat=0.5))
    assert not measures.carries_over(here, change(smile=0.6))
    assert not measures.carries_over(here, change(smile=-0.6, hat=0.7))
    assert not measures.carries_over(here, change(smile=-0.3))


def test_composition_and_linearity_of_exact_cases():
    z = [torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    assert measures.composition_error(z[0], z[0] + z[1], z[0] + z[2], z[0] + z[1] + z[2]) == pytest.approx(0, abs=1e-6)
    assert measures.composition_error(z[0], z[0] + z[1], z[0] + z[2], z[0] + z[1]) == pytest.approx(
        float(z[2].norm() / z[1].norm()), rel=1e-5
    )
    assert measures.linearity(z[0], z[1], z[0] + z[1]) == pytest.approx((0, 1, 1), abs=1e-5)
    error, ratio, cosine = measures.linearity(torch.zeros(2), torch.tensor([1.0, 0]), torch.tensor([0.0, 2]))
    assert (error, ratio, cosine) == pytest.approx((5**0.5, 2, 0))


@pytest.mark.parametrize("power", [0.6, 1.0, 2.0])
@pytest.mark.parametrize("scale", [0.5, 3.0, 20.0])
def test_the_wanted_change_is_found_in_few_runs_and_figures_are_between_them(scale, power):
    runs = []

    def change_at(strength: float) -> float:
        runs.append((strength, scale * strength**power, np.array([10 * scale * strength**power])))
        return runs[-1][1]

    measures.find_strengths(change_at, 5.0, 100.0)
    assert len(runs) <= 4
    strength, figures = measures.at_wanted_change(runs, 5.0)
    assert figures[0] == pytest.approx(50, rel=measures.NEAR + 1e-9)
    assert scale * strength**power == pytest.approx(5, rel=0.35)


def test_a_change_that_is_not_reached():
    asked = []
    measures.find_strengths(lambda strength: asked.append(strength) or 0.1 * strength, 5.0, 10.0)
    assert asked == [1.0, 6.0, 10.0]
    runs = [(strength, 0.1 * strength, np.array([strength])) for strength in asked]
    assert measures.at_wanted_change(runs, 5.0) is None
    assert measures.at_wanted_change([], 5.0) is None
    assert measures.at_wanted_change(runs, 1.04)[1][0] == 10.0  # near enough


def test_figures_are_taken_where_the_change_is_first_reached():
    runs = [(2.0, 8.0, np.array([3.0])), (1.0, 4.0, np.array([1.0])), (4.0, 5.0, np.array([9.0]))]
    strength, figures = measures.at_wanted_change(runs, 6.0)
    assert (strength, figures[0]) == (1.5, 2.0)
    assert measures.at_wanted_change(runs, 2.0)[1][0] == 0.5  # from nothing at strength 0


def test_what_is_said_of_the_order():
    good, bad = np.array([[1.0, 0.0]] * 8), np.array([[0.0, 1.0]] * 8)
    assert measures.verdict(good).startswith("holds, +1.000")
    assert measures.verdict(bad).startswith("does not hold, -1.000")
    assert measures.verdict(np.concatenate([good, bad])).startswith("not decided, +0.000")
    assert measures.verdict(good[:2]) == "not decided, 2 pairs"


def test_success_leakage_and_transfer_of_rows():
    local = row("LOCO", 0, NOT_REACHED, edit(outside=1.0, smile=1.0), best=1)
    assert tables.succeeded(local)
    assert tables.leakage(local) == 0.5
    assert tables.transferred(local) is True
    assert tables.likeness(local, "on_another_picture") == pytest.approx(1)
    failed = row("LOCO", 1, NOT_REACHED, NOT_REACHED, best=None)
    assert not tables.succeeded(failed)
    assert tables.leakage(failed) is None
    assert tables.transferred(failed) is None
    assert tables.transferred(row("LOCO", 2, edit(hat=1.0))) is None


def test_the_order_compares_the_same_portraits():
    both = [row("LOCO", n, edit(smile=1.0)) for n in range(8)]
    both += [row("LOCO, no null space", n, edit(outside=1.0, smile=1.0, hat=2.0)) for n in range(8, 0, -1)]
    pairs = tables.pairs_of(both, "LOCO", "LOCO, no null space", tables.succeeded)
    assert pairs.tolist() == [[1.0, 0.0]] * 7
    lines = {line["claim"]: line for line in tables.order(both)}
    assert lines["null space helps"]["by local success"].startswith("holds, +1.000")
    assert lines["null space helps"]["by leakage"].startswith("holds, +0.500")
    assert lines["LOCO above pullback"]["by leakage"] == "not decided, 0 pairs"
    assert tables.difference(pairs) == "+1.000 [+1.000, +1.000]"
    assert tables.difference(pairs[:5]) == "-"


def test_rows_are_kept_and_a_cut_line_is_dropped(tmp_path):
    path, asked = tmp_path / "rows.jsonl", []

    def measure() -> dict:
        asked.append(1)
        return {"value": len(asked)}

    kept = rows.RowFile(path)
    assert [kept.get({"n": n}, measure)["value"] for n in (1, 2, 1)] == [1, 2, 1]
    path.write_text(path.read_text() + '{"key": {"n"')
    again = rows.RowFile(path)
    assert [again.get({"n": n}, measure)["value"] for n in (2, 3)] == [2, 3]
    assert [json.loads(line)["key"]["n"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_an_attribute_belongs_to_the_region_in_which_it_is_drawn():
    portrait = Portrait(hair_length=0.9)
    found = {
        region: subjects.attributes_inside(portrait, masks(portrait)[region]) for region in ("mouth", "eyes", "hair")
    }
    assert found["mouth"] == ["smile", "mouth_opening"]
    assert found["eyes"] == ["eye_size", "glasses"]
    assert "hair_colour" in found["hair"] and "background" not in found["hair"]
    everywhere, upper = np.ones((64, 64)), np.zeros((64, 64))
    assert subjects.attributes_inside(portrait, everywhere) == NAMES
    upper[16:24] = 1  # a row of the latent's cells, in which the brows are
    assert subjects.attributes_inside(Portrait(), upper) == ["brow_angle"]


def test_the_wanted_change_is_that_of_a_drawn_standard_deviation():
    found = {region: subjects.wanted_change(region, 32, (1, 3, 32, 32)) for region in subjects.REGIONS}
    assert all(10 < value < 60 for value in found.values())
    portrait = sample_portrait(np.random.default_rng(0))
    cells = subjects.cells_of(portrait, "mouth", (1, 16, 8, 8))
    assert subjects.in_pixels(cells, 64).sum() == 64 * cells.sum() > 0


def test_a_dense_jacobian_and_the_directions_of_the_predicted_noise():
    torch.manual_seed(0)
    matrix = torch.linalg.qr(torch.randn(75, 75, dtype=torch.float64))[0] * torch.linspace(0, 1, 75).double()
    x = torch.randn(1, 3, 5, 5, dtype=torch.float64)
    denoiser = Denoiser(lambda x, sigma: (x.flatten(1) @ matrix.T).view_as(x), lambda sigma: (0.6, 0.8))
    found = levels.dense(Jacobian(lambda x: denoiser.predict(x, 1.0), x))
    assert torch.allclose(found.double(), matrix, atol=1e-6)
    assert torch.allclose(levels.singular_values(found), torch.linspace(0, 1, 75).double(), atol=1e-6)
    search = Search(denoiser, x, 1.0)
    moves = noise_jacobian(search, None, 0).flatten(1)
    of_noise = (torch.eye(75).double() - 0.6 * matrix) / 0.8
    assert torch.allclose(moves @ moves.T, torch.eye(5).double(), atol=1e-6)
    reached = (of_noise @ moves.T).norm(dim=0)
    exact = torch.linalg.svdvals(of_noise)[:5]
    assert (reached <= exact[0] * (1 + 1e-9)).all()
    assert reached[0] > 0.98 * exact[0]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A DDPM with random weights for pictures of 8 pixels, as the only model of the benchmark."""
    diffusers_folders.pixels(tmp_path / "small-ddpm", **diffusers_folders.GENTLE)
    load = functools.partial(subjects.PixelBench, folder=tmp_path / "small-ddpm", size=8)
    made = subjects.Subject("small", load, 0.6)
    monkeypatch.setattr("benchmarks.jacobian.run.SUBJECTS", {"small": made})
    return made


@torch.inference_mode()
def test_every_method_has_the_same_step_and_a_direction_inside_the_latent(small):
    here = small.encoded(0)
    for name in ("LOCO, region held", "pullback", "d eps/dx", "random in the subspace", "random"):
        finder = FINDERS[name]
        found = found_by(finder, name, here, 0)
        direction, look = found.directions[0], found.looks[0]
        assert direction.latent.shape == (3, 8, 8)
        assert float(direction.latent.norm()) == pytest.approx(1, abs=1e-5)
        assert (direction.mask is not None) == finder.held
        assert 0 < look.share_inside <= 1
        assert (found.evaluations == 0) == (name == "random")

        def effect(search, move=direction.latent[None]):
            jacobian, cells = search.jacobian(), search.mask.expand_as(search.x)
            inside = (jacobian.matvec(move).square() * cells).sum() / cells.sum()
            return float(inside.sqrt() / jacobian.value.std())

        assert direction.step * here.searched(effect, finder.settings) == pytest.approx(0.25, rel=1e-3)


def test_a_run_is_counted_kept_and_shown(small, tmp_path, capsys):
    kept, picture = tmp_path / "rows.jsonl", tmp_path / "sheet.png"
    arguments = ["--quick", "--json", str(kept), "--methods", "LOCO", "h-space PCA", "random"]
    main([*arguments, "--sheet", str(picture)])
    said, lines = capsys.readouterr().out, kept.read_text()
    assert "| small | LOCO | 1 |" in said and "not decided" in said
    assert Image.open(picture).size[1] > 3 * 64
    found = {row["key"]["method"]: row for row in map(json.loads, lines.splitlines())}
    assert list(found) == ["LOCO", "h-space PCA", "random"]
    for one in found.values():
        runs = sum(edit["runs"] for edit in one["edits"])
        assert one["sampling_evaluations"] >= subjects.STEPS * runs
    main(arguments)
    assert kept.read_text() == lines
    assert capsys.readouterr().out == said


@torch.inference_mode()
def test_levels_of_a_small_model(small):
    found = levels.measured(small, 0.5)
    assert found["dimensions"] == 3 * 8 * 8
    assert 0 < found["D_paper"] <= found["D"] <= 1
    assert found["curvedness"] >= 1
