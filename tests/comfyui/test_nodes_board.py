"""Slider Board: the same as a chain of Find Directions and Direction Slider, found once, and its JSON."""

import json
import re
from dataclasses import replace

import fastjsonschema
import pytest
import torch
from families import CORE
from node_runs import HashingClip, find, invert, loaded, sample

from latent_directions.nodes.board import MOST_REMEMBERED, SliderBoard
from latent_directions.nodes.errors import InputError
from latent_directions.nodes.manipulate import DirectionSlider
from latent_directions.nodes.slider_rows import EMPTY, EXAMPLE, SliderRow, rows_of, wrong_board
from latent_directions.nodes.wiring import BOARD, Graph, problems
from scripts.environment import ROOT

SOURCE = "a person"
ROWS = [
    {"words": "sad | smiling", "strength": 1.2},
    {"words": "hat", "strength": -0.5, "keep": "with glasses | bare"},
    {"words": "beard", "on": False},
]


def as_json(*rows: dict, version=1) -> str:
    return json.dumps({"version": version, "sliders": list(rows)})


def run(test_model, inversion, *rows, clip=None, **options):
    """The outputs of the node by name; its report as a dict."""
    clip = HashingClip(test_model) if clip is None else clip
    options = {"source": SOURCE, "find_keeps": "nothing", "where": "found", **options}
    with torch.inference_mode():
        made = SliderBoard.execute(test_model.model, inversion, clip, board=as_json(*rows), **options).args
    names = "model", "positive", "noise", "inversion", "directions", "report"
    outputs = dict(zip(names, made, strict=True))
    return outputs | {"report": json.loads(outputs["report"])}


def sampled(test_model, encoded, made: dict) -> torch.Tensor:
    return sample(test_model, encoded, **{name: made[name] for name in ("model", "positive", "noise")})


@pytest.mark.parametrize("family", CORE, ids=str)
def test_it_is_the_chain_of_nodes_bit_for_bit(family):
    test_model = loaded(family)
    encoded = invert(test_model)
    made = run(test_model, encoded.inversion, *ROWS)
    chain = invert(test_model).inversion
    smile = find(test_model, chain, "text", source="a person, sad", target="a person, smiling", where="found")[0]
    keep = "a person, with glasses | a person, bare"
    hat = find(test_model, chain, "text", source=SOURCE, target="a person, hat", keep=keep, where="found")[0]
    for directions, strength in ((smile, 1.2), (hat, -0.5)):
        *outputs, chain = DirectionSlider.execute(chain, directions, 0, strength).args
    chained = dict(zip(("model", "positive", "noise"), outputs, strict=True))
    moved = sampled(test_model, encoded, made)
    assert torch.equal(moved, sampled(test_model, encoded, chained))
    assert not torch.allclose(moved, encoded.latent["samples"], atol=1e-3)
    assert [direction.name for direction in made["directions"]] == ["smiling", "hat"]
    assert [row["on"] for row in made["report"]["sliders"]] == [True, True, False]


def test_moving_and_turning_off_and_on_search_nothing_again():
    test_model = loaded(CORE[0])
    encoded, clip = invert(test_model), HashingClip(test_model)
    smile, hat = {"words": "smiling"}, {"words": "hat", "strength": 0.5}
    assert run(test_model, encoded.inversion, smile, hat, clip=clip)["report"]["searches"] == 2
    for rows in ([smile | {"strength": -3}, hat], [smile | {"on": False}, hat], [hat, smile], [smile, hat]):
        report = run(test_model, encoded.inversion, *rows, clip=clip)["report"]
        assert (report["searches"], report["model_evaluations"]) == (0, 0)
    # what a search depends on
    for changed in ({"source": "a man"}, {"where": "everywhere"}, {"find_keeps": "scenes and objects"}):
        assert run(test_model, encoded.inversion, smile, clip=clip, **changed)["report"]["searches"] == 1
    assert run(test_model, encoded.inversion, smile | {"keep": "glasses | bare"}, clip=clip)["report"]["searches"] == 1
    assert run(test_model, encoded.inversion, smile)["report"]["searches"] == 1  # another text encoder
    other = replace(test_model, model=test_model.model.clone())
    other.model.set_model_sampler_cfg_function(lambda given: given["cond"])
    assert run(other, encoded.inversion, smile, clip=clip)["report"]["searches"] == 1
    assert run(test_model, invert(test_model).inversion, smile, clip=clip)["report"]["searches"] == 1


