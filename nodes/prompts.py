"""From ComfyUI's CONDITIONING to the core's prompts and back, and the prompts beside the artist's in a guider."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import comfy.hooks
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..core.denoiser import SOURCE
from ..core.direction import KeepPair, Prompt
from ..core.errors import printable, size_in_words
from ..core.methods import METHODS
from .errors import InputError

KEY = "latent_directions"  # of what this pack puts into a MODEL's or a guider's dictionaries
POOLED = "pooled_output"  # ComfyUI's name of the pooled vector
# Entries that text encoders leave out for some prompts, so that they are removed before those of another are put in.
LEFT_OUT = ("attention_mask", "conditioning_byt5small")
# Tensors in an entry that are no part of its text; the pooled vector has a place of its own.
NOT_TEXT = (POOLED, "mask", "concat_latent_image", "concat_mask")
LEFT_OUT_OF_PROMPT = (
    "Beside tensors the text encoder gives {}, which a direction cannot hold. It was left out of the words of the"
    " direction and of 'keep'; what the picture's own prompt has of it stays in force."
)
LATER_LEFT_OUT = (
    "The text encoder gives several prompts for different parts of the schedule, as hooks on a CLIP make it do. Of the"
    " words of the direction and of 'keep' only the first is taken."
)
OWN_PROMPT = "Connect a prompt from the text encoder that belongs to the model."
OWN_CLIP = "Connect the 'clip' that belongs to the model, or find the direction again with it."
EDITED = "edited"  # the artist's own positive prompt in a sampling run, edited or not

_names: weakref.WeakKeyDictionary[Prompt, str] = weakref.WeakKeyDictionary()


def encode_text(clip, text: str, remarks: list[str] | None = None) -> Prompt:
    """The embedding of a text by the artist's CLIP: its tensors.

    Args:
        clip: the text encoder.
        text: what it encodes.
        remarks: gets a sentence on what the encoder gives beside tensors and plain values, once.
    """
    entry, *others = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    # plain values, such as a number of layers, are the same for all texts
    plain = (Tensor, str, int, float, type(None))
    left_out = [name for name, part in entry[1].items() if not isinstance(part, plain)]
    said = [LEFT_OUT_OF_PROMPT.format(printable(", ".join(map(repr, sorted(left_out))), 200))] if left_out else []
    said += [LATER_LEFT_OUT] if others else []
    if remarks is not None:
        remarks.extend(sentence for sentence in said if sentence not in remarks)
    return _prompt_in(entry)


def prompt_of(conditioning: list, name: str, like: list) -> Prompt:
    """The prompt in a CONDITIONING of one entry, for text encoders that are nodes of their own.

    Only what a text encoder gives is taken: reference latents, areas, hooks and other settings are those of the
    picture's own prompt.

    Args:
        conditioning: of the input `name`.
        name: for the sentence of an error.
        like: the picture's own prompt, by an encoder of the same kind.

    Raises:
        InputError: there are several entries, or they come from another text encoder than the picture's.
    """
    if len(conditioning) > 1:
        msg = (
            f"'{name}' holds {len(conditioning)} prompts (combined, in areas or in turn), but a slider compares two"
            " single ones. Connect one text encoder's output, and set areas and masks on the prompt of Encode Picture:"
            " they hold for the slider too."
        )
        raise InputError(msg)
    prompt = _prompt_in(conditioning[0])
    _check_encoder(prompt, like[0], f"'{name}' comes", OWN_PROMPT)
    return prompt


def _prompt_in(entry: list) -> Prompt:
    tokens, settings = entry
    extra = {name: part for name, part in settings.items() if isinstance(part, Tensor) and name not in NOT_TEXT}
    return Prompt(tokens, settings.get(POOLED), extra)


def with_prompt(conditioning: list, prompt: Prompt) -> list:
    """Every entry of a conditioning with another text in it; its other settings (area, mask, control) are kept."""
    if prompt.is_change:
        return _changed(conditioning, prompt)
    entries = []
    for tokens, extra in conditioning:
        _check_encoder(prompt, [tokens, extra], "The words come", OWN_CLIP)
        entry = {name: value for name, value in extra.items() if name not in LEFT_OUT}
        # what a file holds could be meant for anything; only what text encoders give takes the place of its like
        entry |= {name: part for name, part in prompt.extra.items() if name in LEFT_OUT or _is_like(part, extra, name)}
        if prompt.pooled is not None:
            entry[POOLED] = prompt.pooled
        entries.append([prompt.tokens, entry])
    return entries


def _is_like(part: Tensor, extra: dict, name: str) -> bool:
    """Whether an entry has such a tensor as a part of its text."""
    own = extra.get(name)
    return name not in NOT_TEXT and isinstance(own, Tensor) and own.ndim == part.ndim


def _check_encoder(prompt: Prompt, entry: list, subject: str, what_to_do: str) -> None:
    """Refuse a prompt of another text encoder than an entry's: one whose tokens or pooled vector have another width."""
    tokens, extra = entry
    own, pooled = extra.get(POOLED), prompt.pooled
    widths = {"a token": (prompt.tokens.shape[2:], tokens.shape[2:])}
    if pooled is not None and own is not None:
        widths["the pooled vector"] = pooled.shape[1:], own.shape[1:]
    for what, (here, there) in widths.items():
        if here != there:
            msg = (
                f"{subject} from another text encoder than the prompt of Encode Picture: {what} has"
                f" {' x '.join(map(str, here))} numbers, in that prompt {' x '.join(map(str, there))}. {what_to_do}"
            )
            raise InputError(msg)


