"""The inputs of Find Directions."""

from __future__ import annotations

from comfy_api.latest import io

from ..core.methods import METHODS, names_of_methods_that_read
from ..core.search import AUTOMATIC, DERIVATIVES
from .search_words import EVERYWHERE, FOUND
from .sockets import InversionSocket
from .words import LISTS

DEFAULT = next(iter(METHODS))


def inputs() -> list[io.Input]:
    """All of them, in the order in which the page shows them; tooltips read the table of methods."""
    return [
        io.Model.Input("model", tooltip="The same model that Invert Image used."),
        InversionSocket.Input("inversion", tooltip="The encoded picture, from Invert Image."),
        io.Combo.Input(
            "method",
            options=list(METHODS),
            default=DEFAULT,
            tooltip=" ".join(f"{method.name}: {method.summary}." for method in METHODS.values()),
        ),
        io.String.Input("source", default="", tooltip="What the picture shows now, such as 'a sad woman'."),
        io.String.Input("target", default="", tooltip="What strength 1 should show, such as 'a smiling woman'."),
        io.String.Input(
            "keep",
            default="",
            multiline=True,
            tooltip=(
                "What must not change along: one pair a line, 'with | without', such as 'a woman with "
                "glasses | a woman without glasses'."
            ),
        ),
        io.Clip.Input(
            "clip",
            optional=True,
            tooltip=(
                "Text encoder of the model; needed for every method with words. With 'explore' it names what is found."
            ),
        ),
        *(
            io.Conditioning.Input(
                f"{name}_conditioning",
                optional=True,
                tooltip=(
                    f"In place of '{name}': the prompt from a text encoder node of its own, for edit models"
                    " whose prompts need the picture, such as Qwen-Image-Edit."
                ),
            )
            for name in ("source", "target")
        ),
        io.Mask.Input("mask", optional=True, tooltip="Where the change should happen. Not connected: as 'where' says."),
        io.Int.Input(
            "count",
            default=3,
            min=1,
            max=32,
            tooltip=(f"How many directions to find, for {names_of_methods_that_read('count')}; others find one."),
        ),
        io.Int.Input(
            "hold_outside",
            default=5,
            min=0,
            max=64,
            advanced=True,
            tooltip=(
                f"{names_of_methods_that_read('null_rank')}: how many changes of what lies outside the mask"
                " are ruled out, the strongest first."
            ),
        ),
        io.String.Input(
            "free",
            default="",
            advanced=True,
            tooltip=(
                f"{names_of_methods_that_read('free')}: the source prompt without the words that change."
                " Empty: the source prompt."
            ),
        ),
        io.Float.Input(
            "guidance",
            default=1.0,
            min=1.0,
            max=30.0,
            step=0.1,
            advanced=True,
            tooltip=(
                f"{names_of_methods_that_read('guidance')}: guidance for comparing source and target. Above 1"
                " it needs 'negative'."
            ),
        ),
        io.Conditioning.Input(
            "negative",
            optional=True,
            advanced=True,
            tooltip="Negative prompt, for guidance above 1 and for nodes on the MODEL that ask for one.",
        ),
        io.Float.Input(
            "image_share",
            default=0.35,
            min=0.0,
            max=2.0,
            step=0.05,
            advanced=True,
            tooltip="How much of the move the latent takes, for methods that move latent and words.",
        ),
        io.Float.Input(
            "text_share",
            default=0.35,
            min=0.0,
            max=2.0,
            step=0.05,
            advanced=True,
            tooltip="How much of the move the words take, for methods that move latent and words.",
        ),
        io.Combo.Input(
            "derivatives",
            options=list(DERIVATIVES),
            default=AUTOMATIC,
            advanced=True,
            tooltip=(
                "How derivatives are taken. 'forward only' does without a backward pass, which takes the"
                " most memory; 'central differences' uses plain model evaluations alone; 'double backward'"
                " does without forward mode, where a model's code has none. T-LOCO always needs a backward"
                " pass."
            ),
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=False,
            advanced=True,
            tooltip="Start of the solvers; the result hardly depends on it.",
        ),
        io.Combo.Input(
            "find_keeps",
            options=list(LISTS),
            default="people",
            optional=True,
            tooltip=(
                "Checks a list of things for what the words would change too, and holds those still that change"
                " much. It asks the model six times for each thing, once a picture. 'nothing': only what 'keep'"
                " says is held. With 'explore' and 'clip' the list gives names to what is found, for two"
                " evaluations a thing."
            ),
        ),
        io.String.Input(
            "candidates",
            default="",
            multiline=True,
            optional=True,
            advanced=True,
            tooltip=(
                "More things that may move along: one pair a line, 'with | without', to be added to 'source',"
                " such as 'with freckles | without freckles'."
            ),
        ),
        io.Combo.Input(
            "where",
            options=[EVERYWHERE, FOUND],
            default=FOUND,
            optional=True,
            tooltip=(
                "Where methods that move words act. 'found': where the words change the picture most, for which"
                " the model is asked twice; shown at the output 'where'. With 'mask', only inside it. 'explore'"
                " finds a place for each direction itself."
            ),
        ),
    ]
