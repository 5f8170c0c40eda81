"""The nodes in a running ComfyUI, over its API: the three verbs, the cache, saved directions, refusals, cancelling."""

import argparse
import json
import os
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch

from latent_directions.core.direction import Direction
from latent_directions.core.direction_files import FORMAT
from latent_directions.core.direction_files import save as save_direction
from scripts import model_templates, strips, workflow
from scripts.comfy_client import Interrupted, PromptError
from scripts.environment import ROOT

FEW_STEPS = 6


@pytest.fixture(scope="module")
def info(comfy) -> dict:
    return comfy.client.object_info()


@pytest.fixture(scope="module")
def prompt(info) -> dict:
    """The first template with few steps and with nodes that hand out reports and latents."""
    graph = json.loads(strips.TEMPLATE.read_text(encoding="utf-8"))
    made = strips.with_outputs(workflow.to_prompt(graph, info), info)
    return workflow.with_inputs(made, {workflow.find(made, strips.INVERT): {"steps": FEW_STEPS}})


@pytest.fixture(scope="module")
def folder(comfy):
    """Where the server keeps directions."""
    path = comfy.run_folder / "models" / "latent_directions"
    path.mkdir(parents=True, exist_ok=True)
    return path


def key(prompt: dict, name: str) -> str:
    return workflow.find(prompt, name if name in ("KSamplerSelect", "VAEEncode") else f"LatentDirections_{name}")


def changed(prompt: dict, name: str, **inputs) -> dict:
    return workflow.with_inputs(prompt, {key(prompt, name): inputs})


PLAIN = [strips.TEMPLATE, *(strips.TEMPLATE.with_stem(one.name) for one in model_templates.REAL)]


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.stem)
def test_templates_leave_the_nodes_at_their_defaults(info, path):
    """Only words and the portrait are a template's own; a default that is changed later must reach the templates.

    The other templates are there to show further settings; they hold no value that their description does not name.
    """
    own = {"source", "target", "keep", "find_keeps", "strength", "pairs"}
    for made in workflow.to_prompt(json.loads(path.read_text(encoding="utf-8")), info).values():
        if made["class_type"].startswith("LatentDirections_") and made["class_type"] != strips.PORTRAIT:
            for name, kind, options in workflow.declared_inputs(info[made["class_type"]]):
                if name not in own and workflow.is_widget(kind, options):
                    assert made["inputs"][name] == options["default"], (made["class_type"], name)


def test_encode_identify_manipulate(comfy, prompt):
    before, encoded = strips.round_trip(comfy, prompt)
    edits = {strength: strips.edit(comfy, prompt, "live", strength) for strength in (-2, 0, 1, 2)}
    zero = edits[0]
    assert float((zero.latent - encoded).abs().max()) <= 1e-5
    assert np.array_equal(np.asarray(zero.picture), np.asarray(before))
    for strength in (-2, 1, 2):
        assert float((edits[strength].latent - encoded).abs().max()) > 1e-3
    assert sum(made.found_anew for made in edits.values()) == 1
    assert zero.encode["model_evaluations"] == 0  # fresh noise
    assert zero.identify["model_evaluations"] > 0  # looks for what to keep
    assert zero.manipulate["model_evaluations"] == 0
    assert edits[2].manipulate["model_evaluations"] >= 2 * (FEW_STEPS - 1)


def test_moving_the_slider_reruns_neither_encode_nor_identify(comfy, prompt):
    comfy.run(changed(prompt, "DirectionSlider", strength=0.5))
    result = comfy.run(changed(prompt, "DirectionSlider", strength=0.75))
    costly = {key(prompt, "InvertImage"), key(prompt, "FindDirections")}
    assert costly <= set(result.cached)
    assert not costly & set(result.executed)
    assert key(prompt, "DirectionSlider") in result.executed


def test_find_directions_shows_progress(comfy, prompt):
    result = comfy.run(changed(prompt, "FindDirections", method="HSDS", find_keeps="nothing", where="everywhere"))
    steps = [(value, most) for node, value, most in result.progress if node == key(prompt, "FindDirections")]
    # How many arrive depends on the machine, since ComfyUI sends them by time; they only ever go forward.
    values = [value for value, _ in steps]
    assert len(values) >= 2
    assert values == sorted(set(values))
    assert {most for _, most in steps} == {steps[0][1]}
    assert values[-1] <= steps[0][1]


