"""Ratios over a confusion matrix, as flat keys with values 0 to 1.

What an absent class counts: a class that is neither in the truth nor predicted (empty union) has
no IoU and no Dice. It is left out of every mean, and its own keys report 0.0, never NaN; a mean
over no class at all is 0.0. A class in the truth that is never predicted has precision 0.0, and a
class that is predicted but not in the truth has recall 0.0; both have IoU 0.0 and count in the
means. Nothing undefined ever reports more than 0, so that nobody is flattered by what was not
measured.
"""

import numpy as np

from spark_seg.evaluation.counts import false_negatives, false_positives, true_positives
from spark_seg.labels import CLASSES

FOREGROUND = slice(1, None)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Element-wise float64 quotient of counts, 0.0 where the denominator is 0."""
    top, bottom = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    return np.divide(top, bottom, out=np.zeros_like(top + bottom), where=bottom != 0)


def iou(confusions: np.ndarray) -> np.ndarray:
    """Intersection over union per class: [..., 3, 3] -> float64 [..., 3]; empty union 0.0."""
    hit = true_positives(confusions)
    return ratio(hit, hit + false_positives(confusions) + false_negatives(confusions))


def dice(confusions: np.ndarray) -> np.ndarray:
    """Dice coefficient (F1) per class: [..., 3, 3] -> float64 [..., 3]; empty union 0.0."""
    hit = true_positives(confusions)
    return ratio(2 * hit, 2 * hit + false_positives(confusions) + false_negatives(confusions))


def precision(confusions: np.ndarray) -> np.ndarray:
    """Share of a class's predicted pixels that are right: [..., 3, 3] -> [..., 3]; 0.0 if none."""
    hit = true_positives(confusions)
    return ratio(hit, hit + false_positives(confusions))


def recall(confusions: np.ndarray) -> np.ndarray:
    """Share of a class's true pixels that are found: [..., 3, 3] -> [..., 3]; 0.0 if none."""
    hit = true_positives(confusions)
    return ratio(hit, hit + false_negatives(confusions))


def accuracy(confusions: np.ndarray) -> np.ndarray:
    """Share of counted pixels that are right: [..., 3, 3] -> float64 [...]; 0.0 if none."""
    return ratio(true_positives(confusions).sum(-1), np.asarray(confusions).sum((-2, -1)))


def present(confusions: np.ndarray) -> np.ndarray:
    """Which classes are in the truth or predicted: [..., 3, 3] -> bool [..., 3]."""
    matrix = np.asarray(confusions)
    return (matrix.sum(-1) + matrix.sum(-2)) > 0


def class_mean(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what counts: [..., C], bool [..., C] -> [...]; 0.0 if nothing does."""
    return ratio(np.where(counted, values, 0.0).sum(-1), counted.sum(-1))


def score_arrays(confusions: np.ndarray) -> dict[str, np.ndarray]:
    """`scores` of many matrices at once: [..., 3, 3] -> float64 [...] under the same keys."""
    matrix = np.asarray(confusions)
    seen = present(matrix)
    overlap, f1 = iou(matrix), dice(matrix)
    result = {
        "mIoU": class_mean(overlap, seen),
        "mIoU/foreground": class_mean(overlap[..., FOREGROUND], seen[..., FOREGROUND]),
        "mDice": class_mean(f1, seen),
        "mDice/foreground": class_mean(f1[..., FOREGROUND], seen[..., FOREGROUND]),
        "aAcc": accuracy(matrix),
    }
    per_class = {
        "IoU": overlap,
        "Dice": f1,
        "Precision": precision(matrix),
        "Recall": recall(matrix),
    }
    for kind, values in per_class.items():
        for index, name in enumerate(CLASSES):
            result[f"{kind}/{name}"] = values[..., index]
    return result


def scores(confusion: np.ndarray) -> dict[str, float]:
    """All scores of one confusion matrix, pooled where it was pooled.

    Args:
        confusion: [3, 3] counts, rows truth, columns prediction; usually `counts.pooled(...)`, the
            sum over a split, so that every pixel weighs the same whatever its image.

    Returns:
        Plain floats 0..1 under `mIoU`, `mIoU/foreground`, `mDice`, `mDice/foreground`, `aAcc`, and
        `IoU/<class>`, `Dice/<class>`, `Precision/<class>`, `Recall/<class>`. `/foreground` is the
        mean of body and panel. See the module's text for classes that are absent.
    """
    matrix = np.asarray(confusion)
    if matrix.shape != (len(CLASSES), len(CLASSES)):
        raise ValueError(f"a confusion matrix has shape (3, 3), not {matrix.shape}")
    return {key: float(value) for key, value in score_arrays(matrix).items()}


def counts_where(confusions: np.ndarray) -> dict[str, np.ndarray]:
    """In which images each score of `score_arrays` counts for a per-image mean: bool [...].

    A class counts where it is true or predicted, for all four of its scores; a mean over classes
    where any of them does; pixel accuracy where any pixel does.
    """
    seen = present(confusions)
    anything = np.asarray(seen.any(-1))
    foreground = np.asarray(seen[..., FOREGROUND].any(-1))
    result: dict[str, np.ndarray] = dict.fromkeys(("mIoU", "mDice", "aAcc"), anything)
    result |= {"mIoU/foreground": foreground, "mDice/foreground": foreground}
    for kind in ("IoU", "Dice", "Precision", "Recall"):
        for index, name in enumerate(CLASSES):
            result[f"{kind}/{name}"] = seen[..., index]
    return result
