"""Calibration: does a confidence of 0.9 mean right nine times in ten?

Counted at the logits' own resolution, where the model decides, against the truth sampled there by
nearest pixel: at full size neighbouring pixels share most of their logits, and cost 16 times more.

Confidence is the largest softmax probability. It and the negative log-likelihood (in nats) are
rounded to multiples of 2**-24 per pixel and summed as integers: sums are exact and do not depend on
the order of pixels, images or processes.

Regions (each its own sums): `all`; `foreground`, whose truth is body or panel; `predicted`, where
the model says body or panel. A model that is perfectly calibrated has ECE 0 over `all` and
`predicted`, but not over `foreground`, for the truth is not the model's to know.
"""

from typing import TYPE_CHECKING

import numpy as np

from spark_seg.labels import CLASSES, IGNORE_INDEX

if TYPE_CHECKING:
    import torch

REGIONS = ("all", "foreground", "predicted")
BINS = 15
UNIT = 1 << 24  # parts of 1 in which confidence and nats are counted
_LARGEST_LOGIT = 1e4  # keeps the sums of a diverged model finite, and within int64


def sample_truth(truth: "torch.Tensor", size: tuple[int, int]) -> "torch.Tensor":
    """The truth at the pixels nearest to the centres of a coarser grid: [H, W] -> [h, w]."""
    import torch

    rows, cols = (
        (torch.arange(n, device=truth.device) * 2 + 1) * full // (2 * n)
        for n, full in zip(size, truth.shape, strict=True)
    )
    return truth[rows[:, None], cols[None]]


def calibration_counts(
    logits: "torch.Tensor", truth: "torch.Tensor", bins: int = BINS
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Sums of one image, on the logits' device and without waiting for it.

    Args:
        logits: [C, h, w], any floating dtype; computed in fp32. Infinite ones are clamped to 1e4
            and NaN counts as 0, so that a diverged model has bad numbers, not none.
        truth: Class indices [H, W], of the same picture at its own size; 255 is not counted.
        bins: How many bins of equal width; the k-th holds confidences in (k / bins, (k + 1) / bins].

    Returns:
        int64 [3, bins, 3]: per region and bin pixels, pixels that are right, sum of confidence in
        units of 2**-24; and int64 [3]: per region the sum of -log p(truth) in the same units.
    """
    import torch

    with torch.no_grad():
        scores = logits.detach().reshape(logits.shape[0], -1).float()
        limit = _LARGEST_LOGIT
        scores = scores.nan_to_num(0.0, limit, -limit).clamp(-limit, limit)
        target = sample_truth(truth, (logits.shape[1], logits.shape[2])).reshape(-1).long()
        counted = target != IGNORE_INDEX
        target = target.where(counted, target.new_zeros(()))
        best, found = scores[0], torch.zeros_like(target)
        for index in range(1, scores.shape[0]):  # far faster than max over dim 0 on a CPU
            better = scores[index] > best
            found = torch.where(better, index, found)
            best = torch.maximum(best, scores[index])
        total = (scores - best).exp_().sum(0)  # >= 1: the largest term is 1
        confidence = (UNIT / total.double()).round_().long()
        loss = best - scores.gather(0, target[None])[0] + total.log()
        nats = (loss.double() * UNIT).round_().long()
        level = torch.div(confidence * bins - 1, UNIT, rounding_mode="floor").clamp_(0, bins - 1)
        # One cell for each bin, truth in or out of the foreground, likewise prediction, right or not.
        cell = ((level * 2 + (target > 0)) * 2 + (found > 0)) * 2 + (found == target)
        cell = cell.where(counted, cell.new_full((), 8 * bins))
        pixels = torch.bincount(cell, minlength=8 * bins + 1)[:-1]
        # Sums of integers below 2**53 in float64: exact in any order.
        weight = torch.bincount(cell, weights=confidence.double(), minlength=8 * bins + 1)[:-1]
        count = pixels.reshape(bins, 2, 2, 2)
        weight = weight.long().reshape(bins, 2, 2, 2)
        table = torch.stack([count.sum(3), count[..., 1], weight.sum(3)], -1)  # [bins, 2, 2, 3]
        sums = torch.stack([table.sum((1, 2)), table[:, 1].sum(1), table[:, :, 1].sum(1)])
        nats = nats * counted
        return sums, torch.stack(
            [nats.sum(), (nats * (target > 0)).sum(), (nats * (found > 0)).sum()]
        )


def empty_sums(images: int, bins: int = BINS) -> tuple[np.ndarray, np.ndarray]:
    """The sums of images whose logits were not seen: int64 zeros [N, 3, bins, 3] and [N, 3]."""
    regions = len(REGIONS)
    return np.zeros((images, regions, bins, 3), np.int64), np.zeros((images, regions), np.int64)


def expected_error(sums: np.ndarray) -> np.ndarray:
    """Expected calibration error (Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599).

    Args:
        sums: [..., bins, 3], pixels, right ones, confidence in units of 2**-24.

    Returns:
        float64 [...] in 0..1: the mean of |accuracy - confidence| over the bins, weighted by their
        pixels; an empty bin weighs nothing, no pixel at all gives 0.
    """
    sums = np.asarray(sums, np.float64)
    gap = np.abs(sums[..., 1] - sums[..., 2] / UNIT).sum(-1)
    pixels = sums[..., 0].sum(-1)
    return np.divide(gap, pixels, out=np.zeros_like(gap), where=pixels > 0)


def reliability(sums: np.ndarray) -> dict[str, np.ndarray]:
    """The reliability curve of summed counts [bins, 3].

    Returns:
        float64 [bins] each: `low` and `high` (the bin's ends), `pixels`, `share` of all pixels,
        `confidence` (mean in the bin) and `accuracy`. In an empty bin the confidence is the bin's
        middle and the accuracy 0; leave it out by `pixels`.
    """
    sums = np.asarray(sums, np.float64)
    bins = len(sums)
    ends = np.linspace(0, 1, bins + 1)
    pixels = sums[:, 0]
    full = pixels > 0
    middle = (ends[:-1] + ends[1:]) / 2
    return {
        "low": ends[:-1],
        "high": ends[1:],
        "pixels": pixels,
        "share": pixels / max(pixels.sum(), 1.0),
        "confidence": np.divide(sums[:, 2] / UNIT, pixels, out=middle, where=full),
        "accuracy": np.divide(sums[:, 1], pixels, out=np.zeros(bins), where=full),
    }


assert CLASSES[0] == "background"  # `> 0` is the foreground
