"""Affine maps float64 `[2, 3]` from pixels of a source to pixels of an output, and the resampling by them.

Coordinates (x, y) count from pixel centres.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from spark_seg.labels import IGNORE_INDEX


def quarter_turns(source: tuple[int, int], quarters: int) -> np.ndarray:
    """The map float64 `[3, 3]` from pixels (x, y, 1) of a source `(H, W)` to those of `np.rot90(source, quarters)`."""
    last_y, last_x = source[0] - 1, source[1] - 1
    rows = (
        ((1, 0, 0), (0, 1, 0)),
        ((0, 1, 0), (-1, 0, last_x)),
        ((-1, 0, last_x), (0, -1, last_y)),
        ((0, -1, last_y), (1, 0, 0)),
    )[quarters % 4]
    return np.array([*rows, (0, 0, 1)], np.float64)


def shifted(matrix: np.ndarray, place: tuple[int, int]) -> np.ndarray:
    """The map `[2, 3]` into a window whose top left pixel is `(top, left)` of the old output."""
    moved = matrix.copy()
    moved[:, 2] -= place[::-1]
    return moved


def scaled_source(matrix: np.ndarray, scale: Sequence[float]) -> np.ndarray:
    """The map `[2, 3]` from a source that was shrunk by `(x, y)`; pixels are counted from their centres."""
    x, y = scale
    found = matrix * (x, y, 1.0)
    found[:, 2] += matrix[:, 0] * (0.5 * x - 0.5) + matrix[:, 1] * (0.5 * y - 0.5)
    return found


def shrinking(matrix: np.ndarray) -> tuple[float, float]:
    """How many source pixels along (x, y) make one pixel's step in the output."""
    (a, b, _), (c, d, _) = matrix.tolist()
    return 1 / math.hypot(a, c), 1 / math.hypot(b, d)


def warp_image(img: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resamples uint8 `[H, W, 3 or 4]` by `matrix` into `[*size, 3]`; black outside."""
    h, w = img.shape[:2]
    block_x, block_y = (int(s + 1e-6) for s in shrinking(matrix))
    if block_x >= 2 or block_y >= 2:
        small = -(-w // max(block_x, 1)), -(-h // max(block_y, 1))
        img = cv2.resize(img, small, interpolation=cv2.INTER_AREA)
        h, w, scale = small[1], small[0], (w / small[0], h / small[1])
        matrix = scaled_source(matrix, scale)
    # OpenCV warps four channels in half the time of three, to the same values
    if img.shape[2] == 3 and 4 * size[0] * size[1] >= h * w:
        img = cv2.cvtColor(img, cv2.COLOR_BGR2BGRA)
    out = cv2.warpAffine(img, matrix, size[::-1], flags=cv2.INTER_LINEAR)
    return out if out.shape[2] == 3 else cv2.cvtColor(out, cv2.COLOR_BGRA2BGR)


def warp_mask(mask: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resamples uint8 `[H, W]` class indices by the nearest pixel; ignored outside of the
    source."""
    return cv2.warpAffine(
        mask,
        matrix,
        size[::-1],
        flags=cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=IGNORE_INDEX,
    )
