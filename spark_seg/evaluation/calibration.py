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
_LARGEST_LOGIT = 1e3  # keeps the sums of a diverged model finite, and within int64


def sample_truth(truth: "torch.Tensor", size: tuple[int, int]) -> "torch.Tensor":
    """The truth at the pixels nearest to the centres of a coarser grid: [H, W] -> [h, w]."""
    import torch

    (height, width), (rows, cols) = truth.shape, size
    if height % rows == 0 and width % cols == 0:
        down, across = height // rows, width // cols
        return truth[down // 2 :: down, across // 2 :: across]
    places = (
        (torch.arange(n, device=truth.device) * 2 + 1) * full // (2 * n)
        for n, full in ((rows, height), (cols, width))
    )
    return truth[next(places)][:, next(places)]


def calibration_counts(
    logits: "torch.Tensor", truth: "torch.Tensor", bins: int = BINS
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Sums of one image, on the logits' device and without waiting for it.

    Args:
        logits: [C, h, w], any floating dtype; computed in fp32. Infinite ones are clamped to 1000
            and NaN counts as 0, so that a diverged model has bad numbers, not none.
        truth: Class indices [H, W], of the same picture at its own size; 255 is not counted.
        bins: How many bins of equal width; the k-th holds confidences in (k / bins, (k + 1) / bins].

    Returns:
        int64 [3, bins, 3]: per region and bin pixels, pixels that are right, sum of confidence in
        units of 2**-24; and int64 [3]: per region the sum of -log p(truth) in the same units.
    """
    import torch

    from spark_seg.evaluation.device import tally

    with torch.no_grad():
        scores = logits.detach().reshape(logits.shape[0], -1).float()
        limit = _LARGEST_LOGIT
        scores = scores.nan_to_num(0.0, limit, -limit).clamp_(-limit, limit)
        # Labels as uint8, and no torch.where with plain numbers: on a CPU five times as fast.
        target = sample_truth(truth, (logits.shape[1], logits.shape[2])).reshape(-1)
        target = target.to(torch.uint8)
        best, own, found = scores[0], scores[0], torch.zeros_like(target)
        for index in range(1, scores.shape[0]):
            better = scores[index] > best
            found = torch.maximum(found, better.to(torch.uint8) * index)
            best = torch.maximum(best, scores[index])
            own = torch.where(target == index, scores[index], own)
        total = (scores - best).exp_().sum(0)  # >= 1: the largest term is 1
        confidence = (UNIT / total.double()).round_()  # whole numbers up to 2**24
        nats = (best.sub(own).add_(total.log_()) * UNIT).round_().double()
        level = ((confidence * bins - 1) / UNIT).floor_().clamp_(0, bins - 1).int()
        # One cell for each bin, truth in or out of the foreground, likewise prediction, right or not.
        kind = (target > 0).to(torch.uint8) * 4 + (found > 0).to(torch.uint8) * 2
        kind = kind + (found == target)
        cell = (level * 8).add_(kind).masked_fill_(target == IGNORE_INDEX, 8 * bins)
        count, weight, loss = (
            tally(cell, 8 * bins + 1, weights)[:-1].reshape(bins, 2, 2, 2)
            for weights in (None, confidence, nats)
        )
        table = torch.stack([count.sum(3), count[..., 1], weight.sum(3)], -1)  # [bins, 2, 2, 3]
        sums = torch.stack([table.sum((1, 2)), table[:, 1].sum(1), table[:, :, 1].sum(1)])
        return sums, torch.stack([loss.sum(), loss[:, 1].sum(), loss[:, :, 1].sum()])


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
