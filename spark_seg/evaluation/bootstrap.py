"""Confidence intervals by bootstrap over images (Efron 1979; percentile intervals).

A resampling draws as many images as there are, with replacement, and scores them. Images are the
unit, for pixels of one image go wrong together. Every score is a function of sums over images, so a
resampling is one row of weights, and all of them one matrix product.
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
    """Every score in every resampling: float64 [resamples] per flat key; needs one image at least."""
    flat = sums.flat()
    found: dict[str, list[np.ndarray]] = {}
    for chunk in weights(len(sums), resamples, seed):
        for key, value in sums.scores(sums.unflat(chunk @ flat)).items():
            found.setdefault(key, []).append(value)
    return {key: np.concatenate(values) for key, values in found.items()}


def interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The middle `level` of resampled values [R]."""
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
        Flat key -> (low, high), for every key of `metrics_of` but the numbers of images.
    """
    if not len(counts) or not resamples:
        return {}
    found = resampled(Sums(counts, rule), resamples, seed)
    return {key: interval(values, level) for key, values in found.items()}
