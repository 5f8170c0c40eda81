"""Figures of a slider, comparison of two at a matched change, and paired bootstrap intervals."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import spearmanr

from benchmarks.first import at_change, change_towards, wanted_change
from benchmarks.portraits import Bench, Case

BOOTSTRAP_SEED, RESAMPLES = 70317, 10_000
# A slider that does not reach a third of the range counts as one that gets there with this leakage.
UNREACHED = 0.5


def figures(bench: Bench, case: Case, strengths: np.ndarray, pictures: Sequence[np.ndarray], original: np.ndarray):
    """What the pictures (8-bit HWC, one a strength) have changed against the original, in the fields of a row.

    The original is the picture after the VAE, for every method alike: what a method loses in reconstruction counts as
    leakage. Spearman is over whole strengths where some are negative, and over all of them where none is.
    """
    values, leaks = bench.measure(case, [original, *pictures], 0)
    change, leaks = change_towards(case, values, 0)[1:], {name: leak[1:] for name, leak in leaks.items()}
    total, forward = np.mean(list(leaks.values()), axis=0), strengths >= 0
    wanted, most = wanted_change(case.attribute), float(change[forward].max())
    monotonic = strengths == np.round(strengths) if (strengths < 0).any() else forward
    spearman = float(spearmanr(strengths[monotonic], change[monotonic])[0]) if np.ptp(change[monotonic]) else 0.0
    return {
        "spearman": spearman,
        "change": most,
        "share_of_range": most / wanted / 3,
        "reached": most >= wanted,
        "leakage": at_change(change[forward], total[forward], wanted),
        "leaks": {name: at_change(change[forward], leak[forward], wanted) for name, leak in leaks.items()},
        "strengths": strengths.tolist(),
        "changes": change.tolist(),
        "leakages": total.tolist(),
    }


def score(rows: Sequence[dict]) -> float:
    """Mean leakage at a third of the range, UNREACHED for cases that do not get there: what settings are chosen by."""
    return float(np.mean([row["leakage"] if row["reached"] else UNREACHED for row in rows]))


def matched(one: dict, other: dict) -> tuple[float, float] | None:
    """Leakages of two rows of one case at the same change: a third of the range, or as far as both get.

    None where one of them never moves towards the target.
    """
    wanted = min(wanted_change(one["attribute"]), one["change"], other["change"])
    if wanted <= 0:
        return None
    return leakage_at(one, wanted), leakage_at(other, wanted)


def at_its_setting(one: dict, other: dict) -> tuple[float, float] | None:
    """Leakages at the same change, which is that of `one` at its first strength past a third of the range.

    So nothing is interpolated for `one`, whose strengths may lie far apart in change. None where `one` does not get
    there, or `other` not as far.
    """
    if not one["reached"]:
        return None
    forward = np.array(one["strengths"]) >= 0
    changes, leaks = np.array(one["changes"])[forward], np.array(one["leakages"])[forward]
    first = int(np.argmax(changes >= wanted_change(one["attribute"])))
    if changes[first] > other["change"]:
        return None
    return float(leaks[first]), leakage_at(other, changes[first])


def leakage_at(row: dict, wanted: float) -> float:
    """Leakage of a row where its target has changed by `wanted`, between strengths from 0 on."""
    forward = np.array(row["strengths"]) >= 0
    return at_change(np.array(row["changes"])[forward], np.array(row["leakages"])[forward], wanted)


def paired_interval(
    pairs: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], share: float = 0.95
) -> tuple[float, float]:
    """Bootstrap interval of a statistic of pairs (N, 2), cases drawn with replacement by a fixed seed.

    Args:
        pairs: one row a case, (figure of one method, figure of the other).
        statistic: (R, N, 2) -> (R,), such as the difference or ratio of the means.
        share: of the resamples that lie inside (percentile interval).
    """
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    drawn = pairs[rng.integers(len(pairs), size=(RESAMPLES, len(pairs)))]
    low, high = np.quantile(statistic(drawn), [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def ratio_of_means(pairs: np.ndarray) -> np.ndarray:
    """Mean of the first over mean of the second, (..., N, 2) -> (...)."""
    means = pairs.mean(axis=-2)
    return means[..., 0] / np.maximum(means[..., 1], 1e-12)


def difference_of_means(pairs: np.ndarray) -> np.ndarray:
    """Mean of the first less mean of the second, (..., N, 2) -> (...)."""
    means = pairs.mean(axis=-2)
    return means[..., 0] - means[..., 1]
