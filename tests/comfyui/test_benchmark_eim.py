"""The comparison with published methods: fixed cases, peers that give the picture back, figures, and going on."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.eim import hessian, own, peers
from benchmarks.eim.cases import FORWARD, HELD_OUT, PAIR, SIGNED, TUNING, cases_of
from benchmarks.eim.editor import EMPTY, TARGET, Editor, guided
from benchmarks.eim.methods import DEFAULT, METHODS, PAIR_METHODS, Method
from benchmarks.eim.rows import RowFile
from benchmarks.eim.run import compared, largest_step, main, strongest, tune
from benchmarks.eim.sheet import sheet, strength_at
from benchmarks.eim.statistics import (
    UNREACHED,
    difference_of_means,
    figures,
    matched,
    paired_interval,
    ratio_of_means,
    score,
)
from benchmarks.first import at_change, wanted_change
from benchmarks.portraits import INVERTED, Bench
from latent_directions.core.denoiser import SOURCE
from latent_directions.demo.world import ATTRIBUTES
from latent_directions.nodes.host import first_noise
from latent_directions.nodes.sampling import sample_euler


@pytest.fixture(scope="module")
def bench() -> Bench:
    with torch.inference_mode():
        return Bench()


@pytest.fixture(scope="module")
def case():
    return cases_of(PAIR, 1)[0].case


@pytest.fixture(scope="module")
def editor(bench, case):
    with torch.inference_mode():
        return Editor(bench, case)


@pytest.fixture(scope="module")
def original(editor):
    with torch.inference_mode():
        return editor.original()


def difference(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def test_cases_are_fixed_and_shared_by_no_two_tables():
    tables = {name: cases_of(name) for name in (TUNING, HELD_OUT, PAIR)}
    assert [len(entries) for entries in tables.values()] == [24, 100, 18]
    assert tables == {name: cases_of(name) for name in tables}
    portraits = [entry.case.portrait for entries in tables.values() for entry in entries]
    assert len(set(portraits)) == len(portraits)
    for name in (TUNING, HELD_OUT):
        assert {entry.case.attribute for entry in tables[name]} == set(ATTRIBUTES)
        assert all(entry.case.source != entry.case.target for entry in tables[name])
    assert any(entry.case.phrase == "with hat" for entry in tables[TUNING])
    assert all(entry.case.keep and entry.along for entry in tables[PAIR])
    assert tables[TUNING][:5] == cases_of(TUNING, 5)


ZERO_IS_THE_PICTURE = {
    "SDEdit": (peers.sdedit, {"top": 0.8, "steps": 6}),
    "FlowEdit": (peers.flowedit, {"level": 0.66, "steps": 4}),
    "RF inversion by eta": (peers.rf_inversion, {"steps": 6, "by": "eta"}),
    "RF inversion by stop": (peers.rf_inversion, {"steps": 6, "by": "stop"}),
    "LEDITS++": (peers.semantic_guidance, {"level": 0.6, "steps": 5, "slope": 2.0, "quantile": 0.7}),
    "DDS": (peers.dds, {"steps": 4, "rate": 0.2}),
}


@torch.inference_mode()
@pytest.mark.parametrize("name", ZERO_IS_THE_PICTURE)
def test_strength_zero_gives_the_picture_and_another_does_not(bench, case, original, name):
    method, setting = ZERO_IS_THE_PICTURE[name]
    zero, moved = method(bench, case, **setting)([0.0, 2.0])
    assert difference(zero, original) <= 1
    assert difference(moved, original) > 20


@torch.inference_mode()
def test_from_the_inverted_latent_strength_zero_is_comfyuis_reconstruction_and_one_its_run(bench, case):
    inversion, sigmas = bench.encode(case, 0.5, INVERTED)
    start = first_noise(inversion.paths.base, bench.model.get_model_object("model_sampling"), sigmas[0])
    expected = []
    for text in (case.source, case.target):
        samples = sample_euler(bench.model, start, sigmas, bench.prompt(text), inversion.latent)
        expected.append((bench.vae.decode(samples)[0].clamp(0, 1) * 255).round().byte().numpy())
    assert difference(*expected) > 20
    for method in (peers.prompt_swap, peers.embedding_interpolation):
        found = method(bench, case, level=0.5, steps=10)([0.0, 1.0])
        assert [difference(*both) <= 1 for both in zip(found, expected, strict=True)] == [True, True]


@torch.inference_mode()
def test_guidance_by_sample_is_that_of_comfyuis_sampling_function(editor):
    def body(denoiser, x0):
        x = denoiser.noised(x0, torch.ones_like(x0), 0.6).repeat(2, 1, 1, 1)
        found = guided(denoiser, x, 0.6, TARGET, torch.tensor([1.0, 3.5]).view(-1, 1, 1, 1))
        return found, [denoiser(x[:1], 0.6, TARGET, guidance) for guidance in (1.0, 3.5)]

    found, expected = editor.run(body, {"negative": editor.prompts[EMPTY]})
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-4)
    assert (found[0] - found[1]).abs().max() > 1e-2


@torch.inference_mode()
@pytest.mark.parametrize(
    ("method", "setting"),
    [(peers.flowedit, {"level": 0.7, "steps": 3, "base": 2.0, "slope": 0.0, "source_guidance": 2.0})]
    + [(peers.dds, {"steps": 3, "rate": 0.3, "guidance": 2.0})],
)
def test_equal_prompts_give_the_picture(bench, case, original, method, setting):
    same = replace(case, target=case.source)
    assert all(difference(picture, original) <= 1 for picture in method(bench, same, **setting)([-2.0, 1.0, 3.0]))


@torch.inference_mode()
def test_flowedit_with_keep_moves_less_of_what_is_kept(bench, case, original):
    setting = {"level": 0.66, "steps": 8, "base": 0.0, "slope": 1.0}
    along = cases_of(PAIR, 1)[0].along
    leaks = []
    for keep in (False, True):
        pictures = peers.flowedit(bench, case, **setting, keep=keep)([0.5, 1.0, 2.0])
        found = figures(bench, case, np.array([0.5, 1.0, 2.0]), pictures, original)
        assert found["reached"]
        leaks.append(found["leaks"][along])
    assert leaks[1] < leaks[0] / 2


@torch.inference_mode()
def test_keeps_by_the_hessian(bench, case, editor, monkeypatch):
    """Without damping and Hessian the loop is that of the nodes; the operator is symmetric, and changes the picture."""
    setting = {"level": 0.7, "steps": 10}
    monkeypatch.setattr(hessian, "DAMPING", 0.0)
    mine = hessian.words_kept_by_the_hessian(bench, case, **setting, hessian=False)([0.0, 1.0])
    nodes = own.slider(bench, case, level=0.7, noise="fresh noise", keep=True)([0.0, 1.0])
    assert [difference(*both) <= 1 for both in zip(mine, nodes, strict=True)] == [True, True]
    by_hessian = hessian.words_kept_by_the_hessian(bench, case, level=0.7, steps=3, hessian=True)([1.0])
    plain = hessian.words_kept_by_the_hessian(bench, case, level=0.7, steps=3, hessian=False)([1.0])
    assert difference(by_hessian[0], plain[0]) > 5

    def products(denoiser, x0):
        x = denoiser.noised(x0, torch.ones_like(x0), 0.6)
        vectors = torch.cat([x0, torch.randn(x0.shape, generator=torch.Generator().manual_seed(1)).to(x0)])
        return vectors, hessian.symmetrised(denoiser, x, 0.6, vectors)

    vectors, images = editor.run(products)
    gram = vectors.flatten(1) @ images.flatten(1).T
    assert gram[0, 1] == pytest.approx(float(gram[1, 0]), rel=1e-3)
    assert abs(gram[0, 1]) > 1e-3 * vectors[0].norm() * vectors[1].norm()


@torch.inference_mode()
def test_the_forms_of_hsds(bench, case):
    """One level and draw is HSDS itself; the average of others is another direction; a random one is as long."""
    one = hessian.averaged(bench, case, level=0.7, levels=(0.7,), draws=1)([1.0])
    assert difference(one[0], own.slider(bench, case, level=0.7, noise="fresh noise", method="HSDS")([1.0])[0]) <= 1
    assert difference(one[0], hessian.averaged(bench, case, level=0.7, levels=(0.6, 0.7), draws=1)([1.0])[0]) > 3
    random = own.random_direction(bench, case, level=0.5, noise="backward euler")
    assert difference(random([1.0])[0], random([0.0])[0]) > 3


@torch.inference_mode()
def test_the_quick_slider_as_a_method(bench, case, original):
    edit = own.quick_slider(bench, case, level=0.7, noise="fresh noise")
    minus, zero, plus = edit([-1.0, 0.0, 1.0])
    assert difference(zero, original) == 0
    assert min(difference(minus, zero), difference(plus, zero)) > 20


def row(case: str, change: float, leakage: float, reached: bool | None = None, method: str = "a") -> dict:
    """A row of a slider that is linear from 0 to strength 2 in ranges of the hat's probability."""
    return {
        "case": case,
        "attribute": "hat",
        "method": method,
        "strengths": [-1.0, 0.0, 1.0, 2.0],
        "changes": [-change, 0.0, change / 2, change],
        "leakages": [0.0, 0.0, leakage / 2, leakage],
        "change": change,
        "share_of_range": change,
        "reached": change >= wanted_change("hat") if reached is None else reached,
        "leakage": leakage,
    }


