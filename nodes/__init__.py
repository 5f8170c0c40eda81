"""The nodes: the only layer that imports ComfyUI. A module with nodes lists them in NODES; the others run `core`."""

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from . import (
    board,
    combine,
    common_directions,
    demo_model,
    diffusers_model,
    encode,
    identify,
    identify_shown_inputs,
    inspect,
    library,
    manipulate,
    measure_demo,
    measure_disentanglement,
    measure_words,
    plots,
    quick,
    transfer,
    wiring,
)


class LatentDirectionsExtension(ComfyExtension):
    """What ComfyUI asks for the pack's nodes."""

    @override
    async def on_load(self) -> None:
        library.register_folder()
        identify_shown_inputs.register_route()
        wiring.register_route()

    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        measures = (measure_words, measure_disentanglement, measure_demo)
        edits = (common_directions, transfer, combine, manipulate, board, quick)
        modules = (encode, identify, *edits, inspect, plots, *measures, library, diffusers_model, demo_model)
        return [node for module in modules for node in module.NODES]