def test_saved_direction_gives_the_same_picture_in_another_prompt(comfy, prompt, info):
    find, slider = key(prompt, "FindDirections"), key(prompt, "DirectionSlider")
    made = strips.edit(comfy, prompt, "live", 1)
    saver = {"class_type": "LatentDirections_SaveDirection"}
    saver["inputs"] = {"directions": [find, 0], "index": 0, "name": "people/smile"}
    saved = comfy.run({**prompt, "save direction": saver}).outputs["save direction"]["text"][0]
    assert saved == "people/smile.safetensors"
    listed = comfy.client.object_info("LatentDirections_LoadDirection")
    assert saved in json.dumps(listed["LatentDirections_LoadDirection"]["input"]["optional"]["file"])

    loader = {"class_type": "LatentDirections_LoadDirection", "inputs": {"file": saved}}
    other = workflow.rewired({**prompt, "loaded": loader}, [find, 0], ["loaded", 0])
    other = workflow.with_inputs(other, {slider: {"strength": 1.0}})
    for name in (find, "identify"):
        other.pop(name)
    result = comfy.run(other)
    assert torch.equal(strips.latent_of(comfy, result), made.latent)
    # The same name again makes another file; nothing is overwritten.
    saver["inputs"] = {**saver["inputs"], "index": 0, "name": "people/smile.safetensors"}
    assert comfy.run({**prompt, "save direction": saver}).outputs["save direction"]["text"][0] != saved


def test_sd15_template_with_ksampler(comfy, info):
    """The template of SD1.5, the demo model standing in for the artist's checkpoint."""
    graph = json.loads((ROOT / "example_workflows" / "SD1.5.json").read_text(encoding="utf-8"))
    made = workflow.to_prompt(graph, info)
    made[workflow.find(made, "CheckpointLoaderSimple")] = {"class_type": "LatentDirections_LoadDemoModel", "inputs": {}}
    portrait = workflow.find(made, "LatentDirections_DemoPortrait")
    made[portrait]["inputs"]["size"] = 64
    made[workflow.find(made, "VAEEncode")]["inputs"]["pixels"] = [portrait, 0]  # not scaled to the size of SD1.5
    words = {"source": "a person, neutral", "target": "a person, smiling", "keep": ""}
    sampler = workflow.find(made, "KSampler")
    made = workflow.with_inputs(made, {workflow.find(made, strips.FIND): words, sampler: {"steps": 12}})
    made["latent"] = {"class_type": "SaveLatent", "inputs": {"samples": [sampler, 0], "filename_prefix": "edit"}}
    encode = workflow.find(made, "VAEEncode")
    made["encoded"] = {"class_type": "SaveLatent", "inputs": {"samples": [encode, 0], "filename_prefix": "before"}}
    slider = workflow.find(made, strips.SLIDER)
    found = {}
    for strength in (0.0, 2.0):
        result = comfy.run(workflow.with_inputs(made, {slider: {"strength": strength}}))
        found[strength] = strips.latent_of(comfy, result)
        stored = comfy.client.view(result.outputs["encoded"]["latents"][0])
        encoded = safetensors.torch.load(stored)["latent_tensor"]
    assert float((found[0.0] - encoded).abs().max()) <= 1e-5
    assert float((found[2.0] - encoded).abs().max()) > 1e-3


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


