"""Every input of every node refuses what it cannot be, by its name, and takes what it can."""

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from comfy_api.latest import io
from families import Family, sd3
from node_runs import find, invert, loaded, sample

from latent_directions.core.errors import DirectionFileError
from latent_directions.demo import architecture
from latent_directions.nodes import LatentDirectionsExtension, library
from latent_directions.nodes.demo_model import LoadDemoModel
from latent_directions.nodes.encode import InvertImage
from latent_directions.nodes.errors import InputError
from latent_directions.nodes.inputs import LONGEST_TEXT, check_inputs, in_short
from latent_directions.nodes.inspect import EditReport
from latent_directions.nodes.manipulate import DirectionSlider

library.register_folder()
NODES = {node.define_schema().node_id: node for node in asyncio.run(LatentDirectionsExtension().get_node_list())}
INPUTS = [
    pytest.param(declared, id=f"{name.removeprefix('LatentDirections_')} {declared.id}")
    for name, node in NODES.items()
    for declared in node.define_schema().inputs
    if name != "LatentDirections_LoadDirection"  # whose file need not be listed yet
]
WRONG = {
    io.Int.Input: [-1, -(2**70), 2**64, 10**400, 1.5, math.nan, math.inf, True, "3", [1], {}],
    io.Float.Input: [-1e9, 1e9, math.nan, math.inf, -math.inf, 10**400, True, "0.5", [1.0], {}],
    io.String.Input: [3, 1.5, ["a"], {}, "\ud800", "smile\udfff", "x" * (LONGEST_TEXT + 1), "x" * 5_000_000],
    io.Combo.Input: [3, "", "none of them", "\ud800", "x" * 1_000_000, None, ["a"]],
    io.Mask.Input: [3, torch.tensor(1.0), torch.zeros(5), torch.zeros(0, 8, 8), torch.full((1, 8, 8), math.nan)],
    io.Image.Input: [
        3,
        torch.zeros(8, 8, 3),
        torch.zeros(0, 8, 8, 3),
        torch.zeros(1, 8, 8, 1),
        torch.full((1, 8, 8, 3), math.nan),
    ],
    io.Conditioning.Input: [[], [[None, {}]], 3, [1], [None], [["x", {}]], [[torch.full((1, 7, 24), math.nan), {}]]],
    io.Model.Input: [3, "model", []],
    io.Clip.Input: [3, "clip", [], {}],
    io.ClipVision.Input: [3, "clip vision", [], {}],
    io.Vae.Input: [3, "vae", [], {}],
    io.Noise.Input: [3, "noise", [], {}],
    io.Sigmas.Input: [3, [1.0, 0.0], *map(torch.tensor, ([1.0], [[1.0, 0.0]], [0.0, 0.0], [1.0, math.nan, 0.0]))],
}


def check_input(declared, value) -> None:
    """The check of one input, on a node that has no other."""

    class Node:
        @classmethod
        def define_schema(cls) -> io.Schema:
            return io.Schema("Node", inputs=[declared])

    check_inputs(Node, {declared.id: value})


def kind_of(declared) -> type | None:
    return next((kind for kind in WRONG if isinstance(declared, kind)), None)


@pytest.mark.parametrize("declared", INPUTS)
def test_every_input_refuses_by_its_name_what_it_cannot_be(declared):
    for value in WRONG.get(kind_of(declared), [3, "no object", []] if "LATENT_" in declared.get_io_type() else []):
        if value is None and declared.optional:
            continue
        with pytest.raises(InputError) as caught:
            check_input(declared, value)
        said = str(caught.value)
        assert said.startswith(f"'{declared.id}' ")
        assert said.isprintable()
        assert len(said) < 1100


@pytest.mark.parametrize("declared", INPUTS)
def test_bounds_and_defaults_pass(declared):
    for name in ("min", "max", "default"):
        value = getattr(declared, name, None)
        if value is not None:
            check_input(declared, value)


def test_numbers_of_other_kinds():
    """A whole number may stand for a float, and numpy's numbers for Python's, as other nodes give them."""
    index, strength = (i for i in DirectionSlider.define_schema().inputs if i.id in ("index", "strength"))
    for value in (2, np.int64(2), np.float32(0.5), np.float64(0.5)):
        check_input(strength, value)
    check_input(index, np.int64(2))


def test_values_are_quoted_in_short():
    assert in_short(10**400) == "a whole number of about 401 digits"
    assert len(in_short("x" * 10**6)) < 80
    assert in_short("\ud800") == "\\ud800"


