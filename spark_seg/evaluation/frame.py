"""All counts of one frame except calibration, on NumPy arrays or on a device's tensors alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from spark_seg.errors import UserError
from spark_seg.evaluation.boundary import (
    BAND_SHARE,
    BOUNDARY_PX,
    NEIGHBOUR_BITS,
    PART_BITS,
    PARTS,
    band_width,
    boundary_counts,
    boundary_histograms,
)
from spark_seg.evaluation.boxes import NO_BOX, mask_box
from spark_seg.evaluation.calibration import BINS
from spark_seg.evaluation.counts import CLASS_COUNT, IGNORE, as_labels, confusion
from spark_seg.evaluation.device import tally

if TYPE_CHECKING:
    import torch

_CRAFT = (0b000100, 0b100000)  # the craft's bit of truth and of prediction


@dataclass(frozen=True)
class CountOptions:
    """What is counted; saved with the counts, and the same in all that are put together.

    Attributes:
        boundary_px: Tolerances of boundary F in pixels, whole and increasing.
        band_share: Width of boundary IoU's band as a share of the frame's diagonal.
        bins: Bins of calibration.
    """

    boundary_px: tuple[int, ...] = BOUNDARY_PX
    band_share: float = BAND_SHARE
    bins: int = BINS

    def __post_init__(self) -> None:
        radii = list(self.boundary_px)
        if any(not isinstance(r, int) or r < 1 for r in radii) or radii != sorted(set(radii)):
            raise UserError(f"boundary_px={radii}: give whole pixels from 1 up, increasing")
        if not 0 < self.band_share < 1:
            raise UserError(f"band_share={self.band_share}: give a share between 0 and 1")
        if not isinstance(self.bins, int) or self.bins < 1:
            raise UserError(f"bins={self.bins}: give a whole number of bins from 1 up")


DEFAULT_OPTIONS = CountOptions()


def several(name: str, given: Any) -> tuple[Any, ...]:
    """A config's number, or list of numbers, as a tuple; raises a UserError for anything else."""
    items = tuple(given) if isinstance(given, list | tuple) else (given,)
    if any(isinstance(x, bool) or not isinstance(x, int | float) for x in items):
        raise UserError(f"val_evaluator.{name}={given!r}: give a number, or a list of them")
    return items


def count_frame(
    pred: np.ndarray, truth: np.ndarray, options: CountOptions = DEFAULT_OPTIONS
) -> dict[str, np.ndarray]:
    """Everything that is counted in one frame's labels.

    Args:
        pred: Class indices 0..2, [H, W] of any integer type.
        truth: Class indices 0..2, or 255 where a pixel is not to be counted; the same size.
        options: See there.

    Returns:
        int64 arrays: `confusion` [3, 3]; `size` [2] (H, W); `boxes` [2, 4] (true, predicted; see
        `boxes.py`; pixels whose truth is ignored count in neither); `boundary_pixels`,
        `boundary_matched`, `boundary_overlap` as `boundary.boundary_counts` returns them.

    Raises:
        UserError: The sizes differ, or a value is no class.
        TypeError: Not arrays of integers.
    """
    if np.shape(pred) != np.shape(truth):
        confusion(pred, truth)  # says what is wrong
    pred, truth = as_labels(pred, "prediction", ignore=False), as_labels(truth, "truth", True)
    matrix = confusion(pred, truth)
    height, width = pred.shape
    if int(matrix.sum()) < pred.size:  # ignored pixels: predicted nothing there
        pred = np.where(truth == IGNORE, 0, pred).astype(np.uint8)
        true_box = mask_box((truth % IGNORE).astype(np.uint8))
    else:
        true_box = mask_box(truth) if matrix[1:].any() else np.array(NO_BOX)
    boxes = np.stack([true_box, mask_box(pred) if matrix[:, 1:].any() else np.array(NO_BOX)])
    boxes = boxes.astype(np.int64)
    there = boxes[boxes[:, 0] >= 0]
    counts = {"confusion": matrix, "size": np.array([height, width], np.int64), "boxes": boxes}
    if not len(there):
        none = np.zeros((2 + len(options.boundary_px), 64), np.int64)
        return counts | _named(none)
    # Nothing outside the boxes has a boundary; one pixel around them tells where they end. Where that may be ignored,
    # the band of boundary IoU looks for the background beyond.
    width_of_band = band_width(height, width, options.band_share)
    margin = 1 if int(matrix.sum()) == pred.size else width_of_band + 1
    x0, y0 = np.maximum(there[:, :2].min(0) - margin, 0)
    x1, y1 = there[:, 2:].max(0) + 1 + margin
    pair = cv2.addWeighted(
        np.ascontiguousarray(truth[y0:y1, x0:x1]),
        4,
        np.ascontiguousarray(pred[y0:y1, x0:x1]),
        1,
        0,
    )
    histograms = boundary_histograms(
        cv2.LUT(pair, PART_BITS),
        cv2.LUT(pair, NEIGHBOUR_BITS),
        options.boundary_px,
        width_of_band,
    )
    return counts | _named(np.stack(histograms))


