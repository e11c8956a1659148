"""Labels of bilinearly enlarged logits without enlarging them: exactly `argmax(interpolate(logits))`, on the CPU.

A pixel's value is a convex combination of four neighbouring logits. Where one class is the largest at all four, it is
the largest at every pixel between them; along the classes' borders, under one cell in a hundred of a trained
network's logits, the pixels are interpolated.

Rounding is the reason for care. Products, sums and fused multiply-adds are monotone, so a class that is nowhere smaller
at the corners is nowhere smaller between them, but it can become equal, and of equal classes the lowest wins. A corner
therefore counts only if its class leads every lower one by more than twice the largest rounding error; and pixels that
are interpolated and come out closer than that are computed once more in the order, and with the fused operations, of
torch's own kernel. Which those are (torch chooses by sizes, classes and the number of threads) is found out by
comparing with `F.interpolate`, bit for bit, once for each such choice; where nothing fits (another torch, another
processor), `exact_labels` declines.
"""

import functools
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F

_UNSURE = 255
# Of the largest logit's magnitude. A value is off by at most 6 roundings of 2**-24 in torch and 4 here, and two values
# are compared.
_TOLERANCE = np.float32(32 * 2.0**-24)
_RANGE = (1e-30, 1e30)  # of the largest magnitude; beyond, products may vanish or overflow
_WORTH = 0.08  # with a larger share of mixed cells the plain way is no slower
_CLASSES = 32
_ORDERS = ("first fused", "second fused", "rounded")


@dataclass(frozen=True)
class _Axis:
    """Where an axis' pixels lie among its logits.

    Attributes:
        low, high: int64 [n_out], the two logits that a pixel lies between (equal at the end).
        w0, w1: float32 [n_out], their weights.
        start, count: int64 [n_in], the first pixel whose `low` is a logit, and how many there are.
    """

    low: np.ndarray
    high: np.ndarray
    w0: np.ndarray
    w1: np.ndarray
    start: np.ndarray
    count: np.ndarray


@dataclass(frozen=True)
class _Grid:
    """How torch interpolates: the axes, whether along x and then y or all four corners at once, and what is fused."""

    y: _Axis
    x: _Axis
    at_once: bool
    order: str