class SmallProbe:
    """In place of the bench: a picture is its smile and what has leaked into the hat."""

    def measure(self, case, pictures, zero):
        values = np.array(pictures)
        leak = np.abs(values[:, 1] - values[zero, 1])
        return values[:, 0], {name: leak * (name == "hat") for name in ATTRIBUTES if name != case.attribute}


def test_figures_of_a_slider_on_hand_made_pictures(case):
    strengths = np.array([-2.0, -1, 0, 1, 1.5, 2])
    pictures = np.stack([np.array([-0.3, -0.1, 0.2, 0.4, 0.3, 1.1]), np.array([0, 0, 0.1, 0.2, 0.3, 1.2])], axis=1)
    found = figures(SmallProbe(), case, strengths, pictures, np.array([0.0, 0.0]))
    assert found["spearman"] == pytest.approx(1.0)  # the dip is at half a strength
    assert found["change"] == pytest.approx(1.1)
    assert found["share_of_range"] == pytest.approx(1.1 / 1.8)
    # 0.6, a third of the smile's range, lies between strengths 1.5 and 2
    assert found["leaks"]["hat"] == pytest.approx(0.3 + 0.9 * 0.3 / 0.8)
    assert found["leakage"] == pytest.approx(found["leaks"]["hat"] / 10)
    forward = figures(SmallProbe(), case, strengths[2:], pictures[2:], np.array([0.0, 0.0]))
    assert forward["spearman"] == pytest.approx(0.8)
    assert not figures(SmallProbe(), case, strengths[2:5], pictures[2:5], np.array([0.0, 0.0]))["reached"]