EMPTY_MASK = node("SolidMask", value=0.0, width=64, height=64)
WIDE_MASK = node("SolidMask", value=1.0, width=64, height=32)
VIDEO = node("EmptyHunyuanLatentVideo", width=64, height=64, length=9, batch_size=1)
FOUR_CHANNELS = node("EmptyLatentImage", width=64, height=64, batch_size=1)
REFUSALS = {
    "mask without a cell": ("FindDirections", {"mask": EMPTY_MASK}, "'mask' selects nothing"),
    "mask of another size": ("FindDirections", {"mask": WIDE_MASK}, "'mask' is 64 x 32 pixels"),
    "index out of range": ("DirectionSlider", {"index": 9}, "'index' is 9, but"),
    "video latent": ("InvertImage", {"latent": VIDEO}, "'latent' is a video"),
    "latent of another VAE": ("InvertImage", {"latent": FOUR_CHANNELS}, "'latent' has 4 channels"),
    "empty source": ("FindDirections", {"source": " "}, "'source'"),
    "empty target": ("FindDirections", {"target": ""}, "'target'"),
    "the same words twice": ("FindDirections", {"target": "a portrait of a person, neutral"}, "are the same"),
    "words without their encoder": ("FindDirections", {"clip": None}, "needs 'clip'"),
    "keep pair without a bar": ("FindDirections", {"keep": "with glasses"}, "Line 1 of 'keep'"),
    "noise level 0": ("InvertImage", {"level": 0.0}, "'level' is 0"),
    "noise level above 1": ("InvertImage", {"level": 1.5}, "level"),
    "stochastic sampler": ("KSamplerSelect", {"sampler_name": "euler_ancestral"}, "Use a deterministic one"),
    "attribute that portraits lack": ("DemoPortrait", {"named_attributes": "beard"}, "'named_attributes' lists beard"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_wrong_inputs_get_a_sentence(comfy, prompt, case):
    name, inputs, sentence = REFUSALS[case]
    added = {f"added {k}": value for k, value in inputs.items() if isinstance(value, dict)}
    inputs = {k: [f"added {k}", 0] if isinstance(value, dict) else value for k, value in inputs.items()}
    with pytest.raises(PromptError) as error:
        comfy.run(changed({**prompt, **added}, name, **inputs))
    assert sentence in str(error.value)
    assert "Traceback" not in str(error.value)


def corrupt(path):
    path.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00 not a header")


def pickled(path):
    path.write_bytes(pickle.dumps({"latent": [1.0]}))


def torch_saved(path):
    torch.save({"latent": torch.zeros(1)}, path)


def foreign(path):
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path)


def other_family(path):
    save_direction(Direction("smile", "LOCO", "SDXL", 1.0, latent=torch.randn(16, 8, 8), step=1.0), path)


FILES = {
    "corrupt": (corrupt, "file"),
    "pickled": (pickled, "file"),
    "torch_saved": (torch_saved, "file"),
    "foreign": (foreign, "file"),
    "other_family": (other_family, "SDXL"),
    "missing": (lambda path: None, "There is no direction file"),
}


@pytest.mark.parametrize("case", FILES)
def test_unusable_direction_files_get_a_sentence(comfy, prompt, folder, case):
    write, sentence = FILES[case]
    write(folder / f"{case}.safetensors")
    loader = node("LatentDirections_LoadDirection", file=f"{case}.safetensors")
    find = key(prompt, "FindDirections")
    with pytest.raises(PromptError) as error:
        comfy.run(workflow.rewired({**prompt, "loaded": loader}, [find, 0], ["loaded", 0]))
    assert error.value.args[0].startswith("LatentDirections_")
    assert sentence in str(error.value)
    assert str(comfy.run_folder) not in str(error.value)


HALF = "\ud800"  # of a character that takes two surrogates; printing it raises an error


def unprintable(path):
    direction = Direction("d", "LOCO", "SD3", 1.0, latent=torch.ones(16, 8, 8) / 32, step=1.0)
    save_direction(direction, path)
    with safetensors.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        meta = json.loads(file.metadata()["direction"]) | {"name": HALF * 40}
    meta["model"]["family"] = "x" * 500_000 + HALF
    safetensors.torch.save_file(tensors, path, {"format": FORMAT, "direction": json.dumps(meta)})


UNPRINTABLE = {
    "file": ({}, {"file": HALF}),
    "a file name that is not UTF-8": ({}, {"file": os.fsdecode(b"gr\xfcn.safetensors")}),
    "name and family in a file": ({}, {"file": "unprintable.safetensors"}),
    "attributes": ({"DemoPortrait": {"named_attributes": HALF}}, None),
    "target": ({"FindDirections": {"target": f"a {HALF} face"}, "DirectionSlider": {"index": 9}}, None),
    "keep": ({"FindDirections": {"keep": HALF}}, None),
    "method": ({"FindDirections": {"free": HALF, "method": "HSDS low-pass"}}, None),
}


@pytest.mark.parametrize("case", UNPRINTABLE)
def test_what_cannot_be_printed_does_not_end_the_worker(comfy, prompt, folder, case):
    """Half a surrogate pair in a message ended ComfyUI's worker: HTTP still answered, and nothing ran again."""
    inputs, loaded = UNPRINTABLE[case]
    unprintable(folder / "unprintable.safetensors")
    (folder / "unprintable.safetensors").with_name(os.fsdecode(b"gr\xfcn.safetensors")).write_bytes(b"x")
    made = prompt
    for name, values in inputs.items():
        made = changed(made, name, **values)
    if loaded is not None:
        loader = node("LatentDirections_LoadDirection", **loaded)
        made = workflow.rewired({**made, "loaded": loader}, [key(made, "FindDirections"), 0], ["loaded", 0])
    with pytest.raises(PromptError) as error:
        comfy.run(made, timeout=60)
    assert "LatentDirections_" in str(error.value)
    assert len(str(error.value)) < 1500
    str(error.value).encode()
    comfy.run(changed(prompt, "DirectionSlider", strength=0.25 + 0.05 * list(UNPRINTABLE).index(case)), timeout=60)


LINKED = {
    "columns 0": ("PreviewDirections", "columns", 0),
    "columns -3": ("PreviewDirections", "columns", -3),
    "steps -1": ("PreviewDirections", "steps", -1),
    "steps of the inversion": ("InvertImage", "steps", -1),
    "seeds": ("InvertImage", "seeds", 0),
    "count": ("FindDirections", "count", -1),
    "hold outside": ("FindDirections", "hold_outside", -1),
}


@pytest.mark.parametrize("case", LINKED)
def test_linked_values_are_checked(comfy, prompt, case):
    """ComfyUI checks the range of typed values alone."""
    name, given, value = LINKED[case]
    made = {**prompt, "number": node("PrimitiveInt", value=value)}
    if name == "PreviewDirections":
        taken = {"inversion": [key(prompt, "InvertImage"), 4], "directions": [key(prompt, "FindDirections"), 0]}
        taken |= {"vae": [key(prompt, "LoadDemoModel"), 2], "strength": 1.0, "columns": 3, "steps": 1}
        made["node"] = node("LatentDirections_PreviewDirections", **taken | {given: ["number", 0]})
    else:
        made = changed(made, name, **{given: ["number", 0]})
    with pytest.raises(PromptError, match=f"'{given}'"):
        comfy.run(made, timeout=60)


@pytest.mark.parametrize(
    "name",
    ["../outside", "..", "", "a\\b", "con:trol", "x" * 240, "x" * 20_000, "a/" * 2000, HALF, "a.", "CON", "a/nul.x"],
)
def test_directions_are_never_saved_outside_their_folder(comfy, prompt, folder, name):
    saver = node("LatentDirections_SaveDirection", directions=[key(prompt, "FindDirections"), 0], index=0, name=name)
    with pytest.raises(PromptError, match="'name' is"):
        comfy.run({**prompt, "save direction": saver})
    assert not list(folder.parent.glob("*.safetensors"))


def test_a_file_is_no_folder_to_save_in(comfy, prompt, folder):
    (folder / "base.safetensors").write_bytes(b"")
    name = "base.safetensors/x"
    saver = node("LatentDirections_SaveDirection", directions=[key(prompt, "FindDirections"), 0], index=0, name=name)
    with pytest.raises(PromptError, match="'base.safetensors' is a file and no folder"):
        comfy.run({**prompt, "save direction": saver})


LONG = {
    "InvertImage": {"steps": 1000, "method": "backward euler"},
    "FindDirections": {"method": "LOCO", "count": 32, "hold_outside": 64},
}


def share_done_when_cancelled(comfy, prompt, name) -> float:
    """Cancel a node that would take long at its first sign of progress; how far its bar had come when it ended."""
    found, seen = key(prompt, name), []

    def cancel(result):
        if result.running == found and result.progress and result.progress[-1][0] == found:
            if not seen:
                comfy.client.interrupt()
            seen.append(result.progress[-1])

    with pytest.raises(Interrupted, match=name):
        comfy.run(changed(prompt, name, **LONG[name]), cancel)
    _, value, most = seen[-1]
    return value / most


def test_cancelled_or_refused_prompts_leave_the_model_as_it_was(comfy, prompt):
    before = strips.edit(comfy, prompt, "live", 1)
    for name in LONG:
        assert share_done_when_cancelled(comfy, prompt, name) < 0.5
    with pytest.raises(PromptError):
        comfy.run(changed(prompt, "KSamplerSelect", sampler_name="dpmpp_sde"))
    after = strips.edit(comfy, prompt, "live", 1)
    assert torch.equal(before.latent, after.latent)


def test_preview_directions_makes_a_contact_sheet(comfy, prompt, info):
    find, invert = key(prompt, "FindDirections"), key(prompt, "InvertImage")
    vae = prompt[key(prompt, "VAEEncode")]["inputs"]["vae"]
    inversion = [invert, workflow.output(info, strips.INVERT, "inversion")]
    sheet = node("LatentDirections_PreviewDirections", inversion=inversion, directions=[find, 0], vae=vae)
    sheet["inputs"] |= {"strength": 2.0, "columns": 3, "steps": 3}
    result = comfy.run({**prompt, "sheet": sheet})
    assert strips.picture_of(comfy, result, "sheet").width >= 3 * 64


def test_an_edit_is_measured(comfy, prompt, info):
    portrait, positive = key(prompt, "DemoPortrait"), workflow.find(prompt, "CLIPTextEncode")
    words = prompt[positive]["inputs"]
    demo = {"image": [portrait, 0], "edited": [workflow.find(prompt, "VAEDecode"), 0]}
    score = {
        "model": [key(prompt, "LoadDemoModel"), 0],
        "vae": [key(prompt, "LoadDemoModel"), 2],
        "level": 0.5,
        "steps": 3,
    }
    score |= {"image": [portrait, 0], "positive": [positive, 0], "target": ["other words", 0]}
    made = {
        **prompt,
        "other words": node("CLIPTextEncode", **words | {"text": "a person, with glasses"}),
        "demo": node("LatentDirections_MeasureDemo", **demo),
        "score": node("LatentDirections_MeasureDisentanglement", **score),
        "demo report": node("PreviewAny", source=["demo", 1]),
        "score report": node("PreviewAny", source=["score", 2]),
    }
    result = comfy.run(made)
    for name in ("demo", "score"):
        assert strips.picture_of(comfy, result, name).width == 768
    reports = [json.loads(result.outputs[f"{name} report"]["text"][0]) for name in ("demo", "score")]
    assert reports[0]["summary"].startswith("Changed most: smile ")
    assert reports[1]["model_evaluations"] == 5 * 3 + 2


def test_demo_report(comfy, tmp_path):
    options = argparse.Namespace(out=tmp_path, image=None, prompt=None, target=None, method="text", seed=3, serve=False)
    written = strips.make_strips(comfy, options)
    assert all(path.is_file() for path in written)
    (run,) = json.loads((tmp_path / "report.json").read_text())["runs"]
    assert run["method"] == "text"
    assert run["target_attribute"] == "smile"
    assert run["strengths"] == list(strips.STRENGTHS)
    assert len(run["target_values"]) == 7
    assert "smile" not in run["leakage"]
    assert all(len(values) == 7 and values[3] == 0 for values in run["leakage"].values())
    assert run["zero_strength_max_abs_diff"] <= 1e-5
    assert run["zero_strength_pixels_changed"] == 0
    assert run["times_directions_were_found"] == 1
    assert set(run["model_evaluations"]) == set(run["seconds"]) == {"encode", "identify", "manipulate"}


def test_demo_takes_a_picture_and_words_of_the_artist(comfy, tmp_path):
    picture = tmp_path / "mine.png"
    strips.Image.new("RGB", (90, 120), (200, 160, 130)).save(picture)
    words = {"prompt": "a person, sad", "target": "a person, big-eyed", "method": "text"}
    options = argparse.Namespace(out=tmp_path / "out", image=picture, seed=None, serve=False, **words)
    strips.make_strips(comfy, options)
    (run,) = json.loads((tmp_path / "out" / "report.json").read_text())["runs"]
    assert run["target_attribute"] == "eye_size"
    assert run["zero_strength_pixels_changed"] == 0
