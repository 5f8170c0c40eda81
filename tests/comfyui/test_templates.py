"""The templates: written by their builder, whole, and valid to the server."""

import copy
import json

import pytest

from scripts import templates, workflow
from scripts.environment import ROOT

PATHS = sorted((ROOT / "example_workflows").glob("*.json"))
MODEL_WIDGETS = ("ckpt_name", "unet_name", "clip_name", "clip_name1", "clip_name2", "clip_name3", "vae_name")


@pytest.fixture(scope="module")
def info(comfy):
    return comfy.client.object_info()


def graph_of(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_files_are_what_the_builder_writes(info):
    made = templates.files(info)
    assert sorted(made) == PATHS
    for path, text in made.items():
        assert path.read_text(encoding="utf-8") == text, path.name


def test_what_the_builder_writes_does_not_depend_on_files_of_the_server(info):
    other = copy.deepcopy(info)
    files = other["LatentDirections_LoadDirection"]["input"]["optional"]["file"][1]
    files["options"] = [] if files["options"] else ["base.safetensors"]
    assert templates.files(other) == templates.files(info)


def test_a_choice_without_a_default_has_to_be_described(info):
    described = {"sampler": templates.node("KSamplerSelect")}
    with pytest.raises(workflow.WorkflowError, match="KSamplerSelect: sampler_name has no default"):
        templates.Graph(described, info).build({"sampler": ([0, 0], 300)})


def test_every_node_is_in_a_template(info):
    used = {node["type"] for path in PATHS for node in graph_of(path)["nodes"]}
    assert {name for name in info if name.startswith(templates.PREFIX)} <= used


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_template_has_a_picture_sliders_that_can_be_bypassed_and_links_to_its_models(info, path):
    assert path.with_suffix(".jpg").read_bytes()[:3] == b"\xff\xd8\xff"
    made = workflow.to_prompt(graph_of(path), info)
    kinds = [node["class_type"] for node in made.values()]
    assert set(kinds) <= set(info)
    assert {"LatentDirections_DirectionSlider", "LatentDirections_ApplySliders", "ImageCompare"} <= set(kinds)
    wanted = {node["inputs"][name] for node in made.values() for name in MODEL_WIDGETS if name in node["inputs"]}
    linked = [model for node in graph_of(path)["nodes"] for model in node.get("properties", {}).get("models", [])]
    assert {model["name"] for model in linked} == wanted
    assert all(model["url"].startswith("https://huggingface.co/") and model["directory"] for model in linked)
