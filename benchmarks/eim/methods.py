"""The table of methods: ours and the peers, each with the setting that tuning chose and the grid it chose from.

A new method is a function (bench, case, **setting) -> edit, and a row here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from benchmarks.eim import hessian, own, peers
from benchmarks.eim.peers import Edit
from benchmarks.portraits import Bench, Case


@dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Attributes:
        prepare: (bench, case, **setting) -> edit, and edit(strengths) -> 8-bit pictures, one a strength.
        setting: what `prepare` is called with.
        grid: the settings that `--tune` compares, the chosen one among them; empty for one that is not tuned here.
        signed: whether negative strengths have a meaning; without one Spearman is over the non-negative strengths.
        keep: whether it reads the case's keep prompts. It runs only on cases that have some.
        mask: where the edit acts: "" for everywhere, "found" for the place that Find Directions finds, "implicit" for a
            mask of the method's own.
        published: whether it is a published method of other authors.
    """

    prepare: Callable[..., Edit]
    setting: dict
    grid: tuple[dict, ...] = field(default=(), repr=False)
    signed: bool = True
    keep: bool = False
    mask: str = ""
    published: bool = False

    def edit(self, bench: Bench, case: Case) -> Edit:
        """Prepare a case under the chosen setting."""
        return self.prepare(bench, case, **self.setting)

    def quick(self) -> "Method":
        """The same in a few steps and from one noise, where it has steps and noises to average over."""
        fewer = {name: value for name, value in {"steps": 3, "draws": 1}.items() if name in self.setting}
        return replace(self, setting={**self.setting, **fewer})


def _grid(common: dict, *varied: dict) -> tuple[dict, ...]:
    """Settings that share some values."""
    return tuple({**common, **values} for values in varied)


_LEVELS = [{"level": level} for level in (0.5, 0.6, 0.7)]
GRIDS: dict[str, tuple[dict, ...]] = {
    "FlowEdit": _grid(
        {"steps": 20},
        {"level": 0.66, "source_guidance": 1.0, "base": 0.0, "slope": 1.0},
        {"level": 0.66, "source_guidance": 1.0, "base": 1.0, "slope": 1.0},
        {"level": 0.66, "source_guidance": 1.0, "base": 1.0, "slope": 2.0},
        {"level": 0.5, "source_guidance": 1.0, "base": 1.0, "slope": 2.0},
        {"level": 0.8, "source_guidance": 1.0, "base": 1.0, "slope": 1.0},
        # the paper's for SD3: 33 of 50 steps, 3.5 and 13.5
        {"level": 0.66, "source_guidance": 3.5, "base": 3.5, "slope": 10 / 3},
    ),
    "prompt swap": _grid({"steps": 10, "slope": 1.0}, *_LEVELS),
    "embedding": _grid({"steps": 10, "slope": 1.0}, *_LEVELS),
    "SDEdit": _grid(
        {"steps": 20},
        {"top": 0.7, "guidance": 1.0},
        {"top": 0.9, "guidance": 1.0},
        {"top": 0.7, "guidance": 3.0},
    ),
    "LEDITS++": _grid(
        {"steps": 10},
        {"level": 0.7, "slope": 1.0, "quantile": 0.5, "warm_up": 0.0, "concept": "target"},
        {"level": 0.7, "slope": 1.0, "quantile": 0.75, "warm_up": 0.1, "concept": "target"},
        {"level": 0.7, "slope": 3.0, "quantile": 0.75, "warm_up": 0.1, "concept": "phrase"},
    ),
    "RF inversion": _grid(
        {"steps": 20},
        {"by": "stop", "slope": 0.3, "eta": 0.9, "gamma": 0.5, "guidance": 3.0},
        {"by": "stop", "slope": 0.25, "eta": 1.0, "gamma": 0.0, "guidance": 1.0},
    ),
    "DDS optimisation": _grid(
        {"bottom": 0.1, "top": 0.9},
        {"steps": 40, "rate": 0.3, "guidance": 1.0},
        {"steps": 20, "rate": 0.2, "guidance": 3.0},
    ),
}


def _tuned(prepare: Callable[..., Edit], name: str, chosen: int, **options) -> Method:
    """A peer under setting number `chosen` of its grid."""
    return Method(prepare, GRIDS[name][chosen], GRIDS[name], published=True, **options)


