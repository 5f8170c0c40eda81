"""Random and hostile prompts over every input of every node of the pack, drawn by hypothesis with fixed seeds."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from benchmarks.soak.base_prompt import (
    NODES,
    ODD,
    OUTPUTS,
    OUTPUTS_OF,
    SOURCE,
    STORED,
    TARGET,
    base,
    link_to,
    needed,
    odd_source,
)
from benchmarks.soak.outcomes import PREFIX, shortened
from benchmarks.soak.server import MARK
from scripts.workflow import declared_inputs

SEED = 20260101
SIMPLEST = 10
LONG = 2_000_000  # characters of the longest text
# Inputs whose value decides how long a run takes, and what still counts as short.
COSTLY = {"steps": 30, "count": 8, "seeds": 4, "columns": 7, "hold_outside": 16, "keyframes": 5, "frames": 40}
NUMBERS = ("INT", "FLOAT")


@dataclass(frozen=True)
class Value:
    """A value for an input: of which kind, and whether it comes through a link."""

    kind: str
    value: object
    linked: bool = False


@dataclass(frozen=True)
class Case:
    """One prompt: the node that it is about, and the values of inputs by (node, input) that differ from the base."""

    target: str
    changes: tuple[tuple[str, str, Value], ...]

    @property
    def where(self) -> str:
        """The input that the case is about."""
        node, name, _ = self.changes[0]
        return f"{node}.{name}"

    @property
    def mode(self) -> str:
        """Whether its value is typed or linked."""
        return "linked" if self.changes[0][2].linked else "typed"

    @property
    def kinds(self) -> str:
        """Kinds of its values, most important first."""
        return ", ".join(value.kind for _, _, value in self.changes)

    @property
    def words(self) -> str:
        """Its values, long ones shortened."""
        shown = [(n, str(shortened(v.value, 60)) if v.kind != "missing" else "left out") for _, n, v in self.changes]
        linked = [" (linked)" if v.linked else "" for _, _, v in self.changes]
        return "; ".join(f"{name} = {ascii(value)}{how}" for (name, value), how in zip(shown, linked, strict=True))

    @property
    def heavy(self) -> bool:
        """Whether a run may well take long."""
        return any(_is_heavy(name, value.value) for _, name, value in self.changes)


def _is_heavy(name: str, value) -> bool:
    if name == "keep":
        return isinstance(value, str) and value.count("\n") > 5
    if name not in COSTLY:
        return False
    try:
        return float(value) > COSTLY[name]
    except (TypeError, ValueError, OverflowError):
        return False


def draw(strategy: st.SearchStrategy, count: int, number: int) -> list:
    """`count` examples of a strategy, always the same ones for a number."""
    found: list = []
    for attempt in range(20):

        @seed(SEED + 1000 * number + attempt)
        @settings(
            max_examples=max(1, count - len(found)),
            phases=[Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def collect(example):
            found.append(example)

        collect()
        if len(found) >= count:
            break
    return found[:count]


def kinds(**groups: Iterable) -> st.SearchStrategy:
    """One Value of one of the kinds, each kind equally often."""
    return st.one_of(*(_of_kind(kind.replace("_", " "), values) for kind, values in groups.items()))


def _of_kind(kind: str, values) -> st.SearchStrategy:
    strategy = values if isinstance(values, st.SearchStrategy) else st.sampled_from(list(values))
    return strategy.map(lambda value: Value(kind, value))


WRONG_TYPES = [None, True, [], {}, [1], ["a", "b", "c"], {"a": 1}, {"__value__": ["a", "b"]}, {"__value__": None}]


def numbers(kind: str, options: dict, default_most: float) -> st.SearchStrategy:
    """Values of a number input: inside its range, at its ends, outside, no numbers at all."""
    least, most = options.get("min", -(2**63)), options.get("max", 2**63)
    step = options.get("step") or 1
    ordinary = min(most, max(least, default_most))
    inside = st.integers(int(math.ceil(least)), int(ordinary)) if kind == "INT" else st.floats(least, ordinary)
    return kinds(
        ordinary=inside,
        at_the_end=[least, most, options.get("default", least)],
        just_outside=[least - step, most + step, -step, 0],
        far_outside=[10**9, -(10**9), 2**31, 2**63 - 1, -(2**63) + 1, 1e30, -1e30],
        huge=[2**64, -(2**64), 10**400, -(10**400), 1e308],
        not_finite=[math.nan, math.inf, -math.inf, "nan", "inf", "1e999"],
        odd_number=[0.5, -0.0, 5e-324, 1.0000001, "1", " 2 ", "1_0", "", "abc", "0x10", "١"],
        wrong_type=WRONG_TYPES,
    )


def texts(extra: Iterable[str] = ()) -> st.SearchStrategy:
    """Values of a text input."""
    control = ["\x00", "a\x00b", "\x1b[31mred", "\u202eabc", "\x7f", "a\nb", "a\r\nb", "\t", "\u2028", "\ufeff"]
    return kinds(
        ordinary=["a portrait of a person", TARGET, SOURCE, "smile, glasses", f"{MARK} one", f"{MARK}/deep/er"],
        empty=["", " ", "\n", "\u00a0", "\u200b"],
        special=[*extra, "(a:1e999)", "(a:nan)", "(" * 1000, "embedding:../x", "a:b", "{a|b}", "%s{0}", "é漢🙂"],
        random=st.text(st.characters(codec="utf-8"), max_size=60),
        long=[c * n for c in ("a", "ab ", "漢") for n in (240, 255, 256, 5000)] + ["a/" * 500, ".." * 300],
        very_long=["a" * LONG, "a b " * (LONG // 4), "\n" * LONG],
        surrogate=["\ud800", "a\udfffb", "person \udc80", "\ud83d"],
        control=control,
        path=[
            f"../{MARK}",
            f"../../{MARK}",
            f"../custom_nodes/{MARK}",
            f"/tmp/{MARK}",
            f"/{MARK}",
            f"~/{MARK}",
            f"{STORED}.safetensors/{MARK}",
            f"{STORED}.safetensors",
            f"{MARK}/../../{MARK}",
            f"./{MARK}",
            f"{MARK}//x",
            f"{MARK}/",
            f"C:\\{MARK}",
            f"..\\{MARK}",
            f"\\\\{MARK}\\x",
            f"{MARK}\x00.safetensors",
            f"{MARK}:x",
            f"{MARK}. ",
            ".",
            "..",
            "/",
            "CON",
            "/dev/null",
            "/proc/self/mem",
        ],
        wrong_type=[5, -1, 1.5, math.nan, 10**400, *WRONG_TYPES],
    )


def choices(options: list) -> st.SearchStrategy:
    """Values of a list of choices: each of them, and what is none."""
    return kinds(
        ordinary=options or [f"{STORED}.safetensors"],
        unknown=["", "abc", "HSDS ", "euler", f"../{MARK}", "\x00", "a" * 300, "a" * LONG],
        surrogate=["\ud800", "LOCO\udc80"],
        wrong_type=[0, -1, 1.5, math.nan, 10**400, *WRONG_TYPES],
    )


def inputs_of(info: dict) -> list[tuple[str, str, str, dict]]:
    """(node, input, type, options) of every input of the pack's nodes; a list of choices has the type COMBO."""
    found = []
    for key, name in NODES.items():
        for input_name, kind, options in declared_inputs(info[PREFIX + name]):
            if isinstance(kind, list):
                kind, options = "COMBO", {**options, "options": kind}
            found.append((key, input_name, kind, options))
    return found


