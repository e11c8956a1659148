"""Confusion counts of one image; every score is a pure function over counts (see `store.py`).

Legend: N images, C = 3 classes (background, body, panel); a confusion matrix is int64 [C, C] with
the truth in rows and the prediction in columns, in pixels.
"""

from typing import Any

import cv2
import numpy as np

from spark_seg.errors import UserError
from spark_seg.labels import CLASSES, IGNORE_INDEX

CLASS_COUNT = len(CLASSES)
IGNORE = IGNORE_INDEX
# cv2.calcHist returns float32, which holds every integer only up to 2**24.
_BLOCK = 1 << 24
_CACHED = 1 << 15


def as_labels(array: np.ndarray, what: str, ignore: bool) -> np.ndarray:
    """The mask as contiguous uint8, after a look at its values where uint8 could hide them."""
    array = np.asarray(array)
    if array.dtype == np.bool_:
        return np.ascontiguousarray(array).view(np.uint8)
    if array.dtype.kind not in "iu":
        raise TypeError(f"the {what} holds {array.dtype}, not class indices")
    array = np.ascontiguousarray(array)
    return array if array.dtype == np.uint8 else _narrow(array, what, ignore)


def _narrow(array: np.ndarray, what: str, ignore: bool) -> np.ndarray:
    """Wider integers as uint8, in blocks that the cache holds: 8 MB of int64 are read once."""
    flat, result = array.ravel(), np.empty(array.size, np.uint8)
    for start in range(0, flat.size, _CACHED):
        block = flat[start : start + _CACHED]
        if not 0 <= int(np.bitwise_or.reduce(block)) <= 0xFF:
            low, high = int(flat.min()), int(flat.max())
            raise _illegal(what, low if low < 0 else high)
        result[start : start + _CACHED] = block
    if flat.size and not ignore and int(result.max()) >= CLASS_COUNT:
        raise _illegal(what, int(result.max()))
    return result.reshape(array.shape)


def _illegal(what: str, value: int) -> UserError:
    return UserError(
        f"the {what} holds class {value}; classes are 0 to {CLASS_COUNT - 1}"
        + (f", and {IGNORE} for pixels not to be counted" if what == "truth" else "")
    )


def confusion(pred: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Counts the pixels of each pair of true and predicted class in one image.

    Args:
        pred: Class indices 0..2, [H, W] of any integer type (bool counts as 0 and 1).
        truth: Class indices 0..2, or 255 where a pixel is not to be counted, of the same size.

    Returns:
        int64 [3, 3], rows truth, columns prediction. Exact at any size.

    Raises:
        UserError: The sizes differ, or a value is no class.
        TypeError: Not an array of integers.
    """
    if np.shape(pred) != np.shape(truth):
        raise UserError(
            f"prediction of size {np.shape(pred)} and truth of size {np.shape(truth)}: "
            "both must have the mask's own size"
        )
    pred = as_labels(pred, "prediction", ignore=False).ravel()
    truth = as_labels(truth, "truth", ignore=True).ravel()
    total = np.zeros((CLASS_COUNT, CLASS_COUNT), np.int64)
    for start in range(0, pred.size, _BLOCK):
        total += _count(pred[start : start + _BLOCK], truth[start : start + _BLOCK])
    return total


def _count(pred: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The confusion matrix of one block of uint8 [n] labels, n <= 2**24."""
    if (highest := int(pred.max())) >= CLASS_COUNT:
        raise _illegal("prediction", highest)
    # cv2's arithmetic saturates, so that truth 255 lands in bin 255 whatever was predicted. So
    # would an illegal truth of 64 and more: the count of real 255s tells them apart.
    pair = cv2.addWeighted(truth[None], 4, pred[None], 1, 0)
    bins = cv2.calcHist([pair], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    counts = bins[:12].reshape(CLASS_COUNT, 4)[:, :CLASS_COUNT]
    ignored = int(np.count_nonzero(truth == IGNORE)) if bins[IGNORE] else 0
    if int(counts.sum()) + ignored != pred.size:
        raise _illegal("truth", int(truth[(truth >= CLASS_COUNT) & (truth != IGNORE)].max()))
    return counts


def pooled(stack: np.ndarray) -> np.ndarray:
    """The confusion matrix of all images together: [N, 3, 3] -> int64 [3, 3]; N may be 0."""
    return np.asarray(stack, np.int64).reshape(-1, CLASS_COUNT, CLASS_COUNT).sum(0)


def true_positives(confusions: np.ndarray) -> np.ndarray:
    """Pixels of each class found as such: [..., 3, 3] -> int64 [..., 3]."""
    return np.diagonal(np.asarray(confusions, np.int64), axis1=-2, axis2=-1).copy()


def false_positives(confusions: np.ndarray) -> np.ndarray:
    """Pixels given to each class that are not of it: [..., 3, 3] -> int64 [..., 3]."""
    return np.asarray(confusions, np.int64).sum(-2) - true_positives(confusions)


def false_negatives(confusions: np.ndarray) -> np.ndarray:
    """Pixels of each class given to another: [..., 3, 3] -> int64 [..., 3]."""
    return np.asarray(confusions, np.int64).sum(-1) - true_positives(confusions)


def true_negatives(confusions: np.ndarray) -> np.ndarray:
    """Counted pixels neither of each class nor given to it: [..., 3, 3] -> int64 [..., 3]."""
    matrix = np.asarray(confusions, np.int64)
    either = matrix.sum(-1) + matrix.sum(-2) - true_positives(matrix)
    return matrix.sum((-2, -1))[..., None] - either


def __getattr__(name: str) -> Any:
    """`ImageCounts` lives in `store.py`, which builds on this module; both names lead to it."""
    if name == "ImageCounts":
        from spark_seg.evaluation.store import ImageCounts

        return ImageCounts
    raise AttributeError(name)