def test_leakage_is_interpolated_at_the_same_change():
    assert at_change(np.array([0, 0.2, 0.6]), np.array([0, 0.1, 0.5]), 0.4) == pytest.approx(0.3)
    assert at_change(np.array([0.5, 0.6]), np.array([0.2, 0.3]), 0.4) == pytest.approx(0.2)
    far, short = row("x", 1.0, 0.9), row("x", 0.2, 0.1)
    assert matched(far, far) == pytest.approx((0.3, 0.3))  # a third of the range
    assert matched(far, short) == pytest.approx((0.18, 0.1))  # as far as the shorter one gets
    assert matched(far, row("x", 0.0, 0.1)) is None
    assert largest_step(far) == pytest.approx(0.5)
    assert score([far, short]) == pytest.approx((0.9 + UNREACHED) / 2)


def test_intervals_are_paired_and_fixed():
    noise = np.random.default_rng(0).normal(size=100)
    pairs = np.stack([noise + 10.1, noise + 10], axis=1)
    low, high = paired_interval(pairs, difference_of_means)
    assert (low, high) == pytest.approx((0.1, 0.1))
    assert paired_interval(pairs, ratio_of_means) == paired_interval(pairs, ratio_of_means)
    one = np.stack([np.repeat([0.0, 1.0], 50), np.full(100, 1.0)], axis=1)
    low, high = paired_interval(one, ratio_of_means)
    assert (low, high) == pytest.approx((0.4, 0.6), abs=0.02)  # 1.96 sqrt(0.25 / 100) each way


def test_comparison_goes_by_case():
    mine = [row("x", 1.0, 0.3), row("y", 0.2, 0.1), row("only mine", 1.0, 9.0)]
    others = [row("y", 1.0, 1.0), row("x", 1.0, 0.6)]
    found = compared(mine, others)
    assert found["cases compared"] == "2, 1"  # y does not reach a third
    # x is at a half of its range at strength 1, where the other has leaked 0.3
    assert found["the same without interpolation"].startswith(f"{0.15 / 0.3:.3f} ")
    assert compared(mine[2:], others)["leakage / default's"] == "-"
    assert found["reached, less default's"].startswith("-0.500 ")
    assert found["leakage / default's"].startswith(f"{(0.1 + 0.1) / (0.2 + 0.2):.3f} ")
    rivals = [
        row("x", 1.0, 0.3, method="DDS optimisation"),
        row("x", 1.0, 0.2, method="SDEdit"),
        row("x", 0.1, 0.0, method="FlowEdit"),
    ]
    assert strongest([*rivals, row("x", 1.0, 0.1, method=DEFAULT)], 2) == ["SDEdit", "DDS optimisation"]


