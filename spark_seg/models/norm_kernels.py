"""Triton kernels of `norms`: several tokens in a program, all channels of each; imported where they run.

torch's layer norm gives every token a block of threads of its own, most of which idle at a SegFormer's 64 channels.
"""

# A kernel's arguments are what Triton makes of them.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

_NUMBERS = 4096  # in a program's tile
_PROGRAMS = 1056  # of the backward pass: what a GPU runs at a time, a few times over


@triton.jit
def _forward(
    x, branch, scale, weight, bias, total, out, mean, rstd, R, L, C, eps,
    ADD: tl.constexpr, SCALED: tl.constexpr, KEEP: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    known = columns < C
    mask = (rows < R)[:, None] & known[None, :]
    offset = rows.to(tl.int64)[:, None] * C + columns[None, :]
    value = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        more = tl.load(branch + offset, mask=mask, other=0.0).to(tl.float32)
        if SCALED:
            more *= tl.load(scale + rows // L, mask=rows < R, other=0.0)[:, None]
        kept = (value + more).to(total.dtype.element_ty)
        tl.store(total + offset, kept, mask=mask)
        value = kept.to(tl.float32)
    centre = tl.sum(value, 1) / C
    away = tl.where(mask, value - centre[:, None], 0.0)
    rate = 1.0 / tl.sqrt(tl.sum(away * away, 1) / C + eps)
    w = tl.load(weight + columns, mask=known, other=0.0).to(tl.float32)
    b = tl.load(bias + columns, mask=known, other=0.0).to(tl.float32)
    found = away * rate[:, None] * w[None, :] + b[None, :]
    tl.store(out + offset, found.to(out.dtype.element_ty), mask=mask)
    if KEEP:
        tl.store(mean + rows, centre, mask=rows < R)
        tl.store(rstd + rows, rate, mask=rows < R)


@triton.jit
def _backward(
    grad_out, x, mean, rstd, weight, grad_x, sums, R, C, COUNT,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, WIDTH)
    known = columns < C
    w = tl.load(weight + columns, mask=known, other=0.0).to(tl.float32)
    sum_w = tl.zeros((WIDTH,), tl.float32)
    sum_b = tl.zeros((WIDTH,), tl.float32)
    for i in range(COUNT):
        rows = (tl.program_id(0) * COUNT + i) * ROWS + tl.arange(0, ROWS)
        mask = (rows < R)[:, None] & known[None, :]
        offset = rows.to(tl.int64)[:, None] * C + columns[None, :]
        g = tl.load(grad_out + offset, mask=mask, other=0.0).to(tl.float32)
        value = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
        centre = tl.load(mean + rows, mask=rows < R, other=0.0)
        rate = tl.load(rstd + rows, mask=rows < R, other=0.0)
        normal = tl.where(mask, (value - centre[:, None]) * rate[:, None], 0.0)
        sum_w += tl.sum(g * normal, 0)
        sum_b += tl.sum(g, 0)
        g *= w[None, :]
        along = tl.sum(g * normal, 1) / C
        level = tl.sum(g, 1) / C
        own = (g - normal * along[:, None] - level[:, None]) * rate[:, None]
        tl.store(grad_x + offset, own.to(grad_x.dtype.element_ty), mask=mask)
    place = sums + tl.program_id(0) * 2 * C + columns
    tl.store(place, sum_w, mask=known)
    tl.store(place + C, sum_b, mask=known)


@triton.jit
def _scaled_sum(x, branch, scale, out, N, PER, SIZE: tl.constexpr, ADD: tl.constexpr):
    """`x` plus each image's `scale` times `branch`, or that product alone; PER numbers belong to an image."""
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    mask = place < N
    value = tl.load(branch + place, mask=mask, other=0.0).to(tl.float32)
    value *= tl.load(scale + place // PER, mask=mask, other=0.0)
    if ADD:
        value += tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)


def forward(
    x: Tensor, branch: Tensor | None, scale: Tensor | None, weight: Tensor, bias: Tensor,
    eps: float, dtype: torch.dtype, keep: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Tokens [B, L, C], to which `branch` (times `scale` [B]) is added in place, normalised.

    Returns:
        `x`, its norm in `dtype`, and, if asked to `keep` them, mean and 1 / deviation [B * L].
    """
    batch, length, channels = x.shape
    rows, width, warps = _tile(channels)
    count = batch * length
    out = torch.empty_like(x, dtype=dtype)
    mean = x.new_empty(count, dtype=torch.float32) if keep else None
    rstd = x.new_empty(count, dtype=torch.float32) if keep else None
    _forward[(triton.cdiv(count, rows),)](
        x, x if branch is None else branch, x if scale is None else scale, weight, bias, x, out,
        out if mean is None else mean, out if rstd is None else rstd, count, length, channels, eps,
        ADD=branch is not None, SCALED=scale is not None, KEEP=keep,
        ROWS=rows, WIDTH=width, num_warps=warps,
    )  # fmt: skip
    return x, out, mean, rstd


def backward(
    grad_out: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of `x` [B, L, C], and of weight and bias [2, C] in fp32."""
    batch, length, channels = x.shape
    rows, width, warps = _tile(channels)
    count = batch * length
    blocks = triton.cdiv(count, rows)
    each = triton.cdiv(blocks, _PROGRAMS)
    programs = triton.cdiv(blocks, each)
    grad_x = torch.empty_like(x)
    sums = x.new_empty(programs, 2, channels, dtype=torch.float32)
    _backward[(programs,)](
        grad_out, x, mean, rstd, weight, grad_x, sums, count, channels, each,
        ROWS=rows, WIDTH=width, num_warps=warps,
    )  # fmt: skip
    return grad_x, sums.sum(0)


def scaled_sum(x: Tensor | None, branch: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` (or nothing) plus `branch` [B, L, C] times `scale` [B] in fp32, in `dtype`."""
    out = torch.empty_like(branch, dtype=dtype)
    size = 2048
    _scaled_sum[(triton.cdiv(branch.numel(), size),)](
        branch if x is None else x, branch, scale, out, branch.numel(), branch[0].numel(),
        SIZE=size, ADD=x is not None, num_warps=4,
    )  # fmt: skip
    return out


def _tile(channels: int) -> tuple[int, int, int]:
    width = triton.next_power_of_2(channels)
    rows = max(1, min(64, _NUMBERS // width))
    return rows, width, 8 if width > 512 else 4