def _changed(conditioning: list, change: Prompt) -> list:
    """Every entry of a conditioning with a change added to its tensors."""
    entries = []
    for tokens, extra in conditioning:
        if tokens.shape[1:] != change.tokens.shape[1:]:
            msg = (
                f"The direction's words fill {change.tokens.shape[1]} slots of width {change.tokens.shape[2]}, but this"
                f" prompt has {tokens.shape[1]} of width {tokens.shape[2]}. Find the direction again: a file of this"
                " version fits prompts of any length."
            )
            raise InputError(msg)
        entry = dict(extra)
        for name, part in {POOLED: change.pooled, **change.extra}.items():
            if part is None or entry.get(name) is None:
                continue
            if entry[name].shape[1:] != part.shape[1:]:
                msg = (
                    f"The direction's words and this prompt differ in the size of '{name}' ({size_in_words(part)} and"
                    f" {size_in_words(entry[name])}). Find the direction again: a file of this version fits prompts of"
                    " any length."
                )
                raise InputError(msg)
            entry[name] = entry[name] + part.to(entry[name])
        entries.append([tokens + change.tokens.to(tokens), entry])
    return entries


def holds_prompt(conditioning: list, prompt: Prompt) -> bool:
    """Whether a conditioning holds this prompt already, so that putting it in would change nothing."""
    return same_conditioning(conditioning, with_prompt(conditioning, prompt))


