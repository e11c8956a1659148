"""What the faults share."""

from collections.abc import Sequence

import cv2
import numpy as np


def level(values: Sequence[float], severity: float, start: float = 0.0) -> float:
    """A parameter at a severity: `values` at 1 to 5, linear between them, `start` at 0."""
    return float(np.interp(severity, range(len(values) + 1), [start, *values]))


def scale_of(image: np.ndarray) -> float:
    """How much longer the frame's longer side is than the 1024 pixels that lengths are given for."""
    return max(image.shape[:2]) / 1024


def grid(image: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of a coarse raster over the frame, for fields that vary slowly.

    Args:
        image: [H, W, 3].
        step: Frame pixels per raster cell.

    Returns:
        y float32 [h, 1] and x float32 [1, w] in units of the longer side, 0 at the frame's top left corner.
    """
    height, width = image.shape[:2]
    h, w = max(2, -(-height // step)), max(2, -(-width // step))
    side = max(height, width)
    y = (np.arange(h, dtype=np.float32)[:, None] + 0.5) * (height / h / side)
    x = (np.arange(w, dtype=np.float32)[None] + 0.5) * (width / w / side)
    return y, x


def enlarge(field: np.ndarray, image: np.ndarray) -> np.ndarray:
    """A float32 field [h, w] or [h, w, 3] at the image's size."""
    return cv2.resize(field, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)


def add_light(image: np.ndarray, glow: np.ndarray) -> np.ndarray:
    """Adds a coarse float32 field [h, w, 3] of grey levels; what exceeds white is lost."""
    return cv2.add(image, enlarge(glow, image), dtype=cv2.CV_8U)


def convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Filters with a kernel whose sum is 1; the frame goes on beyond its border as it ends there."""
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REPLICATE)


def lookup(table: np.ndarray) -> np.ndarray:
    """A table of 256 grey levels, rounded and clipped for `cv2.LUT`: [256] or [256, 3] -> uint8."""
    rounded = np.clip(np.rint(table), 0, 255).astype(np.uint8)
    return rounded if rounded.ndim == 1 else rounded.reshape(256, 1, 3)
