"""The inputs of Find Directions."""

from __future__ import annotations

from comfy_api.latest import io

from ..core.methods import METHODS, names_of_methods_that_read
from ..core.presets import PRESETS
from ..core.search import AUTOMATIC, DERIVATIVES, PATHS, PROJECTIONS, RESTRICT_FIRST, STRAIGHT
from .identify_prompts import EVERYWHERE, FOUND
from .inputs import BLOCK
from .sockets import InversionSocket
from .words import LISTS

DEFAULT = next(iter(METHODS))
NO_PRESET = "none"
LATENT, PICTURE = "latent", "picture"  # what the Jacobian of LOCO and T-LOCO is of


def inputs() -> list[io.Input]:
    """All of them, in the order in which the page shows them; tooltips read the table of methods."""
    return [
        io.Model.Input("model", tooltip="The same model that Encode Picture used."),
        InversionSocket.Input("inversion", tooltip="The encoded picture, from Encode Picture."),
        io.Combo.Input(
            "method",
            options=list(METHODS),
            default=DEFAULT,
            tooltip=" ".join(f"{method.label or method.name}: {method.summary}." for method in METHODS.values()),
        ),
        io.String.Input("source", default="", tooltip="What the picture shows now, such as 'a sad woman'."),
        io.String.Input("target", default="", tooltip="What strength 1 should show, such as 'a smiling woman'."),
        io.String.Input(
            "keep",
            default="",
            multiline=True,
            placeholder="keep: one pair a line, with | without",
            tooltip=(
                "What must stay as it is: one pair a line, 'with | without', such as 'a woman with "
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
                "Guidance under which source and target are compared, and, with 'guided', under which LOCO and T-LOCO"
                " search. Above 1 'negative' is needed."
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
                " does without forward mode, where a model's code has none. T-LOCO and pullback always need a"
                " backward pass."
            ),
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=False,
            advanced=True,
            tooltip="Random start of the search. Another seed gives nearly the same result.",
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
            placeholder="candidates: one pair a line, with | without",
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
        io.Combo.Input(
            "preset",
            options=[NO_PRESET, *PRESETS],
            default=NO_PRESET,
            optional=True,
            advanced=True,
            tooltip=(
                "Published settings of LOCO, T-LOCO and pullback. They take the place of 'count', 'hold_outside',"
                " 'guidance', 'guided', 'projection', 'path' and 'path_steps', and of 'look_at' where the paper"
                " searched in decoded pictures and 'vae' is connected. Strength 1 moves as far as in the paper. If the"
                " picture was inverted at another noise level than in the paper, the report names the published one."
            ),
        ),
        io.Combo.Input(
            "look_at",
            options=[LATENT, PICTURE],
            default=LATENT,
            optional=True,
            advanced=True,
            tooltip=(
                f"{names_of_methods_that_read('decode')}: what the search looks at. 'latent' is fast. 'picture': the"
                " decoded picture, with the mask in pixels, as in the paper; it needs 'vae', and more time and memory."
            ),
        ),
        io.Vae.Input("vae", optional=True, advanced=True, tooltip="Decodes the pictures, for 'look_at' on 'picture'."),
        io.Boolean.Input(
            "guided",
            default=False,
            optional=True,
            advanced=True,
            tooltip=(
                f"{names_of_methods_that_read('guided')}: looks at what the model predicts under 'guidance', which"
                " takes twice as many model evaluations. No effect while 'guidance' is 1."
            ),
        ),
        io.Combo.Input(
            "projection",
            options=list(PROJECTIONS),
            default=RESTRICT_FIRST,
            optional=True,
            advanced=True,
            tooltip=(
                f"{names_of_methods_that_read('projection')}: when the changes outside the mask are ruled out."
                " 'restrict first' finds the strongest moves that leave the outside as it is. 'project after', as in"
                " the paper, finds the strongest moves and takes out of them what changes the outside."
            ),
        ),
        io.Combo.Input(
            "path",
            options=list(PATHS),
            default=STRAIGHT,
            optional=True,
            advanced=True,
            tooltip=(
                f"{names_of_methods_that_read('path')}: how a direction is followed. 'x-space guidance' follows what"
                " the model makes of it in small steps. 'geodesic shooting' looks for the direction again after each"
                " step, which takes a search each time. A slider goes straight to where the path ends."
            ),
        ),
        io.Int.Input(
            "path_steps",
            default=16,
            min=1,
            max=64,
            optional=True,
            advanced=True,
            tooltip=(
                f"{names_of_methods_that_read('path_steps')}: steps of a path that is not straight; geodesic shooting"
                " takes at most 4."
            ),
        ),
        BLOCK,
    ]