def same_conditioning(value, other) -> bool:
    """Whether two conditionings, or what is in them, are equal; what is no tensor or plain value by identity."""
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return value is other or (value.shape == other.shape and torch.equal(value, other.to(value)))
    if isinstance(value, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(value) == len(other) and all(map(same_conditioning, value, other))
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(same_conditioning(value[name], other[name]) for name in value)
    return value is other or (isinstance(value, (str, int, float)) and value == other)


def parse_pairs(text: str, name: str, purpose: str) -> list[tuple[str, str]]:
    """Pairs 'with | without', one a line; empty lines do not count.

    An InputError names the input and says what the words with are for, such as "what is to stay".
    """
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        parts = [part.strip() for part in line.split("|")]
        if len(parts) != 2 or not all(parts) or parts[0] == parts[1]:
            msg = (
                f"Line {number} of '{name}' is {printable(line.strip(), 60)!r}. Write two different prompts with a bar"
                f" between them: one with {purpose} and one without it, such as 'a person with glasses | a person"
                " without glasses'."
            )
            raise InputError(msg)
        pairs.append((parts[0], parts[1]))
    return pairs


def parse_keep(text: str) -> list[tuple[str, str]]:
    """The pairs of 'keep'."""
    return parse_pairs(text, "keep", "what is to stay")


def keep_pairs(clip, text: str, remarks: list[str] | None = None) -> tuple[KeepPair, ...]:
    """The keep prompts, encoded; the name of a pair is its 'with' prompt. `remarks` is as in `encode_text`."""
    return tuple(
        KeepPair(present, encode_text(clip, present, remarks), encode_text(clip, absent, remarks))
        for present, absent in parse_keep(text)
    )


def negative_prompt(model: ModelPatcher, guidance: float, negative: list | None) -> dict[str, list]:
    """The negative prompt by its name where guidance or a patch of the MODEL needs it; InputError without one."""
    always = model.model_options.get("disable_cfg1_optimization", False)
    if guidance <= 1 and not always:
        return {}
    if negative is None:
        msg = (
            "'guidance' is above 1, which needs a 'negative' prompt to guide away from. Connect one (it may be empty"
            " text), or set it to 1."
        )
        if guidance <= 1:
            msg = (
                "A node on the MODEL (such as Self-Attention Guidance) asks for a 'negative' prompt at any guidance."
                " Connect one (it may be empty text), or connect the model from before that node."
            )
        raise InputError(msg)
    return {"negative": negative}


def wrong_words(method: object, source: object, target: object) -> tuple[str, str] | None:
    """The name of an input that the method cannot compare, and a sentence about it; None where all is well.

    Values that are no text are ignored, such as the link or the None that stands for a linked input before a run.
    """
    if not isinstance(method, str) or method not in METHODS or not METHODS[method].compares_words:
        return None
    purposes = {
        "source": "the method compares it with 'target'",
        "target": "the method needs to know what strength 1 should show",
    }
    for (name, purpose), value in zip(purposes.items(), (source, target), strict=True):
        if isinstance(value, str) and not value.strip():
            return name, f"'{name}' is empty, but {purpose}. Write a short prompt there."
    if isinstance(source, str) and isinstance(target, str) and source.strip() == target.strip():
        msg = (
            "'source' and 'target' are the same, so there is no change to move along. Write in 'target' what strength 1"
            " should show."
        )
        return "target", msg
    return None


def prompt_name(prompt: Prompt) -> str:
    """A name that equal prompts share, by which the anchored prediction asks for them; computed once a prompt."""
    if prompt not in _names:
        kind = "change" if prompt.is_change else "prompt"
        parts = sorted(prompt.parts().items())
        _names[prompt] = " ".join([kind, *(f"{name} {digest(part)}" for name, part in parts)])
    return _names[prompt]


def digest(tensor: Tensor) -> str:
    """A key that equal tensors share."""
    value = tensor.detach().cpu().contiguous()
    kind = f"{value.dtype} {tuple(value.shape)}".encode()
    return hashlib.sha256(kind + value.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


class RunPrompts:
    """The prompts of one sampling run by their names: the picture's own as SOURCE, ours, the sampler's own as EDITED.

    A guider prepares its prompts together: an area or a ControlNet of one may be given to the others. So ours are
    prepared on their own, with the guider's other prompts (its negative), and the sampler's own is what it would be
    without us.
    """

    def __init__(self, guider: comfy.samplers.CFGGuider, source: list, prompts: Iterable[Prompt]):
        """Take over the prompts of a guider that has not prepared them yet; `source` is the picture's own."""
        named = {SOURCE: source} | {prompt_name(prompt): with_prompt(source, prompt) for prompt in prompts}
        self.own = {name: comfy.sampler_helpers.convert_cond(conds) for name, conds in named.items()}
        asked = guider.original_conds["positive"]
        same = same_conditioning(*map(_without_uuid, (self.own[SOURCE], asked)))
        self.asked_with = SOURCE if same else EDITED
        self._others = {name: conds for name, conds in guider.conds.items() if name != "positive"}
        self._prepared: dict[str, list[dict]] = {}
        _check_hooks(self.own[SOURCE], guider)
        comfy.samplers.preprocess_conds_hooks(self.own)
        comfy.samplers.filter_registered_hooks_on_conds(self.own, guider.model_options)

    def prepare(self, guider: comfy.samplers.CFGGuider, *point, **options) -> None:
        """Bring ours into the form that the model takes, as the guider has done with its own.

        Args:
            guider: in its sampling.
            point: noise, device, latent, noise mask and seed, as `comfy.samplers.process_conds` takes them.
            options: what else it takes.
        """
        conds = {_key(name): conds for name, conds in self.own.items()} | self._others
        self._prepared = comfy.samplers.process_conds(guider.inner_model, point[0], conds, *point[1:], **options)
        if not any(map(_reaches_others, (*self.own[SOURCE], *guider.original_conds["positive"]))):
            # then they are equal, and the network is asked for them once
            self._prepared |= {name: guider.conds[name] for name in self._others}

    def positive(self, guider: comfy.samplers.CFGGuider, name: str) -> list[dict]:
        """A prompt by its name, prepared."""
        return guider.conds["positive"] if name == EDITED else self._prepared[_key(name)]

    @contextmanager
    def as_positive(self, guider: comfy.samplers.CFGGuider, name: str) -> Iterator[None]:
        """Let a guider answer for a prompt by its name."""
        conds = guider.conds
        if name != EDITED:
            guider.conds = self._prepared | {"positive": self.positive(guider, name)}
        try:
            yield
        finally:
            guider.conds = conds


def _key(name: str) -> str:
    """The key of a prompt of ours in a guider; ComfyUI knows the picture's own by its key."""
    return "positive" if name == SOURCE else f"{KEY} {name}"


def _without_uuid(conds: list[dict]) -> list[dict]:
    """A prompt as guiders have it, without the number that ComfyUI draws for each of its entries."""
    return [{name: value for name, value in entry.items() if name != "uuid"} for entry in conds]


def _reaches_others(entry: dict) -> bool:
    """Whether ComfyUI makes something of a positive prompt's entry hold for the negative too."""
    return any(entry.get(name) for name in ("area", "set_area_to_bounds", "control_apply_to_uncond", "gligen"))


def _check_hooks(source: list[dict], guider: comfy.samplers.CFGGuider) -> None:
    """Refuse a run without the hooks of the picture's prompt: ComfyUI loads those of the sampler's prompts alone."""
    wanted, loaded = comfy.hooks.HookGroup(), comfy.hooks.HookGroup()
    comfy.sampler_helpers.get_hooks_from_cond(source, wanted)
    for conds in guider.original_conds.values():
        comfy.sampler_helpers.get_hooks_from_cond(conds, loaded)
    if not wanted.is_subset_of(loaded):
        msg = (
            "The prompt that Encode Picture was given has hooks (a LoRA of its own, say) that the sampler's prompt does"
            " not have, and without them the picture would not come back. Connect the CONDITIONING of the Direction"
            " Slider to the sampler, or put the same hooks on the sampler's prompt."
        )
        raise InputError(msg)
