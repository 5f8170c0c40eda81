"""Measure Along Words: what edits changed along pairs of words, by a matching pair of CLIP encoders."""

from __future__ import annotations

import json
import time

import comfy.model_management
import comfy.ops
import comfy.utils
import torch
from comfy.clip_model import CLIPTextModel
from comfy.sd1_clip import SDClipModel
from comfy_api.latest import io, ui
from torch import Tensor

from ..core.charts import bar_chart, require_matplotlib
from ..core.errors import printable
from ..core.metrics import LOGIT_SCALE, WordChange, change_along_words
from .errors import InputError, with_advice
from .inputs import check_inputs
from .measure_reports import picture_names, plotted, rounded, rounded_all
from .pictures import image_of, one_picture
from .progress import result_line, show_line
from .prompts import parse_pairs

MOST_PAIRS = 50
AT_ONCE = 8  # pictures that are encoded together
CROPS = {"center": True, "none": False}
# A projection that the text encoder's file does not have is left zero, or is whatever the memory held before.
FLAT = 1e-3  # smallest norm of a row against the middle one
# Cosines of pictures and words that belong together or not, by CLIP models, are about 0.1 to 0.35.
USUAL_COSINE = 0.05
NO_PROJECTION = (
    "'clip' has no text encoder of the CLIP kind with a projection into the space of pictures{}. Connect a CLIP such as"
    " that of SDXL or SD3, or Load CLIP with a file of a complete CLIP text model."
)