def test_searches_are_remembered_up_to_a_number():
    test_model = loaded(CORE[0])
    encoded, clip = invert(test_model), HashingClip(test_model)
    run(test_model, encoded.inversion, {"words": "smiling"}, clip=clip)
    (known,) = encoded.inversion.found.values()
    encoded.inversion.found.update({(number,): known for number in range(MOST_REMEMBERED)})
    run(test_model, encoded.inversion, {"words": "hat"}, clip=clip)
    assert len(encoded.inversion.found) <= MOST_REMEMBERED + 1
    assert run(test_model, encoded.inversion, {"words": "hat"}, clip=clip)["report"]["searches"] == 0


@pytest.mark.parametrize("rows", [({"words": "smiling", "on": False},), ({"words": "smiling", "strength": 0},)])
def test_nothing_on_and_strength_0_give_the_picture_back(rows):
    test_model = loaded(CORE[0])
    encoded = invert(test_model)
    made = run(test_model, encoded.inversion, *rows)
    assert torch.equal(sampled(test_model, encoded, made), encoded.latent["samples"])
    assert ("gives the picture back" in made["report"]["summary"]) == (not made["directions"])


def test_boards_and_sliders_follow_each_other():
    test_model = loaded(CORE[0])
    encoded, clip = invert(test_model), HashingClip(test_model)
    both = run(test_model, encoded.inversion, {"words": "smiling"}, {"words": "hat"}, clip=clip)
    first = run(test_model, encoded.inversion, {"words": "smiling"}, clip=clip)
    second = run(test_model, first["inversion"], {"words": "hat"}, clip=clip)
    assert torch.equal(sampled(test_model, encoded, both), sampled(test_model, encoded, second))
    assert len(second["inversion"].sliders) == 2


def test_an_error_of_a_search_names_the_slider():
    test_model = loaded(CORE[0])
    with pytest.raises(InputError, match=r"^Slider 2 of 'board' \(the\): The text encoder gives .* the same meaning"):
        run(test_model, invert(test_model).inversion, {"words": "hat"}, {"words": "with | the"})


def test_what_the_page_and_the_api_write_is_read():
    text = as_json(
        {"words": " sad |  smiling ", "strength": 2, "keep": "a hat | no hat\n", "on": False}, {"words": "x"}
    )
    first, second = rows_of(text)
    assert first == SliderRow("sad |  smiling", 2.0, "a hat | no hat\n", on=False)
    assert (first.name, first.prompts("a face")) == ("smiling", ("a face, sad", "a face, smiling"))
    assert first.keep_prompts("a face") == "a face, sad, a hat | a face, sad, no hat"
    assert (second, second.prompts("a face")) == (SliderRow("x", 1.0, "", on=True), ("a face", "a face, x"))
    assert rows_of(EMPTY) == ()


