"""The soak benchmark: its quick run finds no fault of the pack, and what it judges outcomes by can find one."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.soak import damaged_files, file_damage, hostile_prompts, outcomes, run, slider_runs
from latent_directions.core.direction import Direction, Distilled, Prompt, Words
from latent_directions.core.direction_files import FIRST_FORMAT, FORMAT, save

PACK = '  File "/x/custom_nodes/latent-directions/nodes/encode.py", line 7, in execute\n    steps[0]\n'
COMFY = '  File "/x/ComfyUI/comfy/samplers.py", line 9, in sample\n    return 1\n'
LIBRARY = '  File "/x/lib/python3.11/site-packages/torch/nn/module.py", line 3, in forward\n    raise\n'
OURS = "/x/custom_nodes/latent-directions.nodes.errors.InputError"


def error(kind: str, node: str, *frames: str, message: str = "It went wrong.") -> dict:
    return {"exception_type": kind, "node_type": node, "traceback": list(frames), "exception_message": f"{message}\n"}


ERRORS = {
    "a sentence": (error(OURS, "LatentDirections_InvertImage", COMFY, PACK), outcomes.SENTENCE),
    "a sentence through the sampler": (error(OURS, "KSampler", COMFY, PACK), outcomes.SENTENCE),
    "no sentence": (error("TypeError", "LatentDirections_InvertImage", COMFY, PACK), outcomes.NO_SENTENCE),
    "a library below the pack": (error("RuntimeError", "KSampler", PACK, LIBRARY), outcomes.NO_SENTENCE),
    "ComfyUI below a node of the pack": (
        error("RuntimeError", "LatentDirections_InvertImage", PACK, COMFY, LIBRARY),
        outcomes.NO_SENTENCE,
    ),
    "ComfyUI below a wrapper": (error("RuntimeError", "KSampler", COMFY, PACK, COMFY), outcomes.ELSEWHERE),
    "a stock node": (error("ValueError", "VAEDecode", COMFY), outcomes.ELSEWHERE),
    "the pack was not reached": (error("KeyError", "LatentDirections_InvertImage", COMFY), outcomes.ELSEWHERE),
    "an error of another pack of that name": (
        error("other.errors.InputError", "LatentDirections_InvertImage", PACK),
        outcomes.NO_SENTENCE,
    ),
    "an empty sentence": (error(OURS, "KSampler", PACK, message=" "), outcomes.NO_SENTENCE),
    "a long sentence": (error(OURS, "KSampler", PACK, message="a" * 2001), outcomes.LONG_SENTENCE),
    "a sentence with half a character": (error(OURS, "KSampler", PACK, message="'\ud800'"), outcomes.UNPRINTABLE),
    "a sentence with a control character": (error(OURS, "KSampler", PACK, message="a\x1b[0m"), outcomes.UNPRINTABLE),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_told_apart(case):
    given, kind = ERRORS[case]
    found = outcomes.of_error(given)
    assert found.kind == kind
    assert found.fault == (kind not in (outcomes.SENTENCE, outcomes.ELSEWHERE))


def test_an_exception_of_the_pack_at_validation_is_a_fault():
    reason = {"details": "x", "extra_info": {"exception_type": "TypeError", "traceback": [PACK]}}
    answer = {"node_errors": {"1": {"class_type": "LatentDirections_LoadDirection", "errors": [reason]}}}
    assert outcomes.of_refusal(400, answer).kind == outcomes.NO_SENTENCE
    reason["extra_info"] = {}
    assert outcomes.of_refusal(400, answer).kind == outcomes.REFUSED


FINE, BLACK = np.full((8, 8, 3), 7, np.uint8), np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("results", "kind"),
    [
        (([{"max_abs_diff": 0.0}], [torch.zeros(1, 4)], [FINE]), outcomes.OK),
        (([{"max_abs_diff": None}], [], []), outcomes.NOT_FINITE),
        (([{"max_abs_diff": math.inf}], [], []), outcomes.NOT_FINITE),
        (([], [torch.tensor([1.0, math.nan])], []), outcomes.NOT_FINITE),
        (([], [torch.tensor([1.0, math.inf])], []), outcomes.NOT_FINITE),
        (([], [], [FINE, BLACK]), outcomes.NOT_FINITE),
    ],
)
def test_results_must_be_finite(results, kind):
    assert outcomes.of_results(*results).kind == kind


def test_every_kind_of_outcome_is_counted():
    kinds = {value for name, value in vars(outcomes).items() if name.isupper() and isinstance(value, str)}
    kinds -= {outcomes.PACK_FRAMES, outcomes.PACK_FOLDER, outcomes.PREFIX}
    assert kinds == {*outcomes.GOOD, *outcomes.FAULTS, outcomes.SKIPPED}


def test_faults_that_differ_in_numbers_alone_are_one():
    rows = [{"outcome": outcomes.NO_SENTENCE, "detail": f"KeyError: {n}", "where": "x"} for n in (1, 2)]
    (found,) = outcomes.distinct([*rows, {"outcome": outcomes.OK, "detail": ""}])
    assert found["times"] == 2


def test_a_direction_that_cannot_be_used_is_a_fault():
    latent = torch.ones(16, 4, 4)
    usable = Direction("smile", "LOCO", "SD3", 1.0, latent=latent, step=1.0)
    assert damaged_files.unusable(usable) == ""
    words = Words(Prompt(torch.ones(1, 7, 24)), share=float("inf"))
    for changes in (
        {"step": 3e38},
        {"latent": latent * float("nan")},
        {"latent": None},
        {"sigma": float("nan")},
        {"words": words},
        {"words": Words(words.target, Prompt(torch.full((1, 7, 24), float("nan"))))},
        {"mask": 2 * torch.ones(1, 4, 4)},
        {"distilled": Distilled(latent * float("inf"), latent, "0" * 64, 0.0)},
        {"distilled": Distilled(latent, latent * float("inf"), "0" * 64, 0.0)},
    ):
        assert damaged_files.unusable(replace(usable, **changes))


def test_whole_files_of_both_formats_can_be_used(tmp_path):
    path, formats = tmp_path / "a.safetensors", []
    for whole in file_damage.originals():
        path.write_bytes(whole)
        assert damaged_files.outcome_of(path).kind == outcomes.OK
        formats.append(file_damage.split(whole)[0]["__metadata__"]["format"])
    assert formats == 3 * [FORMAT] + 3 * [FIRST_FORMAT]


def test_files_are_judged_by_what_loading_them_gives(tmp_path):
    path = tmp_path / "a.safetensors"
    save(Direction("smile", "LOCO", "SD3", 1.0, latent=torch.ones(16, 4, 4), step=1.0), path)
    assert damaged_files.outcome_of(path).kind == outcomes.OK
    path.write_bytes(b"no file of tensors")
    assert damaged_files.outcome_of(path).kind == outcomes.SENTENCE


def test_every_recipe_of_damage_makes_a_file(tmp_path):
    path = tmp_path / "a.safetensors"
    drawn = hostile_prompts.draw(file_damage.recipes(), 300, 1)
    assert len({name for name, _ in drawn}) > 15
    whole = file_damage.originals()
    for number, recipe in enumerate(drawn):
        file_damage.write(path, whole[number % len(whole)], recipe)
        assert path.exists() or path.is_symlink()


def test_prompts_repeat_and_reach_every_input(comfy):
    info = comfy.client.object_info()
    inputs = {f"{node}.{name}" for node, name, *_ in hostile_prompts.inputs_of(info)}
    packs = {name for name in info if name.startswith(outcomes.PREFIX) and hostile_prompts.declared_inputs(info[name])}
    assert packs == {outcomes.PREFIX + name for name in hostile_prompts.NODES.values()}
    cases = hostile_prompts.cases(info, 2 * len(inputs))
    assert {case.where for case in cases} == inputs
    assert repr(cases) == repr(hostile_prompts.cases(info, 2 * len(inputs)))


def test_quick_run_finds_no_fault(comfy):
    rows = run.run(run.QUICK, server=comfy)
    assert [(r["part"], r["outcome"], r.get("where"), r["detail"]) for r in run.faults(rows)] == []
    done = {part: sum(row["part"] == part for row in rows) for part in run.PARTS}
    assert all(done[part] > 5 for part in run.PARTS)
    ran = [row for row in rows if row["part"] == "sliders" and row["outcome"] == outcomes.OK]
    assert {row["patch"] for row in ran} == set(slider_runs.PATCHES)
    assert {row["guider"] for row in ran} == set(slider_runs.GUIDERS)
