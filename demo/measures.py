"""What an edit of a drawn portrait changed, read by the demo model's attribute probe: the target, and what leaked."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .architecture import load_probe
from .world import ATTRIBUTES, Attribute


class Reader:
    """Reads the attributes of pictures; keeps the probe loaded."""

    def __init__(self):
        self.probe = load_probe()

    def read(self, pictures: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Attribute values of 8-bit pictures (HWC each): N for continuous and binary, N x classes for categorical."""
        batch = torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).float() / 255.0
        with torch.inference_mode():
            return {name: values.numpy() for name, values in self.probe(batch[..., :3]).items() if name in ATTRIBUTES}


def named_in(text: str) -> dict[str, str]:
    """The attributes that a prompt names, each with its phrase."""
    return {
        attribute.name: phrase
        for attribute in ATTRIBUTES.values()
        for phrase in attribute.words
        if re.search(rf"(?<![\w-]){re.escape(phrase)}(?![\w-])", text.lower())
    }


def target_of(source: str, target: str) -> tuple[str, str] | None:
    """The attribute that `target` names otherwise than `source`, and its phrase there; None where it names none."""
    before = named_in(source)
    return next(((name, phrase) for name, phrase in named_in(target).items() if before.get(name) != phrase), None)


def target_values(values: dict[str, np.ndarray], name: str, phrase: str) -> np.ndarray:
    """The target attribute of each picture: its value, or the probability of the class that the phrase names."""
    attribute, read = ATTRIBUTES[name], values[name]
    if attribute.kind == "continuous":
        return read
    wanted = attribute.words[phrase]
    if attribute.kind == "categorical":
        return read[:, attribute.classes.index(wanted)]
    return read if wanted else 1 - read


def spread(attribute: Attribute) -> float:
    """Standard deviation of a continuous attribute in the world, where it is uniform over its range."""
    return (attribute.high - attribute.low) / 12**0.5


@dataclass(frozen=True)
class Change:
    """What edits changed in one attribute of N pictures.

    Attributes:
        unit: what the change is counted in.
        before: the value; of classes, the most likely one.
        after: the same of the edited pictures.
        change: signed; continuous: in standard deviations; binary: of the probability of having it; categorical: of the
            probability of the class before. (N,)
    """

    unit: str
    before: float | str
    after: list[float] | list[str]
    change: np.ndarray


def changes(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> dict[str, Change]:
    """What was changed in every attribute, from what a Reader read of one picture before and of N after."""
    found = {}
    for name, attribute in ATTRIBUTES.items():
        was, now = before[name][0], after[name]
        if attribute.kind == "categorical":
            kept = int(was.argmax())
            classes = [attribute.classes[k] for k in now.argmax(axis=1)]
            found[name] = Change("probability", attribute.classes[kept], classes, now[:, kept] - was[kept])
        else:
            continuous = attribute.kind == "continuous"
            scale, unit = (spread(attribute), "standard deviations") if continuous else (1.0, "probability")
            found[name] = Change(unit, float(was), [float(v) for v in now], (now - was) / scale)
    return found


def leakage(values: dict[str, np.ndarray], reference: int, name: str) -> np.ndarray:
    """How far each picture moved from picture number `reference` in an attribute that was to stay.

    Continuous: |change| in standard deviations. Categorical and binary: the loss of probability of the original class.
    """
    attribute, read = ATTRIBUTES[name], values[name]
    if attribute.kind == "continuous":
        return np.abs(read - read[reference]) / spread(attribute)
    if attribute.kind == "binary":
        read = np.stack([1 - read, read], axis=1)
    original = read[:, read[reference].argmax()]
    return np.maximum(original[reference] - original, 0.0)
