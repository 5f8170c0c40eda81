"""Measures of edits: along words by CLIP, by the demo model's attribute probe, and of how disentangled words are."""

from __future__ import annotations

import json
import time

import comfy.model_management
import comfy.ops
import comfy.utils
import torch
from comfy.clip_model import CLIPTextModel
from comfy.model_patcher import ModelPatcher
from comfy.sd1_clip import SDClipModel
from comfy_api.latest import io, ui
from torch import Tensor

from ..core.charts import bar_chart
from ..core.denoiser import SOURCE, Denoiser, EvaluationCounter
from ..core.errors import NoChangeError, printable
from ..core.inversion import invert
from ..core.metrics import LOGIT_SCALE, WordChange, change_along_words, disentanglement, distance
from ..core.search import NEGATIVE
from .anchored import without_anchor
from .caches import drop_step_caches
from .demo_model import CATEGORY as DEMO_CATEGORY
from .demo_model import readable_weights
from .encode import evaluations_of
from .errors import InputError, with_advice
from .host import counted, finite, first_noise, run
from .inputs import check_inputs
from .pictures import image_of, one_picture, picture_of
from .progress import SearchProgress, result_line, show_line
from .prompts import digest, negative_prompt, parse_pairs
from .sampling import noise_level, sample_euler, scale_at, schedule_from
from .sizes import refuse_size

MOST_PAIRS = 50
MOST_PLOTTED = 12  # pictures in a plot; the report has all
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
INVERSION = "backward euler"  # of the plain return, which follows the model up


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
            outputs=[io.Image.Output(display_name="plot"), io.String.Output(display_name="report")],
            is_output_node=True,
        )

    @classmethod
    @with_advice()
    def execute(cls, image, edited, clip_vision, clip, pairs, crop="center") -> io.NodeOutput:
        """Encode pictures and words, compare, and draw a bar for every pair and picture."""
        check_inputs(cls, locals())
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
        shown = _shown(len(edited))
        rows = [(" | ".join(pair), found.probability[k, shown].tolist()) for k, pair in enumerate(words)]
        plot = image_of(
            bar_chart(
                rows,
                title="How much more the edited picture shows it",
                axis="change of the probability of 'with' against 'without', by CLIP",
                limits=(-1.0, 1.0),
                series=_names(shown),
            )
        )
        show_line(result_line(len(edited), "picture", time.perf_counter() - began))
        return io.NodeOutput(plot, json.dumps(report, indent=1), ui=ui.PreviewImage(plot, cls=cls))


class MeasureDemo(io.ComfyNode):
    """What edits changed in the portraits of the demo model, attribute by attribute."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs of the node."""
        return io.Schema(
            node_id="LatentDirections_MeasureDemo",
            display_name="Measure Demo Portrait",
            category=DEMO_CATEGORY,
            description="Reads every attribute of drawn portraits before and after an edit: only for the demo model.",
            search_aliases=["attribute probe", "leakage", "measure edit"],
            inputs=[
                io.Image.Input("image", tooltip="The portrait before the edit."),
                io.Image.Input("edited", tooltip="The edited portrait, or a batch of them."),
            ],
            outputs=[io.Image.Output(display_name="plot"), io.String.Output(display_name="report")],
            is_output_node=True,
        )

    @classmethod
    @with_advice()
    def execute(cls, image, edited) -> io.NodeOutput:
        """Read both by the probe, compare, and draw a bar for every attribute and picture."""
        check_inputs(cls, locals())
        image = one_picture(image)
        from ..demo.measures import Reader, changes
        from ..demo.world import SIZE

        with readable_weights():
            reader = Reader()
        before, after = (reader.read([picture_of(one) for one in pictures]) for pictures in (image, edited))
        found = changes(before, after)
        report = {
            "stage": "measure",
            "summary": _attributes_summary(found),
            "pictures": len(edited),
            "attributes": {
                name: {
                    "unit": change.unit,
                    "before": change.before if isinstance(change.before, str) else round(change.before, 4),
                    "after": [value if isinstance(value, str) else round(value, 4) for value in change.after],
                    "change": _rounded(change.change),
                }
                for name, change in found.items()
            },
        }
        if any(tuple(pictures.shape[1:3]) != (SIZE, SIZE) for pictures in (image, edited)):
            report["remarks"] = [f"The probe reads portraits of {SIZE} x {SIZE} pixels; these were resized to that."]
        shown = _shown(len(edited))
        rows = [(_attribute_label(name, change), _rounded(change.change[shown])) for name, change in found.items()]
        plot = image_of(
            bar_chart(
                rows,
                title="What the edit changed in the portrait",
                axis="standard deviations; for glasses, hat and classes, probability",
                limits=_even_limits(rows),
                series=_names(shown),
            )
        )
        show_line(report["summary"])
        return io.NodeOutput(plot, json.dumps(report, indent=1), ui=ui.PreviewImage(plot, cls=cls))


