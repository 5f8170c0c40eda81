"""Mistakes that can be seen from the wiring, and that the samplers it names are those that a run refuses."""

import itertools
import json
import time

import comfy.samplers
import pytest
import torch
from comfy_extras import nodes_custom_sampler
from families import Family, sd1, sd3
from node_runs import invert, loaded, sample

import nodes as comfy_nodes
from latent_directions.nodes import wiring
from latent_directions.nodes.errors import UnsupportedSamplerError
from latent_directions.nodes.identify import FindDirections
from latent_directions.nodes.wiring import Graph, problems
from scripts import strips, workflow
from scripts.comfy_client import PromptError, Result

# Refused at run time for other reasons than noise, which depend on model, schedule or steps: not known beforehand.
LEFT_TO_THE_RUN = {"dpm_fast", "dpm_adaptive", "ipndm_v", "uni_pc", "uni_pc_bh2"}


def refused(test_model, encoded, sampler, monkeypatch) -> bool:
    """Whether the check at run time refuses a sampler: a name, or an object in its place."""
    if not isinstance(sampler, str):
        monkeypatch.setattr(comfy.samplers, "sampler_object", lambda _: sampler)
    try:
        sample(test_model, encoded, sampler=sampler)
    except UnsupportedSamplerError:
        return True
    return False


@pytest.fixture(scope="module", params=[sd1, sd3], ids=["sd1", "sd3"])
def encoded(request):
    test_model = loaded(Family(request.param.__name__, request.param))
    return test_model, invert(test_model, method="seeded noise")


def test_the_samplers_named_stochastic_are_those_that_a_run_refuses(encoded, monkeypatch):
    found = {name for name in comfy.samplers.SAMPLER_NAMES if refused(*encoded, name, monkeypatch)}
    assert found >= wiring.REFUSED_SAMPLERS
    assert found - wiring.REFUSED_SAMPLERS <= LEFT_TO_THE_RUN


@pytest.mark.parametrize("name", sorted(wiring.REFUSED_SAMPLER_NODES))
def test_the_sampler_nodes_named_stochastic_are_refused_by_a_run(encoded, monkeypatch, name):
    node = getattr(nodes_custom_sampler, name)
    defaults = {i.id: i.default if i.default is not None else i.options[0] for i in node.define_schema().inputs}
    assert set(wiring.NOISE_INPUTS) <= set(defaults)
    with torch.inference_mode():
        sampler = node.execute(**defaults).args[0]
    assert refused(*encoded, sampler, monkeypatch)


@pytest.fixture(scope="module")
def prompt(comfy) -> dict:
    """The first template as an API prompt, with few steps."""
    graph_of_page = json.loads(strips.TEMPLATE.read_text(encoding="utf-8"))
    made = workflow.to_prompt(graph_of_page, comfy.client.object_info())
    return workflow.with_inputs(made, {workflow.find(made, strips.INVERT): {"steps": 3, "seed": next(SEEDS)}})


SEEDS = itertools.count(7000)  # a new one makes a node run again in place of being taken from the cache
ANCESTRAL = {"class_type": "SamplerEulerAncestral", "inputs": {"eta": 1.0, "s_noise": 1.0}}
TWICE = {"class_type": "RepeatLatentBatch", "inputs": {"samples": ["encode", 0], "amount": 2}}


def changed(prompt: dict, kind: str, **inputs) -> dict:
    return workflow.with_inputs(prompt, {workflow.find(prompt, kind): inputs})


def named(prompt: dict, name: str = "euler_ancestral") -> dict:
    return changed(prompt, "KSamplerSelect", sampler_name=name)


def from_node(prompt: dict, **inputs) -> dict:
    sampler = ANCESTRAL | {"inputs": ANCESTRAL["inputs"] | inputs}
    return changed({**prompt, "ancestral": sampler}, "SamplerCustomAdvanced", sampler=["ancestral", 0])