WRONG = [
    ("", "'board' is no JSON"),
    ("[" * 100_000, "'board' is no JSON"),
    ("[]", "without a list 'sliders'"),
    ('{"version": 1}', "without a list 'sliders'"),
    ('{"sliders": []}', "'version' of 'board' is None"),
    (as_json(version=2), "'version' of 'board' is 2, but this version of the node pack reads version 1"),
    (as_json(version=True), "'version' of 'board' is True"),
    ('{"version": 1, "sliders": [], "seed": 1}', "'board' has the key 'seed', which is none of: version, sliders"),
    (as_json("smiling"), "Slider 1 of 'board' is 'smiling', but it must be an object"),
    (as_json({"words": "x", "mask": 1}), "Slider 1 of 'board' has the key 'mask'"),
    (as_json({"words": 1}), "'words' of slider 1 of 'board' is 1, but it must be a text"),
    (as_json({"words": "x", "keep": None}), "'keep' of slider 1 of 'board' is None, but it must be a text"),
    (as_json({"words": "x", "on": 1}), "'on' of slider 1 of 'board' is 1, but it must be true or false"),
    (as_json({"words": "\ud800"}), "'words' of slider 1 of 'board' holds an incomplete character"),
    (as_json({"words": "x"}, {"words": "y", "strength": "1"}), "'strength' of slider 2 of 'board' is '1', but"),
    (as_json({"words": "x", "strength": True}), "but it must be a number"),
    (as_json({"words": "x", "strength": 3.1}), "is 3.1. It must be -3 to 3"),
    ('{"version": 1, "sliders": [{"words": "x", "strength": NaN}]}', "is nan. It must be -3 to 3"),
    (as_json({}), "Slider 1 of 'board' has no words"),
    (as_json({"words": " "}), "Slider 1 of 'board' has no words"),
    (as_json({"words": "a | b | c"}), "two different phrases with one bar between them"),
    (as_json({"words": "| b"}), "two different phrases with one bar between them"),
    (as_json({"words": "b | b"}), "'b | b'. Write what strength 1 should show"),
    (as_json({"words": "x", "keep": "hat"}), "Slider 1 of 'board': Line 1 of 'keep' is 'hat'"),
    (as_json(*[{"words": "x"}] * 9), "'board' has 9 sliders, but at most 8"),
]
# What JSON Schema cannot say, or its reader does not see.
BEYOND_SCHEMA = ("incomplete character", "is nan", "'b | b'", "Line 1 of 'keep'")


@pytest.mark.parametrize(("text", "said"), WRONG)
def test_every_way_to_be_wrong_has_a_sentence(text, said):
    with pytest.raises(InputError) as raised:
        rows_of(text)
    assert said in str(raised.value)
    assert wrong_board(text) == str(raised.value) == SliderBoard.validate_inputs(source="a face", board=text)


def test_an_empty_source_is_said_before_and_during_a_run():
    said = SliderBoard.validate_inputs(source=" ", board=EMPTY)
    assert said.startswith("'source' is empty")
    assert SliderBoard.validate_inputs(source=None, board=None) is True  # both linked
    test_model = loaded(CORE[0])
    with pytest.raises(InputError, match="'source' is empty"):
        run(test_model, invert(test_model).inversion, source="")


def test_the_documented_schema_and_example_say_the_same():
    page = (ROOT / "docs" / "slider_board.md").read_text(encoding="utf-8")
    example, schema = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    validate = fastjsonschema.compile(json.loads(schema))
    assert len(rows_of(example)) == 3
    for text in (example, EMPTY, EXAMPLE):
        validate(json.loads(text))
    for text, said in WRONG:
        if "is no JSON" in said or any(part in said for part in BEYOND_SCHEMA):
            continue
        with pytest.raises(fastjsonschema.JsonSchemaValueException):
            validate(json.loads(text))


def test_the_page_is_told_what_is_wrong_before_it_queues():
    node = {"class_type": BOARD, "inputs": {"board": as_json({}), "source": ""}}
    found = problems(Graph({"1": node}, ["1"]))
    assert [(problem.node, problem.input) for problem in found] == [("1", "source"), ("1", "board")]
    assert found[1].message.startswith("Slider 1 of 'board' has no words.")
    node["inputs"] |= {"board": ["2", 0], "source": "a face"}
    assert problems(Graph({"1": node}, ["1"])) == []
