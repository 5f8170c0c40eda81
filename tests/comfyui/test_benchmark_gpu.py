"""The GPU benchmark's code on the CPU: its rows, its memory settings, and what it says where it cannot measure."""

import math
import sys

import comfy.ops
import pytest
import torch
from families import sd3

from benchmarks.gpu import ALL, DYNAMIC, QUARTER, Subject, compare, in_own_process, main, under
from latent_directions.nodes.sampling import sample_euler


def small(setting: str) -> Subject:
    """A small SD3 under a setting."""
    model = sd3()
    latent = {"samples": torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(5))}
    return Subject(setting, under(setting, model.model.model), model.positive, latent)


def cast_names(subject: Subject, monkeypatch) -> set[str]:
    """Names of the layers whose weights one sampling step casts."""
    names, layers, cast = {m: n for n, m in subject.model.model.named_modules()}, set(), comfy.ops.cast_bias_weight

    def noting(layer, *args, **kwargs):
        layers.add(names[layer])
        return cast(layer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(comfy.ops, "cast_bias_weight", noting)
        noise = torch.randn(subject.latent["samples"].shape, generator=torch.Generator().manual_seed(6))
        sample_euler(subject.model, noise, torch.tensor([1.0, 0.0]), subject.positive, subject.latent)
    return layers


@torch.inference_mode()
@pytest.mark.parametrize("setting", [ALL, QUARTER])
def test_searches_are_compared_with_sampling_under_the_same_setting(setting, monkeypatch):
    subject = small(setting)
    rows = compare(subject, 2, 1)
    assert [row["what"] for row in rows] == [
        "2 sampling steps",
        "1 directions, automatic",
        "1 directions, forward only",
        "1 directions, central differences",
    ]
    assert all(math.isfinite(row["time ratio"]) and row["time ratio"] > 0 for row in rows)
    assert rows[0]["time ratio"] == 1
    assert len({tuple(row) for row in rows}) == 1
    total = subject.model.model_size() / 1e6
    if setting == ALL:
        assert all(row["weights in VRAM"] == total for row in rows)
        assert not cast_names(subject, monkeypatch)
    else:
        assert all(0 < row["weights in VRAM"] <= total / 4 for row in rows)
        # what is cast after the benchmark's runs, by its own share of the weights
        cast = cast_names(subject, monkeypatch)
        modules = dict(subject.model.model.named_modules())
        assert sum(w.nbytes for name in cast for w in modules[name].parameters()) / 1e6 > total / 2


@torch.inference_mode()
def test_a_setting_that_is_not_in_force_gives_no_figures():
    subject = small(ALL)
    with pytest.raises(RuntimeError, match=r"'low VRAM' was not in force: ModelPatcher had 100% of the weights"):
        compare(Subject(QUARTER, subject.model, subject.positive, subject.latent), 2, 1)


def test_a_process_of_its_own_starts_as_comfyui_does_and_says_what_is_not_there():
    (row,) = in_own_process("SDXL", DYNAMIC, 2, 1, ["--cpu"])
    assert row["what"] == "not available: ComfyUI has no dynamic VRAM on this machine"
    assert (row["model"], row["setting"], row["seconds"]) == ("SDXL", DYNAMIC, None)
    (row,) = in_own_process("SDXL", DYNAMIC, 2, 1, ["--no-such-switch"])
    assert row["what"].startswith("failed with status 2: ")
    assert "--no-such-switch" in row["what"]


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    main()
    assert capsys.readouterr().out == "There is no CUDA GPU here, so nothing was measured.\n"
