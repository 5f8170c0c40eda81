"""Find Common Directions: what the pictures of a batch have in common inside the network, to be carried to others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui
from torch import Tensor

from ..core.denoiser import SOURCE
from ..core.direction import Direction, Feature
from ..core.geometry import frechet_mean, matched_mean, principal_components
from ..core.jacobian_directions import MAX_PAIRS
from ..core.local_basis import LocalBasis, local_basis
from ..core.search import Search, pairs_evaluations
from .errors import InputError, with_advice
from .features import MIDDLE, find_layer
from .inputs import BLOCK, check_inputs
from .model_fingerprint import fingerprint_of
from .progress import result_line, show_line, sum_of_costs
from .search_at_picture import at_picture
from .sockets import DirectionsSocket, Inversion, InversionSocket

MEAN, SUBSPACE, COMPONENTS = "mean of directions", "mean of subspaces", "principal components"
FEWER = "Only {} directions were found in place of {}, because one of the {} pictures has no more."
FEWER_COMPONENTS = "Only {} directions were found in place of {}, because {} pictures differ in no more ways."
NOT_CONVERGED = "The search stopped before it converged on {} of {} pictures, so the directions are only approximate."


class FindCommonDirections(io.ComfyNode):
    """Directions that belong to many pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs of the node."""
        return io.Schema(
            node_id="LatentDirections_FindCommonDirections",
            display_name="Find Common Directions",
            category="latent directions",
            description=(
                "Finds directions that several pictures have in common, from what happens inside the network. Transfer"
                " Direction makes them fit a picture, which need not be one of these."
            ),
            search_aliases=[
                "global directions",
                "average direction",
                "attribute of several pictures",
                "asyrp",
                "h-space",
                "pca of features",
                "principal components",
                "semantic directions",
                "concept slider",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The same model that Encode Picture used."),
                InversionSocket.Input(
                    "inversion", tooltip="At least two pictures, from Encode Picture with a batch of latents."
                ),
                io.Combo.Input(
                    "how",
                    options=[MEAN, SUBSPACE, COMPONENTS],
                    default=MEAN,
                    tooltip=(
                        "'mean of directions': the method 'pullback' on each picture, and the means of directions that"
                        " belong together. 'mean of subspaces': the same, but all directions of a picture are averaged"
                        " together, so that their order does not matter. 'principal components': how the features of"
                        " the pictures differ most, which needs one model evaluation a picture."
                    ),
                ),
                io.Int.Input("count", default=3, min=1, max=32, tooltip="How many directions to find."),
                BLOCK,
            ],
            outputs=[
                DirectionsSocket.Output(
                    display_name="directions",
                    tooltip="The directions that the pictures have in common, for Transfer Direction.",
                ),
                io.String.Output(
                    display_name="report", tooltip="What was found in which pictures and what it took, as JSON."
                ),
            ],
        )

    @classmethod
    @with_advice()
    def execute(cls, model, inversion, how=MEAN, count=3, block=MIDDLE) -> io.NodeOutput:
        """Look at one picture after the other, and bundle what they have in common."""
        check_inputs(cls, locals())
        pictures = len(inversion.latent["samples"])
        if pictures < 2:
            msg = (
                "'inversion' holds one picture, and common directions need at least two. Connect Encode Picture with a"
                " batch of latents."
            )
            raise InputError(msg)
        layer = find_layer(model.get_model_object("diffusion_model"), block).name
        found, costs = [], []
        for one in _each(inversion):
            seen, spent = _features(model, one, block) if how == COMPONENTS else _basis(model, one, count, block)
            found.append(seen)
            costs.append(spent)
        cost = sum_of_costs(*costs)
        remarks = cost.get("remarks", [])
        if how == COMPONENTS:
            changes, notes = _components(torch.cat(found), count)
        else:
            stopped = sum(not basis.converged and basis.pairs >= MAX_PAIRS for basis in found)
            remarks += [NOT_CONVERGED.format(stopped, pictures)] if stopped else []
            changes, notes = _mean([basis.changes for basis in found], how)
        if len(changes) < count:
            remarks.append((FEWER_COMPONENTS if how == COMPONENTS else FEWER).format(len(changes), count, pictures))
        directions = [
            Direction(
                name=f"common direction {number}",
                method=how,
                family=inversion.family,
                sigma=inversion.sigma,
                feature=Feature(change.cpu(), layer),
                model=fingerprint_of(model),
                notes=own,
            )
            for number, (change, own) in enumerate(zip(changes, notes, strict=True), 1)
        ]
        report = {
            "stage": "identify",
            "method": how,
            "sigma": inversion.sigma,
            "pictures": pictures,
            "layer": layer,
            "directions": len(directions),
            **{name: cost[name] for name in ("model_evaluations", "seconds", "peak_megabytes")},
            **({"remarks": remarks} if remarks else {}),
            "found": [{"name": direction.name, **direction.notes} for direction in directions],
        }
        line = result_line(len(directions), "direction", cost["seconds"])
        show_line(line)
        return io.NodeOutput(directions, json.dumps(report, indent=1), ui=ui.PreviewText(line))


def _each(inversion: Inversion) -> Iterator[Inversion]:
    """The pictures of a batch, one at a time, without sliders."""
    samples, paths = inversion.latent["samples"], inversion.paths
    for number in range(len(samples)):
        own = slice(number, number + 1)
        yield replace(
            inversion,
            latent={"samples": samples[own]},
            paths=replace(paths, base=paths.base[own]),
            sliders=(),
        )


def _features(model: ModelPatcher, inversion: Inversion, block: int) -> tuple[Tensor, dict]:
    """The features of one picture (1, ...) on the CPU, and the cost."""

    def body(search: Search) -> Tensor:
        return search.denoiser.features.read(search.x, search.sigma, SOURCE).cpu()

    return at_picture(model, inversion, body, expected=1, block=block)


def _basis(model: ModelPatcher, inversion: Inversion, count: int, block: int) -> tuple[LocalBasis, dict]:
    """The local basis of one picture, its tensors on the CPU, and the cost."""

    def body(search: Search) -> LocalBasis:
        basis = local_basis(search, count)
        return replace(basis, moves=basis.moves.cpu(), changes=basis.changes.cpu())

    return at_picture(model, inversion, body, expected=5 + pairs_evaluations(count), block=block)


def _mean(bases: list[Tensor], how: str) -> tuple[Tensor, list[dict]]:
    """The mean of orthonormal changes of the features (k, ...), and notes on each."""
    least = min(map(len, bases))
    bases = [basis[:least] for basis in bases]
    if how == SUBSPACE:
        mean = frechet_mean(bases)
        told = {"spread_in_radians": round(mean.spread, 4), "converged": mean.converged}
        return mean.vectors, [told] * len(mean.vectors)
    mean = matched_mean(bases)
    return mean.vectors, [{"agreement": round(float(length), 4)} for length in mean.agreement]


def _components(features: Tensor, count: int) -> tuple[Tensor, list[dict]]:
    """The principal components of the features (n, ...), and notes on each."""
    found = principal_components(features, count)
    return found.directions, [{"standard_deviation": float(value)} for value in found.deviations]


NODES = [FindCommonDirections]