def ksampler(prompt: dict, model: list | None = None, **inputs) -> dict:
    """KSampler in place of SamplerCustomAdvanced, its MODEL through a node that changes MODELs."""
    slider, encode = workflow.find(prompt, strips.SLIDER), workflow.find(prompt, "CLIPTextEncode")
    patched = {"class_type": "RescaleCFG", "inputs": {"model": model or [slider, 0], "multiplier": 0.7}}
    options = {"seed": 0, "steps": 8, "cfg": 1.0, "sampler_name": "dpmpp_sde", "scheduler": "simple", "denoise": 1.0}
    links = {"model": ["patched", 0], "positive": [slider, 1], "negative": [encode, 0]}
    latent = {"latent_image": [workflow.find(prompt, strips.INVERT), 0]}
    sampler = {"class_type": "KSampler", "inputs": options | links | latent | inputs}
    made = changed({**prompt, "patched": patched, "ksampler": sampler}, "VAEDecode", samples=["ksampler", 0])
    made.pop(workflow.find(made, "SamplerCustomAdvanced"))
    return made


def behind_two_sliders(prompt: dict) -> dict:
    """A sampler that is given the MODEL of Apply Sliders, behind two sliders in a chain."""
    first, apply = (workflow.find(prompt, kind) for kind in (strips.SLIDER, "LatentDirections_ApplySliders"))
    second = {**prompt[first], "inputs": prompt[first]["inputs"] | {"inversion": [first, 3]}}
    made = changed(ksampler(prompt, [apply, 0]), "LatentDirections_ApplySliders", inversion=["second", 3])
    return {**made, "second": second}


def behind_a_board(prompt: dict) -> dict:
    """A sampler that is given the MODEL of a Slider Board."""
    invert, load = (workflow.find(prompt, kind) for kind in (strips.INVERT, "LatentDirections_LoadDemoModel"))
    inputs = {"model": [load, 0], "inversion": [invert, 4], "clip": [load, 1], "source": "a portrait"}
    board = {
        "class_type": wiring.BOARD,
        "inputs": inputs | {"board": '{"version": 1, "sliders": [{"words": "smiling"}]}'},
    }
    return {**ksampler(prompt, ["board", 0]), "board": board}


def words_on_batch(prompt: dict) -> dict:
    return changed(batch(prompt), strips.FIND, method="text")


def batch(prompt: dict) -> dict:
    twice = TWICE | {"inputs": TWICE["inputs"] | {"samples": [workflow.find(prompt, "VAEEncode"), 0]}}
    made = changed({**prompt, "twice": twice}, strips.INVERT, latent=["twice", 0])
    return changed(made, strips.FIND, method="HSDS")


WIRED = {
    "KSamplerSelect": (named, "'sampler_name' of KSamplerSelect is 'euler_ancestral', which adds noise"),
    "a sampler's own node": (
        from_node,
        "'sampler' of SamplerCustomAdvanced comes from SamplerEulerAncestral, which adds",
    ),
    "KSampler behind another node": (ksampler, "'sampler_name' of KSampler is 'dpmpp_sde', which adds noise"),
    "behind two sliders": (behind_two_sliders, "'sampler_name' of KSampler is 'dpmpp_sde', which adds noise"),
    "behind a board": (behind_a_board, "'sampler_name' of KSampler is 'dpmpp_sde', which adds noise"),
    "batch": (batch, "'latent' is a batch of several pictures, but its 'inversion' goes to Find Directions, and what"),
}


@pytest.mark.parametrize("case", WIRED)
def test_what_is_wired_wrongly_is_refused_before_a_model_runs(comfy, prompt, case):
    """Over the API the first node that can know refuses; in the page the same sentence comes before queueing."""
    change, sentence = WIRED[case]
    wrong = change(changed(prompt, strips.INVERT, seed=next(SEEDS)))
    (problem,) = problems(Graph(wrong))
    assert sentence in problem.message
    progress = []

    def on_event(result: Result) -> None:
        progress[:] = [p for p in result.progress if p[1] > 0]

    with pytest.raises(PromptError) as error:
        comfy.run(wrong, on_event)
    assert str(error.value) == f"{strips.INVERT}: {problem.message}"
    assert progress == []
    answer = comfy.client.request(wiring.ROUTE, json.dumps({"prompt": wrong}).encode())
    assert json.loads(answer) == [{"node": problem.node, "input": problem.input, "message": problem.message}]
    assert problem.input in wrong[problem.node]["inputs"]


def test_behind_an_inversion_from_the_cache_the_search_is_not_started(comfy, prompt):
    comfy.run(changed(prompt, strips.FIND, method="text"))
    with pytest.raises(PromptError, match=f"{strips.FIND}: 'sampler_name' of"):
        comfy.run(named(changed(prompt, strips.FIND, method="HSDS")))


