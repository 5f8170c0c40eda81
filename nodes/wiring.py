"""Mistakes that can be seen from how a workflow is wired, before any model runs.

The page asks before it queues (by a route of the server, see web/latent_directions.js), and so do the nodes that come
first in a run, so that nobody waits for an inversion or a search whose result cannot be used. Only what is certain is
refused; everything else is left to the checks at run time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from aiohttp import web
from comfy_execution.utils import get_executing_context
from server import PromptServer

import nodes as comfy_nodes

from ..core.methods import METHODS
from .anchored import NO_RETURN
from .errors import InputError, UnsupportedSamplerError
from .library import NO_FILE
from .prompts import wrong_words
from .slider_rows import NO_SOURCE, wrong_board

ROUTE = "/latent_directions/check"
INVERT, FIND, SLIDER, BOARD, APPLY, LOAD = (
    f"LatentDirections_{name}"
    for name in ("InvertImage", "FindDirections", "DirectionSlider", "SliderBoard", "ApplySliders", "LoadDirection")
)
# Positions of the outputs that give an anchored MODEL, and of those that give an inversion.
ANCHORED_OUTPUTS = {INVERT: 3, SLIDER: 0, BOARD: 0, APPLY: 0}
INVERSION_OUTPUTS = {INVERT: 4, SLIDER: 3, BOARD: 3}
# ComfyUI's samplers that a run refuses with eps and with flow models; a test compares the list with runs.
REFUSED_SAMPLERS = frozenset((
    "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "exp_heun_2_x0_sde", "dpm_2_ancestral",
    "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m_cfg_pp",
    "dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde",
    "dpmpp_3m_sde_gpu", "ddpm", "lcm", "res_multistep_cfg_pp", "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp", "gradient_estimation_cfg_pp", "er_sde", "seeds_2", "seeds_3", "sa_solver",
    "sa_solver_pece",
))  # fmt: skip
# Nodes with a sampler of one kind, which adds noise where both of NOISE_INPUTS are above 0.
REFUSED_SAMPLER_NODES = frozenset((
    "SamplerEulerAncestral", "SamplerEulerAncestralCFGPP", "SamplerDPMPP_2S_Ancestral", "SamplerDPMPP_SDE",
    "SamplerDPMPP_2M_SDE", "SamplerDPMPP_3M_SDE", "SamplerSEEDS2",
))  # fmt: skip
NOISE_INPUTS = ("eta", "s_noise")
ENOUGH_STEPS = 3  # that are left of a schedule, about, so that it is certain that there are several
# Nodes whose `sampler_name` is one of ComfyUI's samplers.
NODES_WITH_SAMPLER_NAME = frozenset({"KSampler", "KSamplerAdvanced", "KSamplerSelect"})
# Nodes that make a batch: of one picture from each of several inputs, or of one picture many times.
BATCHING_NODES = frozenset({"ImageBatch", "BatchImagesNode", "LatentBatch", "BatchLatentsNode"})
REPEATING_NODES = {"RepeatImageBatch": "amount", "RepeatLatentBatch": "amount"}
# Nodes behind which a batch is as large as before, and the input that it comes from.
BATCH_KEEPING_NODES = {
    "VAEEncode": "pixels",
    "VAEEncodeTiled": "pixels",
    "SetLatentNoiseMask": "samples",
    "ImageScale": "image",
}

BATCH = (
    "'latent' is a batch of several pictures, but its 'inversion' goes to Find Directions, and what method '{}' finds"
    " belongs to one picture. Set 'method' to 'words' ('text' in the API), or take one picture out of the batch (Latent"
    " From Batch) before Encode Picture."
)


@dataclass(frozen=True)
class Problem:
    """An input that cannot be used: the node's id, the input's name, and what is wrong, why, and what to do."""

    node: str
    input: str
    message: str


class Graph:
    """A prompt as ComfyUI's API takes it, {node id: {class_type, inputs}}; what is not of that form is passed over."""

    def __init__(self, prompt: object, outputs: object = None):
        """Look at what leads to the nodes named in `outputs`, or to all output nodes where that is no list."""
        given = prompt if isinstance(prompt, dict) else {}
        self.inputs, self.kinds = {}, {}
        for key, node in given.items():
            if isinstance(node, dict) and isinstance(node.get("class_type"), str):
                self.kinds[key] = node["class_type"]
                self.inputs[key] = node["inputs"] if isinstance(node.get("inputs"), dict) else {}
        ends = [key for key in self.kinds if getattr(_class_of(self.kinds[key]), "OUTPUT_NODE", False)]
        if isinstance(outputs, list):
            ends = [key for key in outputs if isinstance(key, str) and key in self.kinds]
        self.running = self.upstream_of(*ends, certain=True)

    def source(self, key: str, name: str) -> tuple[str, int] | None:
        """The node and the output that an input is linked to; None where it holds a value."""
        link = self.inputs[key].get(name)
        if isinstance(link, list) and len(link) == 2 and isinstance(link[0], str) and type(link[1]) is int:
            return (link[0], link[1]) if link[0] in self.kinds else None
        return None

    def upstream_of(self, *keys: str, certain: bool = False) -> set[str]:
        """The nodes and all that lead to them; `certain` leaves out what a node may decide not to ask for."""
        found, waiting = set(), list(keys)
        while waiting:
            key = waiting.pop()
            if key in found:
                continue
            found.add(key)
            lazy = _lazy_inputs(self.kinds[key]) if certain else ()
            links = (self.source(key, name) for name in self.inputs[key] if name not in lazy)
            waiting += [link[0] for link in links if link is not None]
        return found

    def anchored_by(self, key: str) -> str | None:
        """The node of this pack that the MODEL of a sampler or guider was anchored by; None if none is known."""
        seen, name = {key}, "guider" if "guider" in self.inputs[key] else "model"
        while (link := self.source(key, name)) is not None and link[0] not in seen:
            key, position = link
            seen.add(key)
            if self.kinds[key] in ANCHORED_OUTPUTS:
                return key if ANCHORED_OUTPUTS[self.kinds[key]] == position else None
            name = "model"
        return None

    def inverted_by(self, key: str) -> str | None:
        """The Encode Picture whose inversion a node is given, maybe through sliders; None if none is known."""
        seen = {key}
        while (link := self.source(key, "inversion")) is not None and link[0] not in seen:
            key, position = link
            seen.add(key)
            if INVERSION_OUTPUTS.get(self.kinds[key]) != position:
                return None
            if self.kinds[key] == INVERT:
                return key
        return None

    def method_that_searches(self, key: str) -> str | None:
        """The method of a Find Directions, where it certainly looks for moves of the latent, which fit one picture."""
        method = None if self.source(key, "method") else self.inputs[key].get("method")
        known = METHODS.get(method) if isinstance(method, str) else None
        return None if known is None or known.run is None else known.name

    def number(self, key: str, name: str) -> float | None:
        """A typed number, also where it is typed into a node of its own; None where it is not known."""
        link = self.source(key, name)
        value = self.inputs[key].get(name) if link is None else self.inputs[link[0]].get("value")
        return value if isinstance(value, (int, float)) else None

    def takes_steps(self, key: str, anchor: str) -> bool:
        """Whether a sampler certainly takes several steps below the noise level of the inversion behind `anchor`."""
        link = self.source(key, "sigmas")
        steps = self.number(key if link is None else link[0], "steps")
        if steps is None or self.inputs[key].get("start_at_step"):
            return False
        if link is not None and self.kinds[link[0]] == INVERT:
            return steps > 1
        inverted = anchor if self.kinds[anchor] == INVERT else self.inverted_by(anchor)
        if inverted is None or self.number(inverted, "sigma") != 0:
            return False
        # other schedules are cut off at its level, below which about that share of the steps is left
        level = self.number(inverted, "level")
        return level is not None and steps * level >= ENOUGH_STEPS

    def is_batch(self, key: str, name: str) -> bool:
        """Whether an input is certainly given several pictures or latents."""
        seen = set()
        while (link := self.source(key, name)) is not None and link[0] not in seen:
            key, kind = link[0], self.kinds[link[0]]
            seen.add(key)
            if kind in BATCHING_NODES:
                return sum(self.source(key, linked) is not None for linked in self.inputs[key]) > 1
            if kind in REPEATING_NODES:
                amount = self.inputs[key].get(REPEATING_NODES[kind])
                return isinstance(amount, int) and amount > 1
            if kind not in BATCH_KEEPING_NODES:
                return False
            name = BATCH_KEEPING_NODES[kind]
        return False


