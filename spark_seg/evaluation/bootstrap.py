"""Confidence intervals by bootstrap over images (Efron 1979; percentile intervals).

A resampling draws as many images as there are, with replacement, and scores them. Images are the
unit, for pixels of one image go wrong together. Every score is a function of sums over images, so a
resampling is one row of weights, and all of them one matrix product.

What counts in few images counts in none of some resamplings. Those tell nothing of it and are left
out of its interval; as 0 they would pull down what is perfect wherever it was seen.
"""

from collections.abc import Iterator

import numpy as np

from spark_seg.evaluation.challenge import BELIEVED, ChallengeRule
from spark_seg.evaluation.store import ImageCounts
from spark_seg.evaluation.sums import Sums

RESAMPLES = 1000
LEVEL = 0.95
_CHUNK = 1 << 20  # weights at a time: 8 MB


def weights(images: int, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each resampling draws each image: float64 [r, N] chunks, `resamples` rows in all.

    The same arguments give the same weights, whatever the chunks.
    """
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // max(images, 1))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, images, (rows, images)) + np.arange(rows)[:, None] * images
        counts = np.bincount(drawn.ravel(), minlength=rows * images)
        yield counts.reshape(rows, images).astype(np.float64)


def resampled(sums: Sums, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, np.ndarray]:
    """Every score in every resampling: float64 [resamples] per flat key, NaN where it counts nowhere.

    Needs one image at least. What counts is what `Sums.counted` says.
    """
    flat = sums.flat()
    found: dict[str, list[np.ndarray]] = {}
    for chunk in weights(len(sums), resamples, seed):
        totals = sums.unflat(chunk @ flat)
        counted = sums.counted(totals)
        for key, value in sums.scores(totals).items():
            found.setdefault(key, []).append(np.where(counted[key], value, np.nan))
    return {key: np.concatenate(values) for key, values in found.items()}


def interval(values: np.ndarray, level: float = LEVEL, point: float = 0.0) -> tuple[float, float]:
    """The middle `level` of those resampled values [R] that are no NaN; `point` twice where all are."""
    values = values[~np.isnan(values)]
    if not len(values):
        return point, point
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def intervals(
    counts: ImageCounts,
    rule: ChallengeRule = BELIEVED,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, tuple[float, float]]:
    """An interval for every score of a split.

    Args:
        counts: Of the images; without one the result is empty, as it is with `resamples` 0.
        rule: The challenge's score.
        resamples: How many.
        seed: Of the draws; the same seed gives the same draws on every machine.
        level: Share of resamplings inside.

    Returns:
        Flat key -> (low, high), for every key of `metrics_of` but the numbers of images; over the
        resamplings in which the key counts, and the score itself twice where it counts in none.
    """
    if not len(counts) or not resamples:
        return {}
    sums = Sums(counts, rule)
    points = sums.scores(sums.total())
    found = resampled(sums, resamples, seed)
    return {key: interval(found[key], level, float(points[key])) for key in points}
