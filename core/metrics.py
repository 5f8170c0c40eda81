"""Measures of what an edit or a return changed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .errors import EmbeddingError, NoChangeError, ShapeError
from .linalg import in_float64

LOGIT_SCALE = 100.0  # of CLIP's probabilities: the largest that its training allows
# Differences of pictures with values 0 to 1, and of embeddings of length 1, that are rounding.
ROUNDING = 1e-6


def psnr(picture: Tensor, reference: Tensor) -> float | None:
    """Peak signal-to-noise ratio in dB of two pictures with values 0 to 1; None where they are equal."""
    error = float((picture.float() - reference.float()).square().mean())
    return None if error == 0 else -10 * math.log10(error)


def distance(a: Tensor, b: Tensor) -> float:
    """Root mean square of the difference of two pictures, over all pixels and channels."""
    return float((in_float64(a) - in_float64(b)).square().mean().sqrt())


def share_of_most_changed(change: Tensor, part: float = 0.1) -> Tensor:
    """How local changes are: the share of the squared change that lies in the cells that change most.

    Args:
        change: (B, C, ..., H, W), of latents or of pictures with the channels first.
        part: how many of the H W cells count, as a share of them; part of a cell counts in part.

    Returns:
        (B,) in float64 on the CPU, `part` for a change that is the same everywhere up to 1 for one in that part alone;
        NaN where nothing has changed.
    """
    energy = in_float64(change.flatten(1, -3)).square().sum(1).flatten(1)
    counted = part * energy.shape[1]
    weights = (counted - torch.arange(energy.shape[1], dtype=torch.float64)).clamp(0, 1)
    return (energy.sort(dim=1, descending=True).values * weights).sum(1) / energy.sum(1)


@dataclass(frozen=True)
class WordChange:
    """What edits changed along P pairs of words "with" and "without", by CLIP; N edited pictures.

    All in float64, on the CPU. A cosine difference is cos(picture, with) - cos(picture, without).

    Attributes:
        difference_before: cosine difference of the picture before the edit, (P,).
        difference_after: of the edited pictures, (P, N).
        directional: cosine between the change of the picture's embedding and with - without, (P, N); NaN where the
            picture's embedding did not change.
        similarity: cosine between the embeddings of the picture before and after, (N,).
        mean_cosine: mean of the cosines between all pictures and all words.
    """

    difference_before: Tensor
    difference_after: Tensor
    directional: Tensor
    similarity: Tensor
    mean_cosine: float

    @property
    def difference(self) -> Tensor:
        """Change of the cosine difference, (P, N)."""
        return self.difference_after - self.difference_before.unsqueeze(1)

    @property
    def probability_before(self) -> Tensor:
        """Probability of "with" among the two, before the edit, (P,)."""
        return (LOGIT_SCALE * self.difference_before).sigmoid()

    @property
    def probability_after(self) -> Tensor:
        """Probability of "with" among the two, after the edit, (P, N)."""
        return (LOGIT_SCALE * self.difference_after).sigmoid()

    @property
    def probability(self) -> Tensor:
        """Change of the probability, (P, N), -1 to 1."""
        return self.probability_after - self.probability_before.unsqueeze(1)


def change_along_words(before: Tensor, after: Tensor, present: Tensor, absent: Tensor) -> WordChange:
    """Measure edits along pairs of words by a matching pair of text and picture encoders.

    Args:
        before: embedding of the picture before the edit, (C,).
        after: of the edited pictures, (N, C).
        present: of the words with, (P, C).
        absent: of the words without, in the same order, (P, C).

    The probability is that of CLIP's zero-shot classifier with two classes, softmax of 100 cos (arXiv 2103.00020).
    `directional` is the cosine in StyleGAN-NADA's directional loss (arXiv 2108.00946), between embeddings of length 1.

    Raises:
        EmbeddingError: an embedding is zero or holds values that are not numbers.
        ShapeError: the embeddings differ in width, or there are not as many words with as without.
    """
    given = [in_float64(part) for part in (before.reshape(1, -1), after, present, absent)]
    if len({part.shape[-1] for part in given}) > 1 or present.shape != absent.shape:
        msg = f"The embeddings have the shapes {', '.join(str(tuple(part.shape)) for part in given)}."
        raise ShapeError(msg)
    if not all(bool(part.norm(dim=-1).isfinite().all()) and bool(part.any(dim=-1).all()) for part in given):
        msg = "An embedding of a picture or of words is zero, or holds values that are not numbers (NaN or infinity)."
        raise EmbeddingError(msg)
    before, after, present, absent = (normalize(part, dim=-1, eps=0.0) for part in given)
    words, moved = present - absent, after - before
    lengths = moved.norm(dim=-1)
    directional = words @ moved.T / (words.norm(dim=-1, keepdim=True) * lengths)
    directional[(words.norm(dim=-1, keepdim=True) * (lengths > ROUNDING)) <= ROUNDING] = math.nan
    cosines = [words_of @ pictures.T for words_of in (present, absent) for pictures in (before, after)]
    count = sum(part.numel() for part in cosines)
    return WordChange(
        difference_before=(words @ before.T).squeeze(1),
        difference_after=words @ after.T,
        directional=directional,
        similarity=after @ before[0],
        mean_cosine=float(sum(part.sum() for part in cosines)) / count,
    )


@dataclass(frozen=True)
class Disentanglement:
    """How far a picture strays when nothing is to change or all is changed back, against what the words change [ours].

    With R(x; c), the picture x encoded under its own prompt, sampled under c and decoded; c its own prompt, c' another;
    |.| the root mean square over all pixels and channels:

    Attributes:
        unedited: |x - R(x; c)|.
        edited_back: |x - R(R(x; c'); c)|.
        change: |R(x; c') - R(x; c)|.
    """

    unedited: float
    edited_back: float
    change: float

    @property
    def score(self) -> float:
        """(|x - R(x; c)| + |x - R(R(x; c'); c)|) / |R(x; c') - R(x; c)|, lower is better; 0 at best."""
        return (self.unedited + self.edited_back) / self.change


def disentanglement(picture: Tensor, unedited: Tensor, edited: Tensor, edited_back: Tensor) -> Disentanglement:
    """Measure x, R(x; c), R(x; c') and R(R(x; c'); c), pictures of one shape with values 0 to 1.

    In the spirit of the Semantic Disentanglement mEtric, SDE (arXiv 2408.13335, 2411.08196), whose exact formula was
    not available to us: this formula is ours, and its numbers cannot be compared with published ones.

    Raises:
        NoChangeError: both prompts give the same picture.
        ShapeError: the pictures differ in size.
    """
    shapes = [tuple(part.shape) for part in (picture, unedited, edited, edited_back)]
    if len(set(shapes)) > 1:
        msg = f"The pictures have the sizes {', '.join(map(str, shapes))}."
        raise ShapeError(msg)
    change = distance(edited, unedited)
    if change <= ROUNDING:
        msg = "Both prompts give the same picture, so there is no change to compare the errors with."
        raise NoChangeError(msg)
    return Disentanglement(distance(picture, unedited), distance(picture, edited_back), change)
