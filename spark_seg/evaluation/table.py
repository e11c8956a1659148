"""The scores as text for a terminal and as JSON for programs."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from spark_seg.atomic import write_bytes
from spark_seg.evaluation.challenge import ChallengeRule, panel_counts
from spark_seg.evaluation.counts import CLASS_COUNT, pooled
from spark_seg.evaluation.store import ImageCounts
from spark_seg.evaluation.sums import Sums
from spark_seg.labels import CLASSES

_COLUMNS = ("IoU", "Dice", "Precision", "Recall")
_HINTS = {
    "mIoU": "mean of the classes, background included",
    "mIoU/foreground": "mean of body and panel; the best checkpoint has the highest",
    "aAcc": "share of pixels that are right",
}


def as_counts(counts: ImageCounts | np.ndarray) -> ImageCounts:
    """Counts as they are, or confusions [N, 3, 3] without names as such."""
    if isinstance(counts, ImageCounts):
        return counts
    stack = np.asarray(counts, np.int64).reshape(-1, CLASS_COUNT, CLASS_COUNT)
    names = np.full(len(stack), "", np.str_)
    return ImageCounts(names, names, stack)


def metrics_of(
    counts: ImageCounts | np.ndarray, rule: ChallengeRule = ChallengeRule()
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


def table_lines(stack: np.ndarray) -> list[str]:
    """The table of a split as lines of text, in percent with two decimals.

    Args:
        stack: Per-image counts [N, 3, 3].

    Returns:
        Plain lines without colours: the classes, the means, the challenge's score. `-` stands
        where a number is not defined: a class without a true or predicted pixel, precision of a
        class never predicted, recall of a class not in the truth.
    """
    stack = np.asarray(stack, np.int64).reshape(-1, CLASS_COUNT, CLASS_COUNT)
    metrics, total = metrics_of(stack), pooled(stack)
    true, predicted = total.sum(1), total.sum(0)
    rows = []
    for index, name in enumerate(CLASSES):
        either = bool(true[index] + predicted[index])
        defined = (either, either, bool(predicted[index]), bool(true[index]))
        rows.append(
            [name]
            + [
                _percent(metrics[f"{kind}/{name}"]) if known else "-"
                for kind, known in zip(_COLUMNS, defined, strict=True)
            ]
        )
    lines = _grid([["class", *_COLUMNS], *rows])
    lines.append("")
    for key, hint in _HINTS.items():
        lines.append(f"{key:<16}{_percent(metrics[key]):>7}   {hint}")
    panels = metrics["spark/panel_images"]
    parts = f"body {_percent(metrics['spark/body'])}, panel {_percent(metrics['spark/panel'])}"
    told = f"panel counts in {panels} images" if panels else "the panel counts in no image"
    lines.append(
        f"{'spark/score':<16}{_percent(metrics['spark/score']):>7}   as believed: {parts} ({told})"
    )
    lines.append(
        f"{'images':<16}{len(stack):>7}   {int(total.sum())} pixels counted; all scores in percent"
    )
    return lines


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _grid(rows: list[list[str]]) -> list[str]:
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
