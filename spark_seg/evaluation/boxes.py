"""The box of the craft that a mask implies, and the overlap of two boxes.

A box is (x_min, y_min, x_max, y_max) in inclusive pixels, as in the data's CSV; all -1 where the
mask shows no craft. Every pixel of body or panel counts, stray ones too.
"""

import cv2
import numpy as np

NO_BOX = (-1, -1, -1, -1)


def mask_box(craft: np.ndarray) -> np.ndarray:
    """The box of everything that is not 0: uint8 [H, W] -> int64 [4]."""
    x, y, width, height = cv2.boundingRect(craft) if craft.size else (0, 0, 0, 0)
    if not width:
        return np.array(NO_BOX, np.int64)
    return np.array([x, y, x + width - 1, y + height - 1], np.int64)


def box_area(boxes: np.ndarray) -> np.ndarray:
    """Pixels in each box: int64 [..., 4] -> int64 [...]; 0 where there is none."""
    boxes = np.asarray(boxes, np.int64)
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2] + 1, 0)
    return np.where(boxes[..., 0] >= 0, sides[..., 0] * sides[..., 1], 0)


def box_overlap(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intersection and union of pairs of boxes in pixels.

    Args:
        boxes: int64 [..., 2, 4]: the true box and the predicted one.

    Returns:
        int64 [...] each; the union is 0 where there is neither box.
    """
    boxes = np.asarray(boxes, np.int64)
    true, found = boxes[..., 0, :], boxes[..., 1, :]
    low = np.maximum(true[..., :2], found[..., :2])
    high = np.minimum(true[..., 2:], found[..., 2:])
    sides = np.maximum(high - low + 1, 0)
    there = (true[..., 0] >= 0) & (found[..., 0] >= 0)
    both = np.where(there, sides[..., 0] * sides[..., 1], 0)
    return both, box_area(true) + box_area(found) - both