@torch.inference_mode()
def test_a_row_counts_evaluations_and_a_second_start_measures_nothing_twice(bench, tmp_path, monkeypatch):
    path, strengths = tmp_path / "rows.jsonl", np.array([0, 1.0, 2.0])
    entry, calls = cases_of(TUNING, 1)[0], []
    flowedit = replace(METHODS["FlowEdit"], setting={"level": 0.6, "steps": 3, "base": 0.5, "slope": 1.0})
    found = RowFile(path).get(bench, entry, "FlowEdit", flowedit, strengths)
    # both prompts at the picture's points once, then target and empty prompt in each of 3 steps
    assert (found["evaluations_once"], found["evaluations_per_position"]) == (6, 6)
    # the first of ten steps is on the reference path, where both prompts are asked for once for all positions
    measured = RowFile(path).get(bench, entry, "words", METHODS["words"], strengths)
    assert (measured["evaluations_once"], measured["evaluations_per_position"]) == (2 + 9, 2 * 9)
    assert abs(measured["changes"][0]) < 1e-5  # the latent returns to rounding, and the probe reads it off pixels
    with path.open("a") as file:
        file.write('{"table": "tuning", "ca')  # killed while writing
    monkeypatch.setattr("benchmarks.eim.rows.measured", lambda *_: calls.append(1) or dict(found, method="new"))
    again = RowFile(path)
    assert again.get(bench, entry, "FlowEdit", flowedit, strengths) == found
    assert not calls
    again.get(bench, entry, "FlowEdit", replace(flowedit, setting={**flowedit.setting, "steps": 2}), strengths)
    again.get(bench, entry, "FlowEdit", flowedit, FORWARD)
    assert len(calls) == 2
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 4


@torch.inference_mode()
def test_the_sheet_shows_methods_at_about_the_same_change(bench):
    assert strength_at(row("x", 1.0, 0.3), 0.25) == 1.0
    assert strength_at(row("x", 0.2, 0.1), 0.5) == 2.0  # as far as it gets
    made = sheet(bench, RowFile(), {"prompt swap": "swap"}, ["smile"])
    picture, moved = (np.asarray(made.crop((128 * k, 14, 128 * (k + 1), 142))) for k in (0, 1))
    assert made.size == (256, 142)
    assert difference(picture, moved) > 20


FIELDS = {"case", "attribute", "method", "keep", "mask", "spearman", "change", "share_of_range", "reached"}
FIELDS |= {"leakage", "leak_along", "evaluations_once", "evaluations_per_position", "seconds"}


def test_the_quick_run_fills_every_table_(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    main(["--quick", "--json", str(path)])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(set(r) >= FIELDS for r in rows)
    assert {r["method"] for r in rows if r["table"] == TUNING} == {DEFAULT} | {
        n for n, m in METHODS.items() if m.published
    }
    assert [r["method"] for r in rows if r["table"] == HELD_OUT][0] == DEFAULT
    assert {r["method"] for r in rows if r["table"] == PAIR} == set(PAIR_METHODS[:2])
    assert all((r["leak_along"] is None) == (r["table"] != PAIR) for r in rows)
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in METHODS if METHODS[name].published)


def test_tuning_gives_the_best_setting_of_all_cases(monkeypatch):
    """Four settings by their leakage: the last is best on the first cases and worse than the second on all."""
    grid = tuple({"leaks": leaks} for leaks in (0.4, 0.2, 0.3, 0.1))
    monkeypatch.setitem(METHODS, "made up", Method(lambda *_: None, grid[1], grid))
    asked = []

    class Kept:
        def get(self, bench, entry, name, method, strengths):
            asked.append(entry)
            late = entry in cases_of(TUNING)[11:]
            leaks = method.setting["leaks"] + (0.5 if late and method.setting == grid[3] else 0.0)
            return {
                "reached": True,
                "leakage": leaks,
                "evaluations_once": 1,
                "evaluations_per_position": 1,
                "seconds": 1,
            }

    lines = tune(None, Kept(), ["made up"])
    assert [line["best"] for line in lines] == ["", "x", "", ""] == [line["in use"] for line in lines]
    assert [line["cases"] for line in lines] == [11, 24, 11, 24]
    assert len(asked) == 4 * 11 + 2 * 24  # those measured already come from the file


def test_every_chosen_setting_is_in_its_grid():
    for name, method in METHODS.items():
        assert not method.grid or method.setting in method.grid, name
    assert any(method.grid for method in METHODS.values())
    assert METHODS[DEFAULT].signed and set(SIGNED) >= set(FORWARD)
    assert SOURCE != TARGET