def exact_labels(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """The class with the largest bilinearly resized logit (`align_corners=False`), the lowest of equal ones.

    Args:
        logits: float32 [C, h, w], C-contiguous.
        size: (H, W) of the result, larger, smaller or equal, of any ratio.

    Returns:
        uint8 [H, W], in every pixel what `F.interpolate` of contiguous logits and `argmax` give. None where that
        cannot be promised or would not be faster: logits not finite or of magnitudes outside 1e-30 to 1e30, more
        than 32 classes, too many borders, or a torch that rounds in an unknown way.
    """
    classes, h, w = logits.shape
    if not 2 <= classes <= _CLASSES or 0 in (h, w, *size):
        return None
    largest = max(float(logits.max()), -float(logits.min()))
    if largest == 0:
        return np.zeros(size, np.uint8)
    if not _RANGE[0] < largest < _RANGE[1]:  # not a number is neither
        return None
    tolerance = np.float32(largest) * _TOLERANCE
    corners = _corner_labels(logits, tolerance)
    mixed = _mixed_cells(corners)
    if int(np.count_nonzero(mixed)) > _WORTH * mixed.size:
        return None
    # torch chooses its kernel by all of these
    grid = _grid(classes, (h, w), size, torch.get_num_threads())
    if grid is None:
        return None
    labels = np.take(np.take(corners, grid.x.low, axis=1), grid.y.low, axis=0)
    _fill_mixed(labels, logits, mixed, grid, tolerance)
    return labels


def _corner_labels(logits: np.ndarray, tolerance: np.float32) -> np.ndarray:
    """uint8 [h, w]: the largest class, or `_UNSURE` where a lower class is closer than the tolerance."""
    gap = logits[1] - logits[0]
    labels = (gap > 0).view(np.uint8)
    unsure = labels.view(bool) & (gap <= tolerance)
    best = np.maximum(logits[0], logits[1])
    for index in range(2, len(logits)):
        np.subtract(logits[index], best, out=gap)
        wins = gap > 0
        # A new winner has only its own lead to answer for.
        unsure = (unsure & ~wins) | (wins & (gap <= tolerance))
        np.putmask(labels, wins, np.uint8(index))
        np.maximum(best, logits[index], out=best)
    np.putmask(labels, unsure, np.uint8(_UNSURE))
    return labels


def _mixed_cells(corners: np.ndarray) -> np.ndarray:
    """bool [h, w]: whether the cell right of and below a logit has corners of two classes, or an unsure one."""
    padded = cv2.copyMakeBorder(corners, 0, 1, 0, 1, cv2.BORDER_REPLICATE)
    differ = (corners ^ padded[:-1, 1:]) | (corners ^ padded[1:, :-1])
    differ |= corners ^ padded[1:, 1:]
    return (differ != 0) | (corners == _UNSURE)


def _fill_mixed(
    labels: np.ndarray, logits: np.ndarray, mixed: np.ndarray, grid: _Grid, tolerance: np.float32
) -> None:
    """Interpolates the pixels of mixed cells, in place."""
    classes, h, w = logits.shape
    cells = np.flatnonzero(mixed)
    if not len(cells):
        return
    flat = logits.reshape(classes, -1)
    row, col = np.divmod(cells, w)
    right, below = (col + 1 < w).astype(np.int64), (row + 1 < h) * w
    corners = [flat.take(cells + step, axis=1) for step in (0, right, below, below + right)]
    # Along x first: a column of pixels inside a cell shares what is interpolated there. Then along y.
    cell, x = _spans(grid.x, col)
    w0, w1 = grid.x.w0.take(x), grid.x.w1.take(x)
    a, b, c, d = (corner.take(cell, axis=1) for corner in corners)
    top, bottom = a * w0 + b * w1, c * w0 + d * w1
    column, y = _spans(grid.y, row.take(cell))
    values = top.take(column, axis=1) * grid.y.w0.take(y)
    values += bottom.take(column, axis=1) * grid.y.w1.take(y)
    found, lead = _winners(values)
    x = x.take(column)
    doubtful = np.flatnonzero(lead <= tolerance)
    if len(doubtful):
        found[doubtful] = _as_torch(logits, grid, y[doubtful], x[doubtful]).argmax(0)
    labels.reshape(-1)[y * labels.shape[1] + x] = found


def _spans(axis: _Axis, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pixels after each of n logits of an axis: which of the n, and the pixel; int64 [m] each."""
    count = axis.count.take(where)
    which = np.repeat(np.arange(len(where)), count)
    first = axis.start.take(where) - (np.cumsum(count) - count)
    return which, first.take(which) + np.arange(len(which))


def _winners(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first of the largest of [C, n], uint8 [n], and at most how far the next one is behind it, float32 [n]."""
    gap = values[1] - values[0]
    found, lead = (gap > 0).view(np.uint8), np.abs(gap)
    best = np.maximum(values[0], values[1])
    for index in range(2, len(values)):
        np.subtract(values[index], best, out=gap)
        np.putmask(found, gap > 0, np.uint8(index))
        np.minimum(lead, np.abs(gap), out=lead)
        np.maximum(best, values[index], out=best)
    return found, lead


def _as_torch(logits: np.ndarray, grid: _Grid, ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    """Interpolated values float32 [C, n] at pixels, with the roundings of torch's kernel."""
    x, y, order = grid.x, grid.y, grid.order
    low, high, w0, w1 = x.low[xs], x.high[xs], x.w0[xs], x.w1[xs]
    above, below, h0, h1 = y.low[ys], y.high[ys], y.w0[ys], y.w1[ys]
    a, b = logits[:, above, low], logits[:, above, high]
    c, d = logits[:, below, low], logits[:, below, high]
    if not grid.at_once:
        return _combine(_combine(a, w0, b, w1, order), h0, _combine(c, w0, d, w1, order), h1, order)
    total = _combine(a, h0 * w0, b, h0 * w1, order)
    for value, weight in ((c, h1 * w0), (d, h1 * w1)):
        total = total + value * weight if order == "rounded" else _fma(value, weight, total)
    return total


def _combine(
    a: np.ndarray, w0: np.ndarray, b: np.ndarray, w1: np.ndarray, order: str
) -> np.ndarray:
    """`a * w0 + b * w1` in float32: with every product rounded, or with the second or first one fused into the sum."""
    if order == "second fused":
        return _fma(b, w1, a * w0)
    if order == "first fused":
        return _fma(a, w0, b * w1)
    return a * w0 + b * w1


def _fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """`a * b + c` of float32, rounded once.

    The product is exact in float64. The sum is rounded to odd there, so that rounding it to float32 is rounding the
    exact sum (Boldo and Melquiond, Emulation of FMA and correctly rounded sums, IEEE Trans. Computers 57, 2008).
    """
    product, addend = a.astype(np.float64) * b, c.astype(np.float64)
    total = np.atleast_1d(product + addend)
    part = total - product
    rest = (product - (total - part)) + (addend - part)
    bits = total.view(np.int64)
    inexact_and_even = (rest != 0) & (bits & 1 == 0)
    bits += np.where(inexact_and_even, np.where((rest > 0) == (total > 0), 1, -1), 0)
    return total.astype(np.float32).reshape(product.shape)


@functools.lru_cache(maxsize=64)
def _grid(
    classes: int, small: tuple[int, int], size: tuple[int, int], threads: int
) -> _Grid | None:
    """How torch was seen to interpolate between these sizes; None if it is unlike all that is known."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((classes, *small), np.float32)
    full = F.interpolate(
        torch.from_numpy(logits)[None], size, mode="bilinear", align_corners=False
    )[0].numpy()
    # Every column in some rows and every row in some columns: weights are of an axis, the kernel's loops of a row.
    height, width = size
    ys = np.concatenate([np.repeat(_some(height, rng), width), np.tile(np.arange(height), 8)])
    xs = np.concatenate([np.tile(np.arange(width), 8), np.repeat(_some(width, rng), height)])
    expected = full[:, ys, xs]
    for fused in (False, True):
        y, x = (_axis(n, m, fused) for n, m in zip(small, size, strict=True))
        for at_once in (False, True):
            for order in _ORDERS:
                grid = _Grid(y, x, at_once, order)
                if np.array_equal(_as_torch(logits, grid, ys, xs), expected):
                    return grid
    return None


def _some(n: int, rng: np.random.Generator) -> np.ndarray:
    """Eight positions in an axis, both ends among them."""
    return np.concatenate([[0, n - 1], rng.integers(0, n, 6)])


def _axis(n_in: int, n_out: int, fused: bool) -> _Axis:
    """torch's `area_pixel_compute_source_index` and `guard_index_and_lambda`."""
    scale = np.float32(n_in) / np.float32(n_out)
    middle = np.arange(n_out, dtype=np.float32) + np.float32(0.5)
    half = np.full_like(middle, -0.5)
    source = _fma(scale * np.ones_like(middle), middle, half) if fused else scale * middle + half
    source = np.maximum(source, np.float32(0))
    low = np.minimum(source.astype(np.int64), n_in - 1)
    w1 = np.clip(source - low.astype(np.float32), np.float32(0), np.float32(1))
    high = np.minimum(low + 1, n_in - 1)
    start = np.searchsorted(low, np.arange(n_in))
    count = np.searchsorted(low, np.arange(n_in), side="right") - start
    return _Axis(low, high, np.float32(1) - w1, w1, start, count)