@pytest.fixture(scope="module")
def test_model():
    return loaded(Family("sd3", sd3))


@pytest.fixture(scope="module")
def encoded(test_model):
    return invert(test_model)


def required_inputs(node) -> list[str]:
    return [declared.id for declared in node.define_schema().inputs if not declared.optional]


@pytest.mark.parametrize("node", [node for node in NODES.values() if required_inputs(node)], ids=lambda n: n.__name__)
def test_every_node_checks(node):
    """`execute` itself refuses the first input that is missing."""
    required = required_inputs(node)
    with torch.inference_mode(), pytest.raises(InputError, match=required[0]):
        node.execute(**dict.fromkeys(required))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", -1), ("steps", 0), ("seeds", 0), ("seed", 2**64), ("guidance", math.nan), ("level", math.nan),
        ("sigma", math.inf), ("method", "\ud800"), ("latent", {"samples": torch.zeros(0, 16, 8, 8)}),
    ],
)  # fmt: skip
def test_invert_image(test_model, name, value):
    options = {"latent": value} if name == "latent" else {name: value}
    with pytest.raises(InputError, match=f"'{name}'"):
        invert(test_model, **options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", 0), ("count", -1), ("hold_outside", -1), ("guidance", math.nan), ("image_share", math.nan),
        ("text_share", math.inf), ("seed", 2**64), ("target", "\ud800"), ("mask", torch.tensor(1.0)),
    ],
)  # fmt: skip
def test_find_directions(test_model, encoded, name, value):
    with pytest.raises(InputError, match=f"'{name}'"):
        find(test_model, encoded.inversion, "HSDS", **{name: value})


@pytest.mark.parametrize("method", ["HSDS", "LOCO"])
def test_the_largest_seed_of_a_search(test_model, encoded, method):
    directions, _ = find(test_model, encoded.inversion, method, seed=2**64 - 1, count=1)
    assert len(directions) == 1


@pytest.mark.parametrize(("name", "value"), [("strength", math.nan), ("strength", 1e38), ("weight", math.inf)])
def test_slider(test_model, encoded, name, value):
    (direction,), _ = find(test_model, encoded.inversion, "text")
    with pytest.raises(InputError, match=f"'{name}'"):
        DirectionSlider.execute(encoded.inversion, [direction], **{name: value})


@pytest.mark.parametrize("cfg", [math.nan, math.inf, 1e38])
def test_a_guidance_that_is_no_number_ends_in_a_sentence(test_model, encoded, cfg):
    """The sampler is another's node, whose inputs are not ours to check: its result is."""
    (direction,), _ = find(test_model, encoded.inversion, "text")
    model, positive, noise, _ = DirectionSlider.execute(encoded.inversion, [direction]).args
    with pytest.raises(InputError, match="Sampling ended in values that are not numbers"):
        sample(test_model, encoded, model=model, positive=positive, noise=noise, cfg=cfg)


@pytest.mark.parametrize("method", ["seeded noise", "fresh noise"])
def test_the_largest_seed_with_more_seeds(test_model, method):
    """After 2**64 - 1 comes 0."""
    largest, zero = (invert(test_model, method=method, seed=seed, seeds=2) for seed in (2**64 - 1, 0))
    assert largest.inversion.paths.seeds[-1] == 0
    assert torch.isfinite(sample(test_model, largest)).all()
    assert not torch.equal(largest.inversion.paths.base, zero.inversion.paths.base)