def values_for(name: str, kind: str, options: dict) -> st.SearchStrategy:
    """Values of one input by its type."""
    if kind in NUMBERS:
        return numbers(kind, options, COSTLY.get(name, 1000) / 4)
    if kind == "STRING":
        return texts(["a | b", "|", "a |", "a | b | c", "a | a", "x | y\n" * 3, "smile,,", "beard", "SMILE"])
    if kind == "COMBO":
        return choices(options.get("options", []))
    return kinds(wrong_type=[5, "abc", None, {}, math.nan, 10**400], missing=[...])


def cases(info: dict, count: int) -> list[Case]:
    """About `count` cases, the same number for every input, typed and linked; one after the other in turn."""
    everything = inputs_of(info)
    slots = []
    for node, name, kind, options in everything:
        typed = values_for(name, kind, options)
        linked = _odd(kind) if kind in ODD else typed.map(lambda v: Value(v.kind, v.value, linked=True))
        slots += [(node, name, typed), (node, name, linked)]
    strategies = [_case(node, name, values, everything) for node, name, values in slots]
    each, more = divmod(count, len(strategies))
    # hypothesis starts with the simplest examples, which are ordinary
    drawn = [draw(s, SIMPLEST + each + (i < more), i)[SIMPLEST:] for i, s in enumerate(strategies)]
    return [of[i] for i in range(each + 1) for of in drawn if i < len(of)]


def _odd(kind: str) -> st.SearchStrategy:
    return st.sampled_from(sorted(ODD[kind])).map(lambda name: Value("odd source", (kind, name), linked=True))


@st.composite
def _case(draw_one, node: str, name: str, values: st.SearchStrategy, everything: list) -> Case:
    changes = [(node, name, draw_one(values))]
    same = [(other, kind, options) for key, other, kind, options in everything if key == node and other != name]
    for _ in range(draw_one(st.sampled_from([0, 0, 0, 1, 1, 2])) if same else 0):
        other, kind, options = draw_one(st.sampled_from(same))
        if kind in (*NUMBERS, "STRING", "COMBO") and other not in {n for _, n, _ in changes}:
            value = draw_one(values_for(other, kind, options))
            changes.append((node, other, Value(value.kind, value.value, draw_one(st.booleans()))))
    if node == "find" and "method" not in {n for _, n, _ in changes} and draw_one(st.integers(0, 3)) == 0:
        method = draw_one(st.sampled_from(["HSDS", "LOCO", "T-LOCO"]))
        changes.append(("find", "method", Value("ordinary", method)))
    return Case(node, tuple(changes))


def prompt_of(case: Case, strength: float | None = None) -> dict:
    """The API prompt of a case, with no more than the nodes that its outputs need."""
    prompt = base()
    if case.target == "load":
        prompt["slider"]["inputs"]["directions"] = ["load", 0]
    if strength is not None:
        prompt["slider"]["inputs"]["strength"] = strength
    for node, name, value in case.changes:
        if value.kind == "missing":
            prompt[node]["inputs"].pop(name, None)
        elif value.kind == "odd source":
            prompt[node]["inputs"][name] = odd_source(prompt, *value.value)
        else:
            given_ = copy.deepcopy(value.value)
            prompt[node]["inputs"][name] = link_to(prompt, given_) if value.linked else given_
    return needed(prompt, OUTPUTS_OF.get(case.target, OUTPUTS))


def can_be_sent(prompt: dict) -> bool:
    """Whether Python can write the prompt as JSON: integers of more than 4,300 digits it cannot."""
    try:
        json.dumps(prompt)
    except ValueError:
        return False
    return True