class MeasureDisentanglement(io.ComfyNode):
    """How far a picture strays where words are to change nothing, against what they change."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs of the node."""
        return io.Schema(
            node_id="LatentDirections_MeasureDisentanglement",
            display_name="Measure Disentanglement",
            category="latent directions",
            description=(
                "Edits a picture by words alone and back again, and says how much is lost on the way against how much"
                " the words change."
            ),
            search_aliases=["disentanglement score", "edit and back", "cycle consistency", "measure edit"],
            inputs=[
                io.Model.Input("model", tooltip="The model that edits the picture. It is not changed."),
                io.Vae.Input("vae", tooltip="The VAE of the model: it encodes and decodes the pictures."),
                io.Image.Input("image", tooltip="The picture. One, no batch."),
                io.Conditioning.Input("positive", tooltip="A prompt that describes the picture as it is."),
                io.Conditioning.Input("target", tooltip="The same prompt with one thing changed."),
                io.Float.Input(
                    "level",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How far back to go, as a share of the noise schedule. 0.4 to 0.7 is usual.",
                ),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=1000,
                    tooltip="Steps of each run. There are two runs to the noise and three back.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    advanced=True,
                    tooltip="Negative prompt, for nodes on the MODEL that ask for one. Guidance is 1.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="plot"),
                io.Image.Output(display_name="pictures"),
                io.String.Output(display_name="report"),
            ],
            is_output_node=True,
        )

    @classmethod
    @with_advice()
    def execute(cls, model, vae, image, positive, target, level=0.5, steps=20, negative=None) -> io.NodeOutput:
        """Encode, sample under both prompts, edit back, and compare the pictures."""
        check_inputs(cls, locals())
        image, level, steps = one_picture(image), float(level), int(steps)
        if _state(positive) == _state(target):
            msg = "'positive' and 'target' are the same prompt."
            raise NoChangeError(msg)
        route = _PlainRoute(model, vae, level, steps, negative)
        before = vae.vae_encode_crop_pixels(image)[..., :3]
        latent = route.encoded(image)
        noise = route.noise(latent, positive)
        unedited, edited = (route.sampled(noise, latent, prompt) for prompt in (positive, target))
        pictures = [before.to(unedited), unedited, edited]
        if before.shape != unedited.shape:
            msg = (
                f"'vae' gives a picture of {before.shape[2]} x {before.shape[1]} pixels back as one of"
                f" {unedited.shape[2]} x {unedited.shape[1]}, which cannot be compared with it. Resize 'image' to a"
                " size that the VAE gives back."
            )
            raise InputError(msg)
        by_vae = distance(pictures[0], route.decoded(latent["samples"]))
        latent = route.encoded(edited)
        pictures.append(route.sampled(route.noise(latent, target), latent, positive))
        found = disentanglement(*pictures)
        report = {
            "stage": "measure",
            "summary": (
                f"Disentanglement score {found.score:.3g}, lower is better: unedited, the picture strays by"
                f" {found.unedited:.3g}, edited and back by {found.edited_back:.3g}, and the words change it by"
                f" {found.change:.3g} (root mean square, white is 1)."
            ),
            "score": _round(found.score),
            "unedited": _round(found.unedited),
            "edited_back": _round(found.edited_back),
            "change": _round(found.change),
            "vae_alone": _round(by_vae),
            "sigma": route.sigma,
            "steps": len(route.sigmas) - 1,
            "model_evaluations": route.counter.evaluations,
            "seconds": round(time.perf_counter() - route.began, 3),
        }
        if route.remarks:
            report["remarks"] = list(dict.fromkeys(route.remarks))
        rows = [
            ("not edited: distance to the picture", found.unedited),
            ("edited and back: distance to the picture", found.edited_back),
            ("what the words change", found.change),
        ]
        plot = image_of(
            bar_chart(
                rows,
                title=f"Disentanglement score {found.score:.3g}, lower is better",
                axis="root mean square over the pixels; white is 1",
                highlighted={2},
                form="{:.3g}",
            )
        )
        show_line(report["summary"])
        batch = torch.cat([picture.float().cpu() for picture in pictures])
        return io.NodeOutput(plot, batch, json.dumps(report, indent=1), ui=ui.PreviewImage(plot, cls=cls))


