"""What is known to be wrong from the graph alone, and that the samplers it names are those that a run refuses."""

import comfy.samplers
import pytest
import torch
from comfy_extras import nodes_custom_sampler
from families import Family, sd1, sd3
from node_runs import invert, loaded, sample

from latent_directions.nodes import graph
from latent_directions.nodes.errors import UnsupportedSamplerError

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
    assert found >= graph.STOCHASTIC
    assert found - graph.STOCHASTIC <= LEFT_TO_THE_RUN


@pytest.mark.parametrize("name", sorted(graph.STOCHASTIC_NODES))
def test_the_sampler_nodes_named_stochastic_are_refused_by_a_run(encoded, monkeypatch, name):
    node = getattr(nodes_custom_sampler, name)
    defaults = {i.id: i.default if i.default is not None else i.options[0] for i in node.define_schema().inputs}
    assert set(graph.NOISE_INPUTS) <= set(defaults)
    with torch.inference_mode():
        sampler = node.execute(**defaults).args[0]
    assert refused(*encoded, sampler, monkeypatch)
