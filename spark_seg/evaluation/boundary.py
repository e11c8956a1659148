"""Boundaries of one frame as integers: boundary F (pixels near each other) and boundary IoU (bands).

All six masks of a frame (body, panel and craft = body or panel; true and predicted) travel as bits
of one uint8 picture, so that every shift, `and` and `or` serves all of them at once. The same code
runs on NumPy arrays and on torch tensors of any device, with equal results.

Definitions:
- A boundary pixel belongs to the part and one of its four neighbours does not. What lies outside
  the frame is no neighbour, so that the frame's border is no boundary; nor is the edge against
  pixels whose truth is ignored (255), which belong to no part, true or predicted.
- Near within t px: Euclidean distance between pixel centres <= t (Csurka et al. 2013, "What is a
  good evaluation measure for semantic segmentation?", there called BF; Perazzi et al. 2016).
- The band of boundary IoU (Cheng et al. 2021, "Boundary IoU", arXiv:2103.16562) is all pixels of
  the part whose chessboard distance to a pixel outside the part is <= d, as their 3x3 erosions
  count it; d is 2 % of the frame's diagonal. There the frame's border is a boundary, here not.
"""

from collections.abc import Sequence
from math import hypot, isqrt
from typing import Any

import numpy as np

from spark_seg.labels import CLASSES, IGNORE_INDEX, histogram

PARTS = ("body", "panel", "craft")
BOUNDARY_PX = (1, 2, 3)
BAND_SHARE = 0.02

_TRUE = 0b000111
_PART_BITS = {0: 0b000, CLASSES.index("body"): 0b101, CLASSES.index("panel"): 0b110}


def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Bits of `4 * truth + prediction` (saturated: 255 is ignored), and the same as neighbours."""
    bits = np.zeros(256, np.uint8)
    for truth, true_bits in _PART_BITS.items():
        for pred, found_bits in _PART_BITS.items():
            bits[4 * truth + pred] = true_bits | found_bits << 3
    neighbour = bits.copy()
    neighbour[IGNORE_INDEX] = 0xFF
    return bits, neighbour


PART_BITS, NEIGHBOUR_BITS = _tables()
_SET = (np.arange(64)[:, None] >> np.arange(6)) & 1  # [64, 6]: which bits a value has


def band_width(height: int, width: int, share: float = BAND_SHARE) -> int:
    """Width d of boundary IoU's band in pixels: `share` of the diagonal, rounded, at least 1."""
    return max(1, round(share * hypot(height, width)))


def _filled(like: Any, shape: tuple[int, int], value: int) -> Any:
    if isinstance(like, np.ndarray):
        return np.full(shape, value, np.uint8)
    return like.new_full(shape, value)


def _padded(bits: Any, pad: int, value: int) -> Any:
    height, width = bits.shape
    room = _filled(bits, (height + 2 * pad, width + 2 * pad), value)
    room[pad : pad + height, pad : pad + width] = bits
    return room


def edges(bits: Any, neighbour: Any) -> Any:
    """Boundary pixels of every part: uint8 [h, w] bits -> uint8 [h, w] bits.

    Args:
        bits: The parts of each pixel.
        neighbour: The same, with every bit set where a pixel is no neighbour to tell a boundary by.
    """
    room = _padded(neighbour, 1, 0xFF)
    inside = room[:-2, 1:-1] & room[2:, 1:-1] & room[1:-1, :-2] & room[1:-1, 2:]
    return bits & ~inside


def grown(bits: Any, radii: Sequence[int]) -> list[Any]:
    """Each bit spread to all pixels within a Euclidean radius: uint8 [h, w] -> one [h, w] per radius.

    A disc is made of horizontal runs; the runs of all radii are shared.
    """
    reach = max(radii, default=0)
    height, width = bits.shape
    room = _padded(bits, reach, 0)
    runs = [room[:, reach : reach + width]]
    for k in range(1, reach + 1):
        run = room[:, reach - k : reach - k + width] | room[:, reach + k : reach + k + width]
        runs.append(run | runs[-1])
    discs = []
    for radius in radii:
        disc = runs[radius][reach : reach + height]
        for dy in range(1, radius + 1):
            run = runs[isqrt(radius * radius - dy * dy)]
            disc = disc | run[reach - dy : reach - dy + height]
            disc = disc | run[reach + dy : reach + dy + height]
        discs.append(disc)
    return discs


def _window_and(bits: Any, reach: int) -> Any:
    """Bitwise `and` over windows of 2 * reach + 1 rows, by doubling: [h + 2 reach, w] -> [h, w]."""
    have, want = 1, 2 * reach + 1
    while have < want:
        step = min(have, want - have)
        bits = bits[: bits.shape[0] - step] & bits[step:]
        have += step
    return bits


def bands(bits: Any, neighbour: Any, reach: int) -> Any:
    """Pixels of every part within chessboard distance `reach` of its outside: bits -> bits."""
    room = _window_and(_padded(neighbour, reach, 0xFF), reach)
    core = _window_and(room.T, reach).T
    return bits & ~core


def _histogram(values: Any) -> Any:
    """How often each of 0..63 occurs, int64 [64], where the values are."""
    if isinstance(values, np.ndarray):
        return histogram(values)[:64]
    from spark_seg.evaluation.device import tally

    return tally(values, 64)


def boundary_histograms(
    bits: Any, neighbour: Any, boundary_px: Sequence[int], band: int
) -> list[Any]:
    """The histograms over bits that `boundary_counts` reads, [64] each, on the input's device.

    Returns:
        Of the boundary pixels, of the boundary pixels with one of the other side within t px for
        each t, and of the bands.
    """
    boundary = edges(bits, neighbour)
    near = grown(boundary, boundary_px)
    if isinstance(bits, np.ndarray):  # the few pixels that matter
        index = np.flatnonzero(boundary != 0)  # uint8 itself is read ten times as slowly
        boundary = boundary.ravel()[index]
        near = [disc.ravel()[index] for disc in near]
    result = [_histogram(boundary)]
    for disc in near:
        other = (disc >> 3) | ((disc & _TRUE) << 3)
        result.append(_histogram(boundary & other))
    result.append(_histogram(bands(bits, neighbour, band)))
    return result


def boundary_counts(histograms: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts per part (body, panel, craft) of one frame, or of many at once.

    Args:
        histograms: [..., 2 + T, 64], from `boundary_histograms`.

    Returns:
        Three int64 arrays: boundary pixels [..., 3, 2] (true, predicted); those near the other's
        boundary [..., 3, T, 2] (true ones near a predicted one, predicted ones near a true one);
        bands [..., 3, 2] (intersection, union).
    """
    hist = np.asarray(histograms, np.int64)
    totals = (hist @ _SET).reshape(*hist.shape[:-1], 2, 3)  # [..., 2 + T, side, part]
    pixels = np.moveaxis(totals[..., 0, :, :], -1, -2)
    matched = np.moveaxis(totals[..., 1:-1, :, :], -1, -3)
    both = hist[..., -1, :] @ (_SET[:, :3] & _SET[:, 3:])
    either = hist[..., -1, :] @ (_SET[:, :3] | _SET[:, 3:])
    return pixels, matched, np.stack([both, either], -1)
