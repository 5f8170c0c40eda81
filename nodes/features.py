"""Inner features of a MODEL's network: which layer they are taken from, and how they are read while the network runs.

The network's code is not changed. A hook on the layer keeps what the layer gives back and ends the run there, so that
the layers after it cost nothing. In a U-Net the features are those before a ControlNet's output is added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.errors import NotFiniteError
from .errors import InputError, UnsupportedModelError

MIDDLE = 0  # the number that stands for the block in the middle
MIDDLE_BLOCK = "middle block"
WITHOUT = "use a method of Find Directions that reads no features, such as 'LOCO'"
KNOWN = (
    "the U-Nets of Stable Diffusion, SDXL and Load Diffusers Model, SD3, Flux, Chroma, Qwen-Image, Lumina 2, Z-Image, "
    "AuraFlow, PixArt, HunyuanDiT, Wan, Cosmos-Predict2 and Anima"
)


@dataclass
class Seen:
    """What hooks saw of one call of the network.

    Attributes:
        x: the network's input, with a row for every latent and every entry of `labels`.
        inputs: its inputs by name.
        options: the transformer options that the block was given, where it was given any.
        image: the layer's output that holds the picture, for the whole batch; None before the layer has run.
    """

    x: Tensor
    inputs: dict
    options: dict = field(default_factory=dict)
    image: Tensor | None = None

    @property
    def labels(self) -> list[int]:
        """For each part of the batch, 0 where it is the positive prompt and 1 where it is the negative."""
        return self.inputs.get("transformer_options", {}).get("cond_or_uncond") or [0]


def _nothing(_network: torch.nn.Module, _seen: Seen, _count: int) -> int:
    return 0


def _references(_network: torch.nn.Module, seen: Seen, _count: int) -> int:
    """Tokens of the reference pictures of a prompt (Flux Kontext, Flux.2, Qwen-Image-Edit)."""
    return sum(seen.options.get("reference_image_num_tokens", ()))


def _text_of_flux(_network: torch.nn.Module, seen: Seen, _count: int) -> int:
    return seen.options.get("img_slice", (0,))[0]


def _text_of_aura(network: torch.nn.Module, seen: Seen, _count: int) -> int:
    return network.register_tokens.shape[1] + seen.inputs["context"].shape[1]


def _text_of_lumina(network: torch.nn.Module, seen: Seen, _count: int) -> int:
    tokens = seen.inputs["context"].shape[1]
    return tokens + _padding_of_lumina(network, seen, tokens)


def _padding_of_lumina(network: torch.nn.Module, _seen: Seen, count: int) -> int:
    """Tokens that are added to `count` of them; Z-Image fills them up to a multiple, Lumina 2 does not."""
    return -count % (network.pad_tokens_multiple or 1)


@dataclass(frozen=True)
class Tokens:
    """Where the image tokens are in what a block of a transformer gives back.

    Attributes:
        output: which of the block's outputs holds them; None where it gives back one tensor.
        before: (network, what was seen, number of image tokens) -> number of other tokens before them in that output.
        after: the same of other tokens after them.
    """

    output: int | None = None
    before: Callable[[torch.nn.Module, Seen, int], int] = _nothing
    after: Callable[[torch.nn.Module, Seen, int], int] = _references


@dataclass(frozen=True)
class Layer:
    """A layer of a network that features are taken from.

    Attributes:
        network: the network that it belongs to.
        module: the layer itself.
        name: what it is called in reports, such as "middle block" or "joint_blocks 12 of 24".
        tokens: where the image tokens are in its output; None for a U-Net, whose layers give back pictures alone.
    """

    network: torch.nn.Module
    module: torch.nn.Module
    name: str
    tokens: Tokens | None = None


FLUX_BLOCKS = {"double_blocks": Tokens(output=0), "single_blocks": Tokens(before=_text_of_flux)}
# The lists of blocks of ComfyUI's transformers, in the order in which they run, by the name of the class in comfy.ldm.
TRANSFORMERS: dict[str, dict[str, Tokens]] = {
    "modules.diffusionmodules.mmdit.MMDiT": {"joint_blocks": Tokens(output=1)},
    "flux.model.Flux": FLUX_BLOCKS,
    "chroma.model.Chroma": FLUX_BLOCKS,
    "qwen_image.model.QwenImageTransformer2DModel": {"transformer_blocks": Tokens(output=1)},
    "lumina.model.NextDiT": {"layers": Tokens(before=_text_of_lumina, after=_padding_of_lumina)},
    "aura.mmdit.MMDiT": {"double_layers": Tokens(output=1), "single_layers": Tokens(before=_text_of_aura)},
    "pixart.pixartms.PixArtMS": {"blocks": Tokens()},
    "hydit.models.HunYuanDiT": {"blocks": Tokens()},
    "wan.model.WanModel": {"blocks": Tokens()},
    "cosmos.predict2.MiniTrainDIT": {"blocks": Tokens()},
}
UNET = "modules.diffusionmodules.openaimodel.UNetModel"


def find_layer(network: torch.nn.Module, block: int = MIDDLE) -> Layer:
    """The layer of a diffusion model that features are taken from.

    Args:
        network: `model.model.diffusion_model`, of ComfyUI or of Load Diffusers Model.
        block: number of the block, counted from 1 through all lists of blocks in the order in which they run; 0 takes
            the one in the middle. A U-Net has one, its middle block.

    Raises:
        UnsupportedModelError: no layer of such a network is known.
        InputError: it has no block of that number.
    """
    layers = _layers(network)
    if block == MIDDLE:
        return layers[(len(layers) - 1) // 2]
    if not 1 <= block <= len(layers):
        if len(layers) == 1:
            msg = f"'block' is {block}, but this model has one block that can be read: {layers[0].name}. Set it to 0."
        else:
            msg = (
                f"'block' is {block}, but this model has {len(layers)} blocks. Set it to a number from 1 to"
                f" {len(layers)}, or to 0 for the one in the middle."
            )
        raise InputError(msg)
    return layers[block - 1]


def _layers(network: torch.nn.Module) -> list[Layer]:
    """All layers of a network that can be read, in the order in which they run."""
    kinds = [f"{kind.__module__}.{kind.__qualname__}".removeprefix("comfy.ldm.") for kind in type(network).__mro__]
    of_diffusers = getattr(network, "unet", None)  # the network of Load Diffusers Model holds a whole U-Net
    if hasattr(of_diffusers, "mid_block"):
        return [_middle(network, of_diffusers.mid_block)]
    if UNET in kinds:
        # ComfyUI runs the parts of the middle block one by one, and never the block itself
        return [_middle(network, network.middle_block and network.middle_block[-1])]
    lists = next((TRANSFORMERS[kind] for kind in kinds if kind in TRANSFORMERS), {})
    layers = [
        Layer(network, block, f"{name} {number} of {len(getattr(network, name))}", tokens)
        for name, tokens in lists.items()
        for number, block in enumerate(getattr(network, name), 1)
    ]
    if not layers:
        msg = (
            f"No features can be read from this model: its network is of the class {type(network).__name__}, of which"
            f" no layer is known. They can be read from {KNOWN}. Load one of these, or {WITHOUT}."
        )
        raise UnsupportedModelError(msg)
    return layers


def _middle(network: torch.nn.Module, module: torch.nn.Module | None) -> Layer:
    if module is None:
        msg = (
            "No features can be read from this model: they are taken from the middle block of a U-Net, and this U-Net"
            f" is a smaller one that was made without it. Load a model that has one, or {WITHOUT}."
        )
        raise UnsupportedModelError(msg)
    return Layer(network, module, MIDDLE_BLOCK)


def check_readable(entries: Sequence[dict], sigma: float, model_options: dict) -> None:
    """Refuse what would be evaluated in several parts, of which a reading would see the first alone.

    Args:
        entries: a prompt as a guider holds it while it samples.
        sigma: the noise level.
        model_options: the options of the MODEL in this run.

    Raises:
        InputError: not one entry of the prompt, for the whole picture, holds at the noise level.
        UnsupportedModelError: copies of the network run on several graphics cards.
    """
    if "multigpu_clones" in model_options:
        msg = (
            "The MODEL is spread over several graphics cards, where its inner features cannot be read. Connect the"
            " MODEL from before the node that spreads it."
        )
        raise UnsupportedModelError(msg)
    holding = [
        entry
        for entry in entries
        if sigma <= entry.get("timestep_start", math.inf) and sigma >= entry.get("timestep_end", 0.0)
    ]
    if len(holding) != 1:
        what = "has several parts" if holding else "has no part that holds"
    elif "area" in holding[0] or "mask" in holding[0]:
        what = "is for an area or a mask"
    else:
        return
    msg = (
        f"A prompt {what} at noise level {sigma:.4g}, but the features inside the model are read for one prompt of the"
        " whole picture. Give a prompt that is one text, without areas, masks or combined conditionings."
    )
    raise InputError(msg)


class _Stop(BaseException):
    """Ends a run of the network at the layer that is read.

    No `Exception`, as ComfyUI's own cancel is none: what a node on the MODEL does with the errors of the network (try
    again in another way, say) is not for it.
    """


class Reading:
    """One reading of a layer: a context around one evaluation of the model, which ends it at the layer.

    The evaluation asks for the positive prompt, to which ComfyUI may add the negative in the same or in a second call.
    """

    def __init__(self, layer: Layer):
        """Prepare for a layer; hooks are on the network inside the context alone."""
        self.layer = layer
        self._hooks: list = []
        self._seen: Seen | None = None

    def __enter__(self) -> Reading:
        network, module = self.layer.network, self.layer.module
        self._hooks = [
            network.register_forward_pre_hook(self._at_network, with_kwargs=True),
            module.register_forward_hook(self._at_layer, with_kwargs=True),
        ]
        return self

    def __exit__(self, kind, _error, _traceback) -> bool:
        for hook in self._hooks:
            hook.remove()
        return kind is _Stop

    def _at_network(self, _network, args, kwargs) -> None:
        if self._seen is None or self._seen.image is None:
            self._seen = Seen(args[0], kwargs)

    def _at_layer(self, _module, _args, kwargs, output) -> None:
        seen, tokens = self._seen, self.layer.tokens
        if 0 not in seen.labels:
            return
        if seen.image is None:
            index = None if tokens is None else tokens.output
            image = output if index is None else output[index]
            # where a node on the MODEL catches _Stop and goes on, later layers may write into this tensor
            seen.image, seen.options = image.clone(), kwargs.get("transformer_options", {})
        raise _Stop

    def features(self, count: int) -> Tensor:
        """What the layer gave back for the positive prompt and `count` latents.

        Returns:
            (count, C, H, W) of a U-Net, (count, image tokens, width) of a transformer. Half precision is widened to
            float32, as ComfyUI widens predictions: the values are the same, but their norms do not overflow.

        Raises:
            UnsupportedModelError: the layer did not run, or its output is not as this family's is known to be.
            NotFiniteError: the features hold values that are not numbers.
        """
        layer, seen = self.layer, self._seen
        if seen is None or seen.image is None:
            msg = (
                f"The model did not run its layer '{layer.name}', so no features can be read from it: another node on"
                " the MODEL skips or replaces the layer. Choose another 'block', or connect the model from before that"
                " node."
            )
            raise UnsupportedModelError(msg)
        labels, image = seen.labels, seen.image
        if labels.count(0) != 1 or len(image) != count * len(labels):
            msg = (
                f"The layer '{layer.name}' gave back {len(image)} rows for {count} latents and {len(labels)} prompts,"
                " so it cannot be said which are the prompt's. Remove nodes that change the batch, or"
                f" {WITHOUT}."
            )
            raise UnsupportedModelError(msg)
        image = image.unflatten(0, (len(labels), count))[labels.index(0)]
        if layer.tokens is not None:
            image = _image_tokens(layer, seen, image.flatten(1, -2))
        image = image if image.dtype in (torch.float32, torch.float64) else image.float()
        if not torch.isfinite(image).all():
            msg = f"The features in the layer '{layer.name}' hold values that are not numbers (NaN or infinity)."
            raise NotFiniteError(msg)
        return image


def _image_tokens(layer: Layer, seen: Seen, tokens: Tensor) -> Tensor:
    """The image tokens among all of a block (p, tokens, width); UnsupportedModelError where they do not add up."""
    patch = patch_of(layer.network, seen.x.ndim - 2)
    count = math.prod(math.ceil(cells / side) for cells, side in zip(seen.x.shape[2:], patch, strict=True))
    before, after = (where(layer.network, seen, count) for where in (layer.tokens.before, layer.tokens.after))
    if tokens.shape[1] != before + count + after:
        msg = (
            f"The layer '{layer.name}' works on {tokens.shape[1]} tokens, but the picture has {count} and the prompt"
            f" {before + after} beside them, so it cannot be said which are the picture's. Leave out pictures and"
            f" nodes that add tokens of their own, or {WITHOUT}."
        )
        raise UnsupportedModelError(msg)
    return tokens[:, before : before + count]


def patch_of(network: torch.nn.Module, dimensions: int) -> tuple[int, ...]:
    """Cells of the latent that go into one token, along each of its last dimensions."""
    if hasattr(network, "patch_spatial"):
        return (network.patch_temporal, network.patch_spatial, network.patch_spatial)
    patch = network.patch_size
    return tuple(patch) if isinstance(patch, (tuple, list)) else (1,) * (dimensions - 2) + (patch, patch)