def problems(graph: Graph) -> list[Problem]:
    """All that is certainly wrong with the nodes that run."""
    found = [problem for problem, _ in sampler_problems(graph)]
    for key in sorted(graph.running):
        kind, inputs = graph.kinds[key], graph.inputs[key]
        if kind == LOAD and not inputs.get("file"):
            found.append(Problem(key, "file", NO_FILE))
        elif kind == BOARD:
            source, wrong = inputs.get("source"), wrong_board(inputs.get("board"))
            if isinstance(source, str) and not source.strip():
                found.append(Problem(key, "source", NO_SOURCE))
            if wrong is not None:
                found.append(Problem(key, "board", wrong))
        elif kind == FIND:
            typed = (None if f"{name}_conditioning" in inputs else inputs.get(name) for name in ("source", "target"))
            wrong = wrong_words(inputs.get("method"), *typed)
            if wrong is not None:
                found.append(Problem(key, *wrong))
            inverted, method = graph.inverted_by(key), graph.method_that_searches(key)
            if inverted is not None and method is not None and graph.is_batch(inverted, "latent"):
                found.append(Problem(inverted, "latent", BATCH.format(method)))
    return found


def sampler_problems(graph: Graph) -> Iterator[tuple[Problem, str]]:
    """Stochastic samplers that are given a MODEL of this pack, each with the node that the MODEL comes from."""
    for key in sorted(graph.running):
        anchor, link = graph.anchored_by(key), graph.source(key, "sampler")
        chosen = key if link is None else link[0]
        kind, inputs = graph.kinds[chosen], graph.inputs[chosen]
        why = f"adds noise or changes the guidance, {NO_RETURN}"
        if anchor is None:
            continue
        name = inputs.get("sampler_name")
        if not graph.takes_steps(key, anchor) and "cfg_pp" not in str(name):
            continue  # noise that is added before the last step alone is none
        if kind in NODES_WITH_SAMPLER_NAME and isinstance(name, str) and name in REFUSED_SAMPLERS:
            yield Problem(chosen, "sampler_name", f"'sampler_name' of {kind} is '{name}', which {why}"), anchor
        elif kind in REFUSED_SAMPLER_NODES and all(_is_positive(inputs.get(amount)) for amount in NOISE_INPUTS):
            yield Problem(key, "sampler", f"'sampler' of {graph.kinds[key]} comes from {kind}, which {why}"), anchor


