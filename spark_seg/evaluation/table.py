"""The scores as text for a terminal and as JSON for programs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spark_seg.atomic import write_bytes
from spark_seg.evaluation.boundary import BOUNDARY_PX, PARTS
from spark_seg.evaluation.challenge import BELIEVED, ChallengeRule, panel_counts
from spark_seg.evaluation.counts import CLASS_COUNT, pooled
from spark_seg.evaluation.frame import CountOptions, several
from spark_seg.evaluation.store import ImageCounts
from spark_seg.evaluation.sums import Sums
from spark_seg.labels import CLASSES

_COLUMNS = ("IoU", "Dice", "Precision", "Recall", "per_image/IoU", "per_image/Dice")


def as_counts(counts: ImageCounts | np.ndarray) -> ImageCounts:
    """Counts as they are, or confusions [N, 3, 3] without names as such."""
    if isinstance(counts, ImageCounts):
        return counts
    stack = np.asarray(counts, np.int64).reshape(-1, CLASS_COUNT, CLASS_COUNT)
    names = np.full(len(stack), "", np.str_)
    return ImageCounts(names, names, stack)


def metrics_of(
    counts: ImageCounts | np.ndarray, rule: ChallengeRule = BELIEVED
) -> dict[str, float]:
    """Every number of evaluation under flat keys, never a NaN.

    Args:
        counts: Of a split; of bare confusions [N, 3, 3] only what they tell.
        rule: The challenge's score.

    Returns:
        What `sums.Sums.scores` returns, plain floats; `spark/panel_images`, in how many images the
        panel counts, and `images`, their number.
    """
    counts = as_counts(counts)
    sums = Sums(counts, rule)
    found: dict[str, float] = {
        key: float(value) for key, value in sums.scores(sums.total()).items()
    }
    found["spark/panel_images"] = int(panel_counts(counts.confusion, rule.panel_share).sum())
    return found | {"images": len(counts)}


def metric_names(evaluator: Mapping[str, Any]) -> list[str]:
    """The flat keys that a `SparkMetric` of these arguments gives a training to choose by: more is better."""
    sizes = np.full((1, 2), int(bool(evaluator.get("details", True))))
    options = CountOptions(several("boundary_px", evaluator.get("boundary_px", BOUNDARY_PX)))
    names, nothing = np.array([""]), np.zeros((1, 3, 3), np.int64)
    found = metrics_of(ImageCounts(names, names, nothing, sizes=sizes, options=options))
    return [key for key in found if key not in ("images", "spark/panel_images")]


def table_lines(
    counts: ImageCounts | np.ndarray,
    rule: ChallengeRule = BELIEVED,
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> list[str]:
    """The table of a split as lines of text, in percent with two decimals.

    Args:
        counts: Of a split, or bare confusions [N, 3, 3].
        rule: The challenge's score.
        intervals: As `bootstrap.intervals` returns them, to be shown beside the means.

    Returns:
        Plain lines without colours: the classes, the boundaries, the means, the challenge's score.
        `-` stands where a number is not defined: a class without a true or predicted pixel,
        precision of a class never predicted, recall of a class not in the truth.
    """
    counts = as_counts(counts)
    metrics, total = metrics_of(counts, rule), pooled(counts.confusion)
    true, predicted = total.sum(1), total.sum(0)
    rows = []
    for index, name in enumerate(CLASSES):
        either = bool(true[index] + predicted[index])
        defined = (either, either, bool(predicted[index]), bool(true[index]), either, either)
        rows.append(
            [name]
            + [
                percent(metrics[f"{kind}/{name}"]) if known else "-"
                for kind, known in zip(_COLUMNS, defined, strict=True)
            ]
        )
    heads = [key.replace("per_image/", "image ") for key in _COLUMNS]
    lines = [*grid([["class", *heads], *rows]), ""]
    if counts.detailed:
        lines += [*_boundaries(counts, metrics), ""]
    told = _hints(metrics)
    for key, hint in told.items():
        if key in metrics:
            low_high = (intervals or {}).get(key)
            span = f"{percent(low_high[0])} to {percent(low_high[1])}" if low_high else ""
            value = metrics[key] if key.startswith("NLL") else 100 * metrics[key]
            if key.startswith("NLL") and low_high:
                span = f"{low_high[0]:.4f} to {low_high[1]:.4f}"
            shown = f"{value:.4f}" if key.startswith("NLL") else f"{value:.2f}"
            middle = f"{span:>17}   " if intervals else ""
            lines.append(f"{key:<26}{shown:>7}   {middle}{hint}")
    lines.append(
        f"{'images':<26}{len(counts):>7}   {int(total.sum())} pixels counted; scores in percent"
        + (", intervals of 95 %" if intervals else "")
    )
    return lines


def _hints(metrics: Mapping[str, float]) -> dict[str, str]:
    panels = int(metrics["spark/panel_images"])
    told = f"panel counts in {panels} images" if panels else "the panel counts in no image"
    return {
        "mIoU": "pooled; mean of the classes, background included",
        "mIoU/foreground": "pooled; mean of body and panel",
        "per_image/mIoU/foreground": "mean over images",
        "aAcc": "share of pixels that are right",
        "box_IoU": "boxes of the craft, mean over images",
        "ECE": "calibration error over all pixels",
        "ECE/foreground": "over pixels that are body or panel",
        "NLL": "nats per pixel",
        "spark/body": "as believed: mean over images of the thresholds reached",
        "spark/panel": f"likewise; {told}",
        "spark/score": "half body, half panel; the best checkpoint has the highest",
    }


def _boundaries(counts: ImageCounts, metrics: Mapping[str, float]) -> list[str]:
    kinds = {f"boundary_F{radius}px": f"F {radius} px" for radius in counts.options.boundary_px}
    kinds = {"boundary_IoU": "IoU", **kinds}
    there = counts.boundary_overlap[..., 1].sum(0) > 0
    rows = [["boundary", *kinds.values()]]
    for name, known in zip(PARTS, there, strict=True):
        cells = (percent(metrics[f"{kind}/{name}"]) if known else "-" for kind in kinds)
        rows.append([name, *cells])
    return grid(rows)


def percent(value: float) -> str:
    """0.12345 -> `12.35`; no negative zero."""
    return f"{100 * value:.2f}".replace("-0.00", "0.00")


def grid(rows: list[list[str]]) -> list[str]:
    """Rows as aligned text, the first one underlined; names to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def write_metrics_json(path: str | Path, metrics: Mapping[str, float]) -> None:
    """Writes flat metrics as JSON in one step; counts stay integers.

    Raises:
        UserError: The disk is full or the folder cannot be written.
        ValueError: A value is not finite, which no metric of ours is.
    """
    plain = {key: v if isinstance(v, int) else float(v) for key, v in metrics.items()}
    text = json.dumps(plain, indent=2, allow_nan=False) + "\n"
    write_bytes(path, text.encode())