def of_another_model(prompt: dict) -> dict:
    return ksampler(prompt, [workflow.find(prompt, "LatentDirections_LoadDemoModel"), 0])


def unused(prompt: dict) -> dict:
    """A stochastic sampler that leads to no output, so that it never runs."""
    return {
        **prompt,
        "unused": from_node(prompt)[workflow.find(prompt, "SamplerCustomAdvanced")],
        "ancestral": ANCESTRAL,
    }


def one_of_a_batch(prompt: dict) -> dict:
    first = {"class_type": "LatentFromBatch", "inputs": {"samples": ["twice", 0], "batch_index": 0, "length": 1}}
    return changed({**batch(prompt), "first": first}, strips.INVERT, latent=["first", 0])


RIGHT = {
    "as it is": lambda prompt: prompt,
    "a deterministic sampler": lambda prompt: named(prompt, "dpmpp_2m"),
    "a stochastic sampler that may take a single step": lambda prompt: changed(
        named(prompt, "lcm"), "SamplerCustomAdvanced", sigmas=["sigmas elsewhere", 0]
    ),
    "a stochastic sampler of one step": lambda prompt: changed(named(prompt, "lcm"), strips.INVERT, steps=1),
    "a stochastic KSampler of a step or two": lambda prompt: ksampler(prompt, steps=2),
    "a stochastic KSampler of many steps, few below a low level": lambda prompt: changed(
        ksampler(prompt, steps=20), strips.INVERT, level=0.05
    ),
    "a sampler that nothing is known of": lambda prompt: named(prompt, "dpm_fast"),
    "a sampler's own node without noise": lambda prompt: from_node(prompt, eta=0.0),
    "a stochastic sampler of another MODEL": of_another_model,
    "a stochastic sampler that does not run": unused,
    "one picture out of a batch": one_of_a_batch,
    "words on a batch": words_on_batch,
    "linked words": lambda prompt: changed(prompt, strips.FIND, source=["words", 0]),
    "no words, for LOCO": lambda prompt: changed(prompt, strips.FIND, method="LOCO", source="", target=""),
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_may_work_is_left_alone(prompt, case):
    assert problems(Graph(RIGHT[case](prompt))) == []


def test_a_branch_that_a_switch_may_leave_out_is_left_to_the_run(comfy, prompt):
    other = workflow.find(prompt, strips.PORTRAIT)
    switch = {"switch": False, "on_true": [workflow.find(prompt, "VAEDecode"), 0], "on_false": [other, 0]}
    made = {**named(prompt), "switch": {"class_type": "ComfySwitchNode", "inputs": switch}}
    made = changed(changed(made, "SaveImage", images=["switch", 0]), "ImageCompare", image_b=["switch", 0])
    assert json.loads(comfy.client.request(wiring.ROUTE, json.dumps({"prompt": made}).encode())) == []
    comfy.run(changed(made, strips.INVERT, seed=next(SEEDS)))


def test_only_the_outputs_that_are_queued_count(comfy, prompt):
    """The page can run a part of a graph, and the rest may be as it likes."""
    made = named(changed(prompt, strips.INVERT, seed=next(SEEDS)))
    made["before"] = {"class_type": "PreviewImage", "inputs": {"images": [workflow.find(made, strips.PORTRAIT), 0]}}
    assert len(problems(Graph(made))) == 1
    assert problems(Graph(made, ["before"])) == []
    report = [workflow.find(made, strips.INVERT), workflow.output(comfy.client.object_info(), strips.INVERT, "report")]
    made["return"] = {"class_type": "PreviewAny", "inputs": {"source": report}}
    body = {"prompt": made, "partial_execution_targets": ["return"]}
    key = json.loads(comfy.client.request("/prompt", json.dumps(body).encode()))["prompt_id"]
    for _ in range(300):
        history = json.loads(comfy.client.request(f"/history/{key}"))
        if key in history:
            break
        time.sleep(0.1)
    assert history[key]["status"]["status_str"] == "success"


HOSTILE = {
    "no JSON": b"\xff{",
    "deeply nested": b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a number": b"7",
    "no prompt": b"{}",
    "a list": b'{"prompt": [1, 2], "outputs": {"a": 1}}',
    "nodes of other forms": json.dumps(
        {"prompt": {"1": None, "2": {}, "3": {"class_type": ["KSampler"], "inputs": 1}}}
    ).encode(),
    "odd links": json.dumps(
        {"prompt": {"1": {"class_type": "SaveImage", "inputs": {"images": [["1"], 0], "a": [{}, {}], "b": ["9", 0]}}}}
    ).encode(),
    "a circle of links": json.dumps(
        {
            "prompt": {
                "1": {"class_type": "KSampler", "inputs": {"model": ["2", 0], "sampler_name": "ddpm"}},
                "2": {"class_type": "RescaleCFG", "inputs": {"model": ["1", 0]}},
                "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
                "4": {"class_type": wiring.INVERT, "inputs": {"latent": ["5", 0]}},
                "5": {"class_type": "VAEEncode", "inputs": {"pixels": ["6", 0]}},
                "6": {"class_type": "ImageScale", "inputs": {"image": ["5", 0]}},
                "7": {"class_type": wiring.FIND, "inputs": {"inversion": ["4", 4], "method": {}, "source": 1}},
                "8": {"class_type": "SaveImage", "inputs": {"images": ["7", 0]}},
            }
        }
    ).encode(),
    "lone surrogates": b'{"prompt": {"\\ud800": {"class_type": "\\udfff", "inputs": {"\\ud801": ["\\ud800", 0]}}}}',
}


@pytest.mark.parametrize("case", HOSTILE)
def test_the_route_answers_anything_with_a_list(comfy, case):
    assert json.loads(comfy.client.request(wiring.ROUTE, HOSTILE[case])) == []


def test_a_problem_beside_lone_surrogates_is_answered(comfy, prompt):
    wrong = {**named(prompt), "\ud800": {"class_type": "\udfff", "inputs": {}}}
    (found,) = json.loads(comfy.client.request(wiring.ROUTE, json.dumps({"prompt": wrong}).encode()))
    assert found["input"] == "sampler_name"


def test_a_method_that_does_not_exist_is_still_refused(comfy, prompt):
    """The node checks its words itself, so ComfyUI no longer looks whether the method is one of the list."""
    with pytest.raises(PromptError, match="'method' is 'magic', which is no method. Choose one of: text"):
        comfy.run(changed(prompt, strips.FIND, method="magic"))


def test_typed_words_are_checked_before_anything_runs(comfy, prompt):
    seen = []
    with pytest.raises(PromptError, match="'source' is empty"):
        comfy.run(changed(prompt, strips.FIND, source=""), seen.append)
    assert seen == []


def test_words_that_are_linked_are_left_to_the_run():
    """ComfyUI hands over None in place of what is linked."""
    assert FindDirections.validate_inputs(method="HSDS", source=None, target="a person") is True
    assert FindDirections.validate_inputs(method=None, source="", target="") is True
    assert FindDirections.validate_inputs(method="LOCO", source="", target="") is True
    assert "'target' is empty" in FindDirections.validate_inputs(method="HSDS", source=None, target=" ")


@pytest.mark.parametrize("inputs", [{}, {"file": None}, {"file": ""}])
def test_load_direction_with_nothing_chosen_says_so(comfy, prompt, inputs):
    loader = {"class_type": "LatentDirections_LoadDirection", "inputs": inputs}
    made = changed({**prompt, "loaded": loader}, strips.SLIDER, directions=["loaded", 0])
    with pytest.raises(PromptError, match="LatentDirections_LoadDirection: 'file' is empty, so"):
        comfy.run(made)


@pytest.mark.parametrize("declared", [{"required": {"a": (["x", "y"],)}}, {"required": {"a": ("INT", None)}}, None])
def test_nodes_of_other_packs_that_declare_their_inputs_in_their_own_way(prompt, declared, monkeypatch):
    """They are in the way of no check."""

    class Odd:
        OUTPUT_NODE = True

        @classmethod
        def INPUT_TYPES(cls):  # noqa: N802 - ComfyUI's name
            if declared is None:
                raise RuntimeError
            return declared

    monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, "Odd", Odd)
    odd = {"class_type": "Odd", "inputs": {"a": [workflow.find(prompt, "VAEDecode"), 0]}}
    assert problems(Graph({**prompt, "odd": odd})) == []
    assert len(problems(Graph({**named(prompt), "odd": odd}))) == 1


def test_steps_that_are_typed_into_a_node_of_their_own(prompt):
    made = {**named(prompt), "steps": {"class_type": "PrimitiveInt", "inputs": {"value": 8}}}
    assert len(problems(Graph(changed(made, strips.INVERT, steps=["steps", 0])))) == 1