class MeasureWords(io.ComfyNode):
    """What edits changed along pairs of words, by a matching pair of CLIP text and vision encoders."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs of the node."""
        return io.Schema(
            node_id="LatentDirections_MeasureWords",
            display_name="Measure Along Words",
            category="latent directions",
            description=(
                "Says how much more an edited picture shows what the words say, by a CLIP text encoder and a CLIP"
                " vision model that belong together."
            ),
            search_aliases=["clip score", "directional similarity", "evaluate edit", "measure edit"],
            inputs=[
                io.Image.Input("image", tooltip="The picture before the edit."),
                io.Image.Input("edited", tooltip="The edited picture, or a batch of them."),
                io.ClipVision.Input("clip_vision", tooltip="The CLIP vision model, from Load CLIP Vision."),
                io.Clip.Input(
                    "clip",
                    tooltip=(
                        "The text encoder that was trained with 'clip_vision': CLIP-L with ViT-L, CLIP-G with ViT-bigG,"
                        " that of SD2 with ViT-H. Of several in one CLIP the one that fits is taken."
                    ),
                ),
                io.String.Input(
                    "pairs",
                    multiline=True,
                    default="",
                    placeholder="pairs: one a line, with | without",
                    tooltip=(
                        "What to measure, one pair a line: with | without. For example: a person with glasses | a"
                        " person without glasses"
                    ),
                ),
                io.Combo.Input(
                    "crop",
                    options=[*CROPS],
                    default="center",
                    advanced=True,
                    tooltip=(
                        "How a picture that is not square is made square: by its middle part, as CLIP was trained, or"
                        " squeezed as a whole."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="plot", tooltip="A chart of how much the edit follows each pair of words."
                ),
                io.String.Output(
                    display_name="report", tooltip="How much the edit follows each pair of words, as JSON."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    @with_advice()
    def execute(cls, image, edited, clip_vision, clip, pairs, crop="center") -> io.NodeOutput:
        """Encode pictures and words, compare, and draw a bar for every pair and picture."""
        check_inputs(cls, locals())
        require_matplotlib()
        image = one_picture(image)
        words = _pairs(pairs)
        width = _vision_width(clip_vision)
        name, part = _text_encoder(clip, width)
        began, texts = time.perf_counter(), list(dict.fromkeys(text for pair in words for text in pair))
        progress = comfy.utils.ProgressBar(1 + len(edited) + len(texts))
        before, after = (_embedded(clip_vision, pictures, CROPS[crop], progress) for pictures in (image, edited))
        vectors, remarks = _text_vectors(clip, name, part, texts, progress)
        present, absent = (torch.stack([vectors[pair[side]] for pair in words]) for side in (0, 1))
        found = change_along_words(before[0], after, present, absent)
        if abs(found.mean_cosine) < USUAL_COSINE:
            remarks.append(
                f"The cosines between these pictures and words are {found.mean_cosine:.3f} on average, where CLIP"
                " models that belong together give about 0.1 to 0.35: 'clip' and 'clip_vision' may be of different"
                " models, or the text encoder's file may lack its projection."
            )
        report = _words_report(words, found, name, width) | ({"remarks": remarks} if remarks else {})
        shown = plotted(len(edited))
        rows = [(" | ".join(pair), found.probability[k, shown].tolist()) for k, pair in enumerate(words)]
        plot = image_of(
            bar_chart(
                rows,
                title="How much more the edited picture shows it",
                axis="change of the probability of 'with' against 'without', by CLIP",
                limits=(-1.0, 1.0),
                series=picture_names(shown),
            )
        )
        show_line(result_line(len(edited), "picture", time.perf_counter() - began))
        return io.NodeOutput(plot, json.dumps(report, indent=1), ui=ui.PreviewImage(plot, cls=cls))


def _pairs(text: str) -> list[tuple[str, str]]:
    pairs = parse_pairs(text, "pairs", "what is to be measured")
    if not pairs:
        msg = (
            "'pairs' is empty, so there is nothing to measure. Write a pair a line, such as 'a person with glasses | a"
            " person without glasses'."
        )
        raise InputError(msg)
    if len(pairs) > MOST_PAIRS:
        msg = f"'pairs' holds {len(pairs)} pairs. Write at most {MOST_PAIRS}."
        raise InputError(msg)
    return pairs


def _vision_width(clip_vision) -> int:
    """Width of the space that a CLIP vision model projects into; InputError where it does not."""
    projection = getattr(getattr(clip_vision, "model", None), "visual_projection", None)
    if not isinstance(projection, torch.nn.Module):
        kind = getattr(clip_vision, "model_type", "") or type(clip_vision).__name__
        msg = (
            f"'clip_vision' is of the kind {printable(str(kind), 40)}, which has no projection into the space of a CLIP"
            " text encoder. Load a CLIP vision model such as CLIP-ViT-L, CLIP-ViT-H or CLIP-ViT-bigG."
        )
        raise InputError(msg)
    return projection.out_features


def _text_encoder(clip, width: int) -> tuple[str, SDClipModel]:
    """Name and module of the text encoder in a CLIP that projects into so wide a space; InputError without one."""
    model = getattr(clip, "cond_stage_model", None)
    parts = {
        name: part
        for name, part in (model.named_children() if isinstance(model, torch.nn.Module) else ())
        if isinstance(part, SDClipModel) and isinstance(part.transformer, CLIPTextModel)
    }
    if not parts:
        raise InputError(NO_PROJECTION.format(""))
    widths = {name: part.transformer.text_projection.out_features for name, part in parts.items()}
    fitting = [name for name in parts if widths[name] == width]
    if not fitting:
        have = ", ".join(f"{name} of width {widths[name]}" for name in parts)
        msg = (
            f"'clip' and 'clip_vision' do not belong together: the text encoder is {have}, but the vision model's"
            f" vectors have width {width}. Connect the text encoder that was trained with the vision model: CLIP-L"
            " (768) with ViT-L, that of SD2 (1024) with ViT-H, CLIP-G (1280) with ViT-bigG."
        )
        raise InputError(msg)
    whole = [name for name in fitting if _is_whole(parts[name].transformer.text_projection)]
    if not whole:
        raise InputError(NO_PROJECTION.format(f": the file of {' and '.join(fitting)} lacks it"))
    return whole[0], parts[whole[0]]


def _is_whole(projection: torch.nn.Module) -> bool:
    """Whether a projection was loaded: a file may lack it, as those of SD1.5 do."""
    weight = projection.weight
    weight = weight.dequantize() if isinstance(weight, comfy.ops.QuantizedTensor) else weight.detach()
    rows = weight.float().norm(dim=1)
    return bool(rows.isfinite().all()) and float(rows.min()) > FLAT * float(rows.median())


def _embedded(clip_vision, pictures: Tensor, crop: bool, progress: comfy.utils.ProgressBar) -> Tensor:
    """Projected embeddings of pictures, (N, C)."""
    found = []
    for some in pictures[..., :3].split(AT_ONCE):
        comfy.model_management.throw_exception_if_processing_interrupted()
        found.append(clip_vision.encode_image(some.clamp(0, 1), crop=crop)["image_embeds"])
        progress.update(len(some))
    return torch.cat(found)


def _text_vectors(
    clip, name: str, part: SDClipModel, texts: list[str], progress: comfy.utils.ProgressBar
) -> tuple[dict[str, Tensor], list[str]]:
    """The projected vector (C,) of each text by one encoder of a CLIP, and remarks on texts that are too long.

    ComfyUI's own call gives the vector that the diffusion model takes, which SD1, SD3 and Flux take unprojected from
    CLIP-L.
    """
    model, found, remarks = clip.cond_stage_model, {}, []
    try:
        for text in texts:
            comfy.model_management.throw_exception_if_processing_interrupted()
            tokens = clip.tokenize(text)
            sections = tokens[name if name in tokens else name.removeprefix("clip_")]
            if len(sections) > 1:
                remarks.append(f"Only the first {len(sections[0])} tokens count of the text '{printable(text, 60)}'.")
            model.reset_clip_options()
            clip.load_model(tokens)
            device = clip.patcher.load_device
            part.set_clip_options({"execution_device": device, "projected_pooled": True})
            with comfy.model_management.cuda_device_context(device):
                found[text] = part.encode_token_weights(sections)[1][0]
            progress.update(1)
    finally:
        model.reset_clip_options()
    return found, remarks


def _words_report(words: list[tuple[str, str]], found: WordChange, name: str, width: int) -> dict:
    """The report of Measure Along Words."""
    entries = [
        {
            "with": present,
            "without": absent,
            "probability_before": rounded(found.probability_before[k]),
            "probability_after": rounded_all(found.probability_after[k]),
            "change": rounded_all(found.probability[k]),
            "cosine_difference_before": rounded(found.difference_before[k]),
            "cosine_difference_after": rounded_all(found.difference_after[k]),
            "cosine_change": rounded_all(found.difference[k]),
            "directional_similarity": rounded_all(found.directional[k]),
        }
        for k, (present, absent) in enumerate(words)
    ]
    return {
        "stage": "measure",
        "measure": f"change of the probability of 'with' against 'without', CLIP's cosines times {LOGIT_SCALE:g}",
        "text_encoder": name,
        "width": width,
        "pictures": found.difference_after.shape[1],
        "pairs": entries,
        "similarity_to_the_picture_before": rounded_all(found.similarity),
        "mean_cosine": rounded(found.mean_cosine),
    }


NODES = [MeasureWords]