FRESH = {"noise": "fresh noise", "level": 0.7}
INVERTED = {"noise": "backward euler", "level": 0.5}
FOUND_KEEP, FOUND_MASK = {"find_keeps": "demo portraits"}, {"where": "found"}
BY_DEFAULT = {**FRESH, **FOUND_KEEP, **FOUND_MASK}
RECORDED = {"recorded": True}
FLOWEDIT = _tuned(peers.flowedit, "FlowEdit", 1)
METHODS: dict[str, Method] = {
    # ours
    "words": Method(own.slider, FRESH),
    "words inverted": Method(own.slider, {**FRESH, "noise": "backward euler"}),
    "words seeded": Method(own.slider, {**FRESH, "noise": "seeded noise"}),
    "words + keep": Method(own.slider, {**FRESH, "keep": True}, keep=True),
    "words + found keep": Method(own.slider, {**FRESH, **FOUND_KEEP}),
    "words in found mask": Method(own.slider, {**FRESH, **FOUND_MASK}, mask="found"),
    "words + keep in found mask": Method(own.slider, {**FRESH, **FOUND_MASK, "keep": True}, keep=True, mask="found"),
    "words + found keep in found mask": Method(own.slider, BY_DEFAULT, mask="found"),
    "words recorded": Method(own.slider, {**FRESH, **RECORDED}),
    "words recorded + keep": Method(own.slider, {**FRESH, **RECORDED, "keep": True}, keep=True),
    "words recorded + found keep": Method(own.slider, {**FRESH, **RECORDED, **FOUND_KEEP}),
    "default, recorded": Method(own.slider, {**BY_DEFAULT, **RECORDED}, mask="found"),
    "Quick Slider of words": Method(own.quick_slider, FRESH),
    "Quick Slider of words + keep": Method(own.quick_slider, {**FRESH, "keep": True}, keep=True),
    "Quick Slider of words + found keep": Method(own.quick_slider, {**FRESH, **FOUND_KEEP}),
    "Quick Slider of the default": Method(own.quick_slider, BY_DEFAULT, mask="found"),
    "HSDS": Method(own.slider, {**INVERTED, "method": "HSDS"}),
    "HSDS fresh": Method(own.slider, {**FRESH, "method": "HSDS"}),
    "HSDS averaged": Method(hessian.averaged, {"level": 0.7, "levels": (0.5, 0.6, 0.7), "draws": 2}),
    "HSDS + found keep in found mask": Method(own.slider, {**BY_DEFAULT, "method": "HSDS"}, mask="found"),
    "default + latent by HSDS": Method(own.slider, {**BY_DEFAULT, "method": "HSDS", "text_share": 1.0}, mask="found"),
    "HSDS image only": Method(own.slider, {**INVERTED, **own.LATENT_ALONE, "method": "HSDS"}),
    "HSDS low-pass image only": Method(own.slider, {**INVERTED, **own.LATENT_ALONE, "method": "HSDS low-pass"}),
    "HSDS without Hessian image only": Method(own.slider, {**INVERTED, **own.LATENT_ALONE, "method": "DDS"}),
    "words + keep by the Hessian": Method(
        hessian.words_kept_by_the_hessian, {"level": 0.7, "steps": 10, "hessian": True}, keep=True
    ),
    "T-LOCO": Method(own.slider, {**INVERTED, "method": "T-LOCO"}),
    "random": Method(own.random_direction, INVERTED),
    # published
    "prompt swap": _tuned(peers.prompt_swap, "prompt swap", 2),
    "embedding": _tuned(peers.embedding_interpolation, "embedding", 2),
    "SDEdit": _tuned(peers.sdedit, "SDEdit", 2, signed=False),
    "FlowEdit": FLOWEDIT,
    "FlowEdit + keep": Method(peers.flowedit, {**FLOWEDIT.setting, "keep": True}, keep=True),
    "RF inversion": _tuned(peers.rf_inversion, "RF inversion", 0, signed=False),
    "LEDITS++": _tuned(peers.semantic_guidance, "LEDITS++", 2, mask="implicit"),
    "DDS optimisation": _tuned(peers.dds, "DDS optimisation", 1),
}
# What all others are compared with: what the nodes do by themselves, with the list for the demo's portraits.
DEFAULT = "words + found keep in found mask"
# Measured on the held-out cases with it: its parts, other starts, and what the latent's move by derivatives adds.
PARTS = (
    "words",
    "words in found mask",
    "words inverted",
    "words seeded",
    "HSDS",
    "default + latent by HSDS",
)
PAIR_METHODS = (
    DEFAULT,
    "FlowEdit + keep",
    "FlowEdit",
    "words",
    "words + keep",
    "words + found keep",
    "words in found mask",
    "words + keep in found mask",
    "words recorded + keep",
    "Quick Slider of words + keep",
    "words + keep by the Hessian",
    "HSDS",
)