class _PlainRoute:
    """Encodes and samples pictures without the anchor, at guidance 1; counts and shows the evaluations."""

    def __init__(self, model: ModelPatcher, vae, level: float, steps: int, negative: list | None):
        self.model, self.vae = without_anchor(model), vae
        self.remarks = drop_step_caches(self.model.wrappers)
        self.negative = negative_prompt(self.model, 1.0, negative)
        self.model_sampling = self.model.get_model_object("model_sampling")
        self.sigma = noise_level(self.model_sampling, level, 0.0)
        scale_at(self.model, self.sigma)  # refuses what has no noise or no picture left there
        self.sigmas = schedule_from(self.model_sampling, "simple", steps, self.sigma)
        self.began, taken = time.perf_counter(), len(self.sigmas) - 1
        expected = 2 * evaluations_of(INVERSION, taken) + 3 * taken
        self.counter = EvaluationCounter(on_change=SearchProgress(expected))

    def encoded(self, image: Tensor) -> dict:
        """The LATENT of a picture, of a kind that the model takes."""
        samples = self.vae.encode(image)
        channels = self.model.get_model_object("latent_format").latent_channels
        if samples.shape[1] != channels:
            msg = (
                f"'vae' makes latents of {samples.shape[1]} channels, but 'model' works with {channels}. Connect the"
                " VAE that belongs to this model."
            )
            raise InputError(msg)
        if not torch.isfinite(samples).all():
            msg = (
                "'vae' encodes the picture as values that are not numbers (NaN or infinity). Start ComfyUI with"
                " --fp32-vae."
            )
            raise InputError(msg)
        return {"samples": samples}

    def noise(self, latent: dict, prompt: list) -> Tensor:
        """The noise that a latent is inverted to under a prompt, for ComfyUI's samplers."""
        ascending = [float(sigma) for sigma in self.sigmas.flip(0) if sigma > 0]

        def body(denoiser: Denoiser, x0: Tensor) -> Tensor:
            return denoiser.noise_of(finite(invert(denoiser, x0, ascending, method=INVERSION)), x0, self.sigma)

        prompts = {SOURCE: prompt, **self.negative}
        try:
            with counted(self.model, self.counter):
                found, cost = run(self.model, prompts, latent, self.sigma, body)
        except RuntimeError as error:
            refuse_size(self.model, latent["samples"].shape, error)
            raise
        self.remarks += cost.get("remarks", [])
        return first_noise(found.cpu(), self.model_sampling, self.sigmas[0])

    def sampled(self, noise: Tensor, latent: dict, prompt: list) -> Tensor:
        """The picture that sampling from a noise gives under a prompt, (1, H, W, 3) with values 0 to 1."""
        with counted(self.model, self.counter):
            samples = sample_euler(self.model, noise, self.sigmas, prompt, latent, self.negative.get(NEGATIVE))
        return self.decoded(finite(samples))

    def decoded(self, samples: Tensor) -> Tensor:
        """The picture of a latent, (1, H, W, 3) with values 0 to 1."""
        decoded = finite(self.vae.decode(samples))
        return decoded.reshape(-1, *decoded.shape[-3:])[:1, ..., :3].clamp(0, 1)


def _state(prompt: list) -> list:
    """What is equal where two conditionings are."""

    def of(value):
        return digest(value) if isinstance(value, Tensor) else id(value) if value is not None else None

    return [(of(tokens), sorted((name, str(of(value))) for name, value in extra.items())) for tokens, extra in prompt]


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
            "probability_before": _round(found.probability_before[k]),
            "probability_after": _rounded(found.probability_after[k]),
            "change": _rounded(found.probability[k]),
            "cosine_difference_before": _round(found.difference_before[k]),
            "cosine_difference_after": _rounded(found.difference_after[k]),
            "cosine_change": _rounded(found.difference[k]),
            "directional_similarity": _rounded(found.directional[k]),
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
        "similarity_to_the_picture_before": _rounded(found.similarity),
        "mean_cosine": _round(found.mean_cosine),
    }


def _attributes_summary(found: dict) -> str:
    """What changed most in the last picture, in words."""
    order = sorted(found, key=lambda name: -abs(found[name].change[-1]))
    said = [f"{_attribute_label(name, found[name])} {found[name].change[-1]:+.2f}" for name in order[:3]]
    which = "" if len(found[order[0]].change) == 1 else " in the last picture"
    return f"Changed most{which}: {', '.join(said)}."


def _attribute_label(name: str, change) -> str:
    """An attribute in words; of classes also the one before, whose probability it is."""
    words = name.replace("_", " ")
    return f"{words}: {change.before}" if isinstance(change.before, str) else words


def _even_limits(rows: list[tuple[str, list[float | None]]]) -> tuple[float, float]:
    """An axis to both sides as far as the values need, at least to 1, in whole numbers."""
    most = max((abs(value) for _, values in rows for value in values if value is not None), default=0.0)
    end = float(max(1, -int(-most // 1)))
    return -end, end


def _shown(count: int) -> list[int]:
    """The pictures that a plot shows: all, or the first, the last and some evenly between them."""
    if count <= MOST_PLOTTED:
        return list(range(count))
    return [round(k * (count - 1) / (MOST_PLOTTED - 1)) for k in range(MOST_PLOTTED)]


def _names(shown: list[int]) -> list[str]:
    return [f"picture {k + 1}" for k in shown] if len(shown) > 1 else []


def _round(value) -> float | None:
    """A number for a report, in six significant digits; None where it is none."""
    value = float(value)
    return float(f"{value:.6g}") if value == value else None


def _rounded(values) -> list[float | None]:
    return [_round(value) for value in values]


NODES = [MeasureWords, MeasureDisentanglement, MeasureDemo]