def _named(histograms: np.ndarray) -> dict[str, np.ndarray]:
    pixels, matched, overlap = boundary_counts(histograms)
    return {
        "boundary_pixels": pixels,
        "boundary_matched": matched,
        "boundary_overlap": overlap,
    }


def count_frame_on_device(
    pred: "torch.Tensor",
    truth: "torch.Tensor",
    options: CountOptions = DEFAULT_OPTIONS,
    details: bool = True,
) -> "torch.Tensor":
    """`count_frame` where the labels are, without waiting for the device, as one vector to be fetched.

    Args:
        pred: [H, W], any integer dtype.
        truth: [H, W] on the same device.
        options: See there.
        details: Whether to count boundaries and boxes; without, the confusion alone.

    Returns:
        int64 [K] on the labels' device; `from_device` reads it.

    Raises:
        UserError: The sizes differ.
    """
    import torch

    if pred.shape != truth.shape:
        confusion(np.empty(tuple(pred.shape), np.uint8), np.empty(tuple(truth.shape), np.uint8))
    height, width = truth.shape
    pred, truth = pred.int(), truth.int()
    ignored = truth == IGNORE
    wrong = (pred < 0) | (pred >= CLASS_COUNT) | (((truth < 0) | (truth >= CLASS_COUNT)) & ~ignored)
    code = (truth * 4 + pred).masked_fill(ignored, IGNORE).masked_fill(wrong, 256)
    pairs = tally(code, 257)
    if not details:
        return pairs
    # What the tables of `boundary` hold, without a table to be sent to the device.
    unknown = ignored | wrong
    true, found = ((labels > 0) * (labels + 4) for labels in (truth, pred))
    bits = (true | found << 3).masked_fill(unknown, 0).to(torch.uint8)
    neighbour = bits.masked_fill(unknown, 0xFF)
    band = band_width(height, width, options.band_share)
    histograms = boundary_histograms(bits, neighbour, options.boundary_px, band)
    size = [pairs.new_full((1,), side) for side in (height, width)]
    boxes = [_box((bits & bit) > 0) for bit in _CRAFT]
    return torch.cat([pairs, *size, *boxes, *histograms])


def _box(craft: "torch.Tensor") -> "torch.Tensor":
    """The box of a bool mask [H, W] without waiting for the device: int64 [4]."""
    import torch

    ends = []
    for along in (0, 1):
        line = craft.any(along)
        index = torch.arange(len(line), device=craft.device)
        low = index.masked_fill(~line, len(line)).min()
        high = index.masked_fill(~line, -1).max()
        ends.append((low.masked_fill(high < 0, -1), high))
    (x0, x1), (y0, y1) = ends
    return torch.stack([x0, y0, x1, y1])


def from_device(
    vector: np.ndarray, options: CountOptions = DEFAULT_OPTIONS
) -> dict[str, np.ndarray]:
    """Reads what `count_frame_on_device` returned, fetched as int64 [K]: as `count_frame`.

    Raises:
        UserError: A value was no class.
    """
    pairs, size, boxes, rest = np.split(np.asarray(vector, np.int64), [257, 259, 267])
    if pairs[256]:
        raise UserError(
            f"{pairs[256]} pixels of prediction or truth hold no class; classes are 0 to "
            f"{CLASS_COUNT - 1}, and {IGNORE} in the truth for pixels not to be counted"
        )
    matrix = pairs[:12].reshape(CLASS_COUNT, 4)[:, :CLASS_COUNT]
    if not len(rest):
        return {"confusion": matrix.copy()}
    histograms = rest.reshape(2 + len(options.boundary_px), 64)
    counts = {"confusion": matrix.copy(), "size": size.copy(), "boxes": boxes.reshape(2, 4).copy()}
    return counts | _named(histograms)


def shapes(options: CountOptions) -> dict[str, tuple[int, ...]]:
    """The shape of each array per image, calibration's included."""
    parts, radii = len(PARTS), len(options.boundary_px)
    return {
        "confusion": (CLASS_COUNT, CLASS_COUNT),
        "size": (2,),
        "boxes": (2, 4),
        "boundary_pixels": (parts, 2),
        "boundary_matched": (parts, radii, 2),
        "boundary_overlap": (parts, 2),
        "calibration": (3, options.bins, 3),
        "nll": (3,),
    }


def blank(options: CountOptions) -> dict[str, Any]:
    """The counts of a frame in which nothing was measured; `size` 0 x 0 tells."""
    made = {name: np.zeros(shape, np.int64) for name, shape in shapes(options).items()}
    made["boxes"] += NO_BOX[0]
    return made


def stacked(rows: Sequence[dict[str, np.ndarray]], options: CountOptions) -> dict[str, np.ndarray]:
    """Rows of counts as arrays with the images in front; what a row lacks is blank."""
    empty = blank(options)
    found = {}
    for name, shape in shapes(options).items():
        stack = [np.asarray(row.get(name, empty[name]), np.int64) for row in rows]
        found[name] = np.stack(stack) if stack else np.zeros((0, *shape), np.int64)
    return found
