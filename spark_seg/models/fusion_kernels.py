"""Triton kernels of `resizing` and `linears`; imported where they run."""

# A kernel's arguments are what Triton makes of them.
# mypy: disable-error-code="no-untyped-def"

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_PROGRAMS = 528  # of a sum over rows


@triton.jit
def _enlarged(pointer, image, y, columns, channels, mask, H, W, C, FACTOR: tl.constexpr):
    """A row of a map that is enlarged bilinearly, corners not aligned."""
    height = H // FACTOR
    width = W // FACTOR
    down = tl.maximum((y.to(tl.float32) + 0.5) / FACTOR - 0.5, 0.0)
    along = tl.maximum((columns.to(tl.float32) + 0.5) / FACTOR - 0.5, 0.0)
    top = down.to(tl.int32)
    left = along.to(tl.int32)
    down -= top.to(tl.float32)
    along = (along - left.to(tl.float32))[:, None]
    bottom = tl.minimum(top + 1, height - 1)
    right = tl.minimum(left + 1, width - 1)
    above = pointer + (image * height + top).to(tl.int64) * width * C + channels[None, :]
    below = pointer + (image * height + bottom).to(tl.int64) * width * C + channels[None, :]
    a = tl.load(above + left[:, None] * C, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(above + right[:, None] * C, mask=mask, other=0.0).to(tl.float32)
    c = tl.load(below + left[:, None] * C, mask=mask, other=0.0).to(tl.float32)
    d = tl.load(below + right[:, None] * C, mask=mask, other=0.0).to(tl.float32)
    return (1.0 - down) * ((1.0 - along) * a + along * b) + down * ((1.0 - along) * c + along * d)


@triton.jit
def _sum_enlarged(
    own, first, second, third, out, H, W, C,
    ONE: tl.constexpr, TWO: tl.constexpr, THREE: tl.constexpr,
    RELU: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(W, WIDTH)
    row = tl.program_id(0) // tiles
    image = row // H
    y = row % H
    columns = (tl.program_id(0) % tiles) * WIDTH + tl.arange(0, WIDTH)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mask = (columns < W)[:, None] & (channels < C)[None, :]
    offset = (row.to(tl.int64) * W + columns)[:, None] * C + channels[None, :]
    total = tl.load(own + offset, mask=mask, other=0.0).to(tl.float32)
    if ONE:
        total += _enlarged(first, image, y, columns, channels, mask, H, W, C, ONE)
    if TWO:
        total += _enlarged(second, image, y, columns, channels, mask, H, W, C, TWO)
    if THREE:
        total += _enlarged(third, image, y, columns, channels, mask, H, W, C, THREE)
    if RELU:
        total = tl.maximum(total, 0.0)
    tl.store(out + offset, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _sum_rows(x, out, R, C, COUNT, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    for i in range(COUNT):
        rows = (tl.program_id(0) * COUNT + i) * ROWS + tl.arange(0, ROWS)
        mask = (rows < R)[:, None] & (channels < C)[None, :]
        offset = rows.to(tl.int64)[:, None] * C + channels[None, :]
        total += tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + tl.program_id(0) * C + channels, tl.sum(total, 0), mask=channels < C)


def sum_enlarged(own: Tensor, others: Sequence[Tensor], relu: bool) -> Tensor:
    """`own` [B, H, W, C] plus up to three maps [B, H / f, W / f, C], enlarged; all contiguous."""
    batch, height, width, channels = own.shape
    out = torch.empty_like(own)
    factors = [height // x.shape[1] for x in others] + [0] * (3 - len(others))
    maps = [*others, *[own] * (3 - len(others))]
    columns, block = 16, 64
    grid = (batch * height * triton.cdiv(width, columns), triton.cdiv(channels, block))
    _sum_enlarged[grid](
        own, *maps, out, height, width, channels,
        ONE=factors[0], TWO=factors[1], THREE=factors[2],
        RELU=relu, WIDTH=columns, CHANNELS=block, num_warps=4,
    )  # fmt: skip
    return out


def sum_rows(x: Tensor) -> Tensor:
    """[R, C] -> [C] in fp32, in a fixed order."""
    count, channels = x.shape
    rows, block = 32, 64
    columns = triton.cdiv(channels, block)
    blocks = triton.cdiv(count, rows)
    each = triton.cdiv(blocks, max(1, _PROGRAMS // columns))
    programs = triton.cdiv(blocks, each)
    out = x.new_empty(programs, channels, dtype=torch.float32)
    _sum_rows[(programs, columns)](
        x, out, count, channels, each, ROWS=rows, CHANNELS=block, num_warps=4
    )
    return out.sum(0)
