"""The templates and blueprints: written by their builder, whole, and valid to the server."""

import copy
import json

import pytest

from scripts import model_templates, templates, workflow
from scripts.comfy_client import PromptError
from scripts.environment import ROOT

PATHS = sorted((ROOT / "example_workflows").glob("*.json"))
MODEL_WIDGETS = ("ckpt_name", "unet_name", "clip_name", "clip_name1", "clip_name2", "clip_name3", "vae_name")


@pytest.fixture(scope="module")
def info(comfy):
    return comfy.client.object_info()


def graph_of(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def models_of(graph: dict) -> list[dict]:
    """Return the links to model files in a graph."""
    return [model for node in graph["nodes"] for model in node.get("properties", {}).get("models", [])]


def test_the_files_are_what_the_builder_writes(info):
    made = templates.files(info)
    assert sorted(made) == sorted([*PATHS, *(ROOT / "subgraphs").glob("*.json")])
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
    chain = {"LatentDirections_DirectionSlider", "LatentDirections_ApplySliders"}
    assert chain <= set(kinds) or "LatentDirections_SliderBoard" in kinds
    assert "ImageCompare" in kinds
    wanted = {node["inputs"][name] for node in made.values() for name in MODEL_WIDGETS if name in node["inputs"]}
    linked = models_of(graph_of(path))
    assert {model["name"] for model in linked} == wanted
    assert all(model["url"].startswith("https://huggingface.co/") and model["directory"] for model in linked)


@pytest.fixture
def stand_ins(comfy):
    """A function that puts empty files where ComfyUI looks for models; they are removed after the test."""
    made = []

    def put(models: list[dict]) -> None:
        for model in models:
            folder = comfy.run_folder / "models" / model["directory"]
            folder.mkdir(exist_ok=True)
            made.append(folder / model["name"])
            made[-1].touch()

    yield put
    for path in made:
        path.unlink()


@pytest.mark.parametrize("name", [one.name for one in model_templates.REAL])
def test_the_server_takes_a_template_of_a_full_size_model_where_its_files_are_and_refuses_it_where_not(
    comfy, info, stand_ins, name
):
    graph = graph_of(templates.TEMPLATES / f"{name}.json")
    prompt = workflow.to_prompt(graph, info)
    with pytest.raises(PromptError, match="Value not in list"):
        comfy.client.run(prompt)
    stand_ins(models_of(graph))
    # Validated and queued, the run ends where an empty file is to be loaded.
    with pytest.raises(PromptError, match="(?i)Loader.*(safetensors|file|header)"):
        comfy.client.run(prompt)
