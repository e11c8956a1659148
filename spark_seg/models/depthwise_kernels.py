"""Triton kernels of `depthwise`; imported where they run.

A program computes a strip of ROWS rows, WIDTH columns and CHANNELS channels. Of each row it loads three tiles, shifted
by a column, and keeps those of the last three rows in registers: 3 loads a row instead of 9.
"""

# A kernel's arguments are what Triton makes of them.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

# Columns, channels, rows of a strip and warps, by measurement on an H200.
FORWARD = (8, 64, 16, 4)
BACKWARD = (8, 32, 32, 2)


@triton.jit
def _gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _gelu_slope(x):
    density = tl.exp(-0.5 * x * x) * 0.3989422804014327
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * density


@triton.jit
def _place(H, W, C, ROWS: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr):
    """Where a program works: its image's offset, first row, columns and channels."""
    program = tl.program_id(0)
    tiles = tl.cdiv(W, WIDTH)
    strips = tl.cdiv(H, ROWS)
    columns = (program % tiles) * WIDTH + tl.arange(0, WIDTH)
    first = (program // tiles % strips) * ROWS
    image = (program // (tiles * strips)).to(tl.int64) * H * W * C
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    return image, first, columns, channels


@triton.jit
def _mask(row, H, W, C, columns, channels):
    rows = row + 0 * channels  # as a block: masks of a scalar and a block differ in type
    return ((rows >= 0) & (rows < H) & (channels < C))[None, :] & (columns < W)[:, None]


@triton.jit
def _row(pointer, row, H, W, C, columns, channels):
    """Three tiles of a row, the columns before, at and after `columns`; zeros outside the map."""
    rows = row + 0 * channels
    inside = ((rows >= 0) & (rows < H) & (channels < C))[None, :]
    offset = (row * W + columns)[:, None] * C + channels[None, :]
    middle = tl.load(pointer + offset, mask=inside & (columns < W)[:, None], other=0.0)
    before = inside & ((columns >= 1) & (columns <= W))[:, None]
    left = tl.load(pointer + offset - C, mask=before, other=0.0)
    right = tl.load(pointer + offset + C, mask=inside & (columns + 1 < W)[:, None], other=0.0)
    return left.to(tl.float32), middle.to(tl.float32), right.to(tl.float32)


@triton.jit
def _tap(taps, index: tl.constexpr, C, channels):
    return tl.load(taps + index * C + channels, mask=channels < C, other=0.0)[None, :]


@triton.jit
def _forward(
    x, taps, bias, out, H, W, C,
    GELU: tl.constexpr, BIAS: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    image, first, columns, channels = _place(H, W, C, ROWS, WIDTH, CHANNELS)
    w0 = _tap(taps, 0, C, channels)
    w1 = _tap(taps, 1, C, channels)
    w2 = _tap(taps, 2, C, channels)
    w3 = _tap(taps, 3, C, channels)
    w4 = _tap(taps, 4, C, channels)
    w5 = _tap(taps, 5, C, channels)
    w6 = _tap(taps, 6, C, channels)
    w7 = _tap(taps, 7, C, channels)
    w8 = _tap(taps, 8, C, channels)
    shift = tl.zeros((1, CHANNELS), tl.float32)
    if BIAS:
        shift = _tap(bias, 0, C, channels)
    a0, a1, a2 = _row(x + image, first - 1, H, W, C, columns, channels)
    b0, b1, b2 = _row(x + image, first, H, W, C, columns, channels)
    for i in range(ROWS):
        row = first + i
        c0, c1, c2 = _row(x + image, row + 1, H, W, C, columns, channels)
        total = shift + a0 * w0 + a1 * w1 + a2 * w2
        total += b0 * w3 + b1 * w4 + b2 * w5
        total += c0 * w6 + c1 * w7 + c2 * w8
        if GELU:
            total = _gelu(total)
        mask = _mask(row, H, W, C, columns, channels)
        offset = (row * W + columns)[:, None] * C + channels[None, :]
        tl.store(out + image + offset, total.to(out.dtype.element_ty), mask=mask)
        a0, a1, a2 = b0, b1, b2
        b0, b1, b2 = c0, c1, c2


@triton.jit
def _backward(
    grad, x, taps, bias, inner, sums, H, W, C,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    image, first, columns, channels = _place(H, W, C, ROWS, WIDTH, CHANNELS)
    w0 = _tap(taps, 0, C, channels)
    w1 = _tap(taps, 1, C, channels)
    w2 = _tap(taps, 2, C, channels)
    w3 = _tap(taps, 3, C, channels)
    w4 = _tap(taps, 4, C, channels)
    w5 = _tap(taps, 5, C, channels)
    w6 = _tap(taps, 6, C, channels)
    w7 = _tap(taps, 7, C, channels)
    w8 = _tap(taps, 8, C, channels)
    shift = _tap(bias, 0, C, channels)
    s0 = tl.zeros((WIDTH, CHANNELS), tl.float32)
    s1, s2, s3, s4, s5, s6, s7, s8, s9 = s0, s0, s0, s0, s0, s0, s0, s0, s0
    a0, a1, a2 = _row(x + image, first - 1, H, W, C, columns, channels)
    b0, b1, b2 = _row(x + image, first, H, W, C, columns, channels)
    for i in range(ROWS):
        row = first + i
        c0, c1, c2 = _row(x + image, row + 1, H, W, C, columns, channels)
        total = shift + a0 * w0 + a1 * w1 + a2 * w2
        total += b0 * w3 + b1 * w4 + b2 * w5
        total += c0 * w6 + c1 * w7 + c2 * w8
        mask = _mask(row, H, W, C, columns, channels)
        offset = (row * W + columns)[:, None] * C + channels[None, :]
        own = tl.load(grad + image + offset, mask=mask, other=0.0).to(tl.float32)
        own *= _gelu_slope(total)
        tl.store(inner + image + offset, own.to(inner.dtype.element_ty), mask=mask)
        s0 += own * a0
        s1 += own * a1
        s2 += own * a2
        s3 += own * b0
        s4 += own * b1
        s5 += own * b2
        s6 += own * c0
        s7 += own * c1
        s8 += own * c2
        s9 += own
        a0, a1, a2 = b0, b1, b2
        b0, b1, b2 = c0, c1, c2
    place = sums + tl.program_id(0).to(tl.int64) * 10 * C + channels
    known = channels < C
    tl.store(place, tl.sum(s0, 0), mask=known)
    tl.store(place + C, tl.sum(s1, 0), mask=known)
    tl.store(place + 2 * C, tl.sum(s2, 0), mask=known)
    tl.store(place + 3 * C, tl.sum(s3, 0), mask=known)
    tl.store(place + 4 * C, tl.sum(s4, 0), mask=known)
    tl.store(place + 5 * C, tl.sum(s5, 0), mask=known)
    tl.store(place + 6 * C, tl.sum(s6, 0), mask=known)
    tl.store(place + 7 * C, tl.sum(s7, 0), mask=known)
    tl.store(place + 8 * C, tl.sum(s8, 0), mask=known)
    tl.store(place + 9 * C, tl.sum(s9, 0), mask=known)


def forward(x: Tensor, taps: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """A map [B, H, W, C], weights [9, C] and bias [C] in fp32 -> the convolution, then GELU if asked for."""
    out = torch.empty_like(x)
    _, height, width, channels = x.shape
    columns, block, rows, warps = FORWARD
    grid = _grid(x, columns, block, rows)
    _forward[grid](
        x, taps, taps if bias is None else bias, out, height, width, channels,
        GELU=gelu, BIAS=bias is not None,
        ROWS=rows, WIDTH=columns, CHANNELS=block, num_warps=warps,
    )  # fmt: skip
    return out


def backward(grad: Tensor, x: Tensor, taps: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Through GELU: the gradient of the convolution's output [B, H, W, C], and of weights and bias [10, C] in fp32."""
    inner = torch.empty_like(x)
    _, height, width, channels = x.shape
    columns, block, rows, warps = BACKWARD
    grid = _grid(x, columns, block, rows)
    sums = x.new_empty(grid[0], 10, channels, dtype=torch.float32)
    _backward[grid](
        grad, x, taps, bias, inner, sums, height, width, channels,
        ROWS=rows, WIDTH=columns, CHANNELS=block, num_warps=warps,
    )  # fmt: skip
    return inner, sums.sum(0)


def _grid(x: Tensor, columns: int, block: int, rows: int) -> tuple[int, int]:
    batch, height, width, channels = x.shape
    strips, tiles = triton.cdiv(height, rows), triton.cdiv(width, columns)
    return batch * strips * tiles, triton.cdiv(channels, block)