def refuse_wiring(prompt: object, batch: int = 1) -> None:
    """Raise what is wrong downstream of the node that runs, before it asks a model anything.

    Args:
        prompt: the hidden PROMPT of the node; None outside a server.
        batch: how many pictures the node was given.

    Raises:
        UnsupportedSamplerError: a stochastic sampler is to sample with what comes from this node.
        InputError: a batch is to be searched for directions.
    """
    context = get_executing_context()
    if context is None or prompt is None:
        return
    graph, key = Graph(prompt, _outputs_of(context.prompt_id)), context.node_id
    for problem, anchor in sampler_problems(graph):
        if key in graph.upstream_of(anchor):
            raise UnsupportedSamplerError(problem.message)
    for found in graph.running if batch > 1 else ():
        method = graph.method_that_searches(found) if graph.kinds[found] == FIND else None
        if method is not None and graph.inverted_by(found) == key:
            raise InputError(BATCH.format(method))


def _outputs_of(prompt_id: str) -> list | None:
    """The output nodes that a running prompt was queued for, which need not be all; None if it is not in the queue."""
    queue = getattr(getattr(PromptServer, "instance", None), "prompt_queue", None)
    running = queue.get_current_queue_volatile()[0] if hasattr(queue, "get_current_queue_volatile") else []
    return next((list(item[4]) for item in running if item[1] == prompt_id and len(item) > 4), None)


def _class_of(kind: str) -> type | None:
    return comfy_nodes.NODE_CLASS_MAPPINGS.get(kind)


def _lazy_inputs(kind: str) -> set[str]:
    """Inputs that a node asks for only where it needs them, such as the branches of a switch."""
    try:
        declared = _class_of(kind).INPUT_TYPES()
        specs = {**declared.get("required", {}), **declared.get("optional", {})}
        return {name for name, spec in specs.items() if isinstance(spec[-1], dict) and spec[-1].get("lazy")}
    except Exception:  # a node of another pack that declares its inputs in its own way
        return set()


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and value > 0


async def _answer(request: web.Request) -> web.Response:
    """Problems of {"prompt": API prompt, "outputs": ids of output nodes to run, or null}; none if it is no prompt."""
    try:
        asked = await request.json()
        found = [asdict(problem) for problem in problems(Graph(asked["prompt"], asked.get("outputs")))]
    except Exception:  # whatever is sent here, the page must be able to queue; ComfyUI then says what is wrong with it
        found = []
    return web.json_response(found)


def register_route() -> None:
    """Let the page ask for problems before it queues; without a server there is no page."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.routes.post(ROUTE)(_answer)