class TestSigmas:
    @pytest.mark.parametrize(
        "sigmas", [[0.0, 0.0], [0.0, 0.5, 0.0], [0.5, 0.7, 0.0], [math.nan, 0.0], [0.5, -0.1], [math.inf, 0.0]]
    )
    def test_that_do_not_decrease_are_refused(self, test_model, encoded, sigmas):
        """Set First Sigma to 0, for example; the sampler is not to blame."""
        with pytest.raises(InputError, match="'sigmas' of the sampler must be noise levels that decrease"):
            sample(test_model, encoded, sigmas=torch.tensor(sigmas))

    @pytest.mark.parametrize("sampler", ["dpmpp_2m", "lms", "euler", "deis", "res_multistep"])
    def test_steps_of_no_length_are_left_out(self, test_model, encoded, sampler):
        sigmas = encoded.sigmas.repeat_interleave(2)[:-1]
        repeated = sample(test_model, encoded, sampler=sampler, sigmas=sigmas)
        assert torch.equal(repeated, sample(test_model, encoded, sampler=sampler))

    @pytest.mark.parametrize("steps", [46, 60, 200])
    @pytest.mark.parametrize("sampler", ["dpmpp_2m", "lms"])
    def test_a_low_level_with_many_steps(self, test_model, steps, sampler):
        """The scheduler 'simple' has no more than some fifty levels there."""
        encoded = invert(test_model, level=0.05, steps=steps, scheduler="simple", method="fresh noise")
        assert (encoded.sigmas.diff() < 0).all()
        returned = sample(test_model, encoded, sampler=sampler)
        assert torch.equal(returned, encoded.latent["samples"].to(returned))

    def test_a_thousand_steps_start_soon(self, test_model):
        """No more than some dozens of calls of the scheduler."""
        import comfy.samplers

        calls, handler = [], comfy.samplers.SCHEDULER_HANDLERS["beta"]
        counting = handler._replace(handler=lambda *args: calls.append(args) or handler.handler(*args))
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(comfy.samplers.SCHEDULER_HANDLERS, "beta", counting)
            encoded = invert(test_model, steps=1000, scheduler="beta", method="fresh noise")
        assert len(encoded.sigmas) > 500
        assert len(calls) < 30


@pytest.mark.parametrize(
    "latent", [{}, {"samples": None}, {"samples": torch.tensor(1.0)}, {"samples": torch.zeros(0, 16, 8, 8)}, 3]
)
def test_a_latent_without_a_picture(test_model, encoded, latent):
    with pytest.raises(InputError, match="'latent' holds no picture"):
        invert(test_model, latent)
    with torch.inference_mode(), pytest.raises(InputError, match="'latent' holds no picture"):
        EditReport.execute(encoded.inversion, latent)


def test_inputs_are_checked_before_anything_is_computed(test_model):
    with torch.inference_mode(), pytest.raises(InputError, match="'model' is no diffusion model"):
        InvertImage.execute("model", test_model.positive, {"samples": torch.zeros(1, 16, 8, 8)})


@pytest.mark.parametrize("file", [None, "", {}, []])
def test_load_direction_without_a_file(file):
    with torch.inference_mode(), pytest.raises(InputError, match="'file' is empty, so there is no direction to load"):
        library.LoadDirection.execute(file)


@pytest.mark.parametrize("file", [5, 0, ["a"], {"a": 1}])
def test_a_file_must_be_a_name(file):
    with torch.inference_mode(), pytest.raises(InputError, match="'file' is .*, which is no file name"):
        library.LoadDirection.execute(file)


@pytest.mark.parametrize("file", ["a\0b.safetensors", "../x.safetensors", "/etc/passwd", "\ud800", "x" * 100_000])
def test_load_direction_finds_no_other_files(file):
    with torch.inference_mode(), pytest.raises(DirectionFileError, match="There is no direction file") as caught:
        library.LoadDirection.execute(file)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


class TestDemoWeights:
    @pytest.mark.parametrize("damage", ["a pointer of Git LFS", "cut off", "missing", "empty"])
    def test_damaged(self, tmp_path, damage):
        for path in filter(Path.is_file, architecture.WEIGHTS.iterdir()):
            (tmp_path / path.name).write_bytes(path.read_bytes())
        weights = tmp_path / "model.safetensors"
        data = {"cut off": weights.read_bytes()[:5000], "empty": b""}.get(damage, POINTER)
        weights.unlink() if damage == "missing" else weights.write_bytes(data)
        with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
            patch.setattr(architecture, "WEIGHTS", tmp_path)
            with pytest.raises(InputError, match="The demo model's weights cannot be read .* Install the pack again"):
                LoadDemoModel.execute()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 17700000\n"


def test_numbers_of_numpy_reach_no_report(test_model):
    """They are no JSON, and torch takes no seeds of theirs."""
    numbers = {"level": np.float32(0.5), "sigma": np.float32(0.0), "seed": np.int64(3), "steps": np.int64(3)}
    encoded = invert(test_model, method="fresh noise", **numbers)
    options = {"image_share": np.float32(0.5), "guidance": np.float32(1.0), "seed": np.int64(3), "count": np.int64(1)}
    for method in ("HSDS", "LOCO"):
        _, report = find(test_model, encoded.inversion, method, **options)
        assert '"directions": 1' in report
