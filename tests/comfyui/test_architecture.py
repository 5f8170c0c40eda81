"""ARCHITECTURE.md against the running code: the files that a latent and a Jacobian product pass, and the imports."""

import re
import sys
from pathlib import Path

import pytest
import torch
from families import Family, sd3
from node_runs import HashingClip, find, invert, loaded, sample

from latent_directions.nodes.manipulate import DirectionSlider
from latent_directions.nodes.sockets import Inversion
from scripts.environment import ROOT


def listed(heading: str) -> list[str]:
    """The files of a numbered list under a heading of ARCHITECTURE.md, in its order."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\d+\. `([\w/]+\.py)`", section, re.MULTILINE)


def own_file(frame) -> str | None:
    """The file of a frame, relative to the repository, where it is in core/ or nodes/."""
    path = Path(frame.f_code.co_filename)
    if not path.is_relative_to(ROOT) or path.relative_to(ROOT).parts[0] not in ("core", "nodes"):
        return None
    return path.relative_to(ROOT).as_posix()


@pytest.fixture
def model():
    test_model = loaded(Family("sd3", sd3))
    test_model.positive = HashingClip(test_model).encode_from_tokens_scheduled(["sad", "person"])
    return test_model


def test_the_files_that_a_latent_passes(model):
    """Every file with a function that is given it, to the end of a slider's run with something kept."""
    passed = set()

    def given_the_latent(value) -> bool:
        if isinstance(value, dict):
            return "samples" in value
        return isinstance(value, Inversion) or (isinstance(value, torch.Tensor) and value.shape == model.latent_shape)

    def profile(frame, event, _):
        if event == "call" and (file := own_file(frame)):
            code = frame.f_code
            names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            if any(given_the_latent(frame.f_locals.get(name)) for name in names):
                passed.add(file)

    directions, _ = find(model, invert(model).inversion, "DDS", keep="hat | cap")
    sys.setprofile(profile)
    try:
        encoded = invert(model, steps=2)
        with torch.inference_mode():
            moved = DirectionSlider.execute(encoded.inversion, directions, 0, 1.0).args
        sample(model, encoded, model=moved[0], positive=moved[1], noise=moved[2])
    finally:
        sys.setprofile(None)
    route = listed("The route of a latent")
    # the inversion, which carries the latent between the nodes, is a dataclass: nothing of that file is called with it
    assert passed | {"nodes/sockets.py"} == set(route)
    assert len(route) <= 9


def test_the_files_that_a_jacobian_product_passes(model):
    """What is on the call stack when the network runs, and what makes the network differentiable."""
    encoded, routes = invert(model), set()

    def forward(_module, _inputs):
        files, frame = [], sys._getframe()
        while frame is not None:
            files.append(own_file(frame))
            frame = frame.f_back
        if "core/svd.py" in files:
            routes.add(tuple(dict.fromkeys(file for file in reversed(files) if file)))

    mask = torch.zeros(1, 64, 64)
    mask[:, 20:40, 20:40] = 1
    hook = model.model.model.diffusion_model.register_forward_pre_hook(forward)
    try:
        find(model, encoded.inversion, "LOCO", mask=mask)
        find(model, encoded.inversion, "T-LOCO", mask=mask)
        find(model, encoded.inversion, "HSDS")
    finally:
        hook.remove()
    route = listed("The route of a Jacobian product")
    with_derivatives = [{*files, "nodes/derivatives.py"} for files in routes]
    assert set(route) in with_derivatives
    assert max(map(len, with_derivatives)) == len(route) <= 7


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [("core", ("comfy", "folder_paths", "server", "..")), ("nodes", ("scripts", "benchmarks", "tests"))],
)
def test_imports_go_one_way(folder, forbidden):
    for path in (ROOT / folder).glob("*.py"):
        for name in re.findall(r"^\s*(?:from|import) ([\w.]+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert not name.startswith(forbidden), (path.name, name)
