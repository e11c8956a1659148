"""Maps enlarged bilinearly and added up on a GPU: one pass forth, matrix products back.

torch's backward pass adds every gradient to four places one by one, in no fixed order. Enlarging is linear and
separable: its transpose is a matrix product along each side, which always does alike.

Shapes: B images, C channels, H and W of the largest map.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spark_seg.models import kernels


def fits(maps: Sequence[Tensor]) -> bool:
    """Whether `sum_enlarged` takes maps [B, H, W, C]: the first the largest, the others smaller by whole factors."""
    own, *others = maps
    height, width = own.shape[1:3]
    factors = [height // x.shape[1] for x in others]
    return bool(
        1 <= len(others) <= 3
        and all(
            (height, width) == (f * x.shape[1], f * x.shape[2])
            for f, x in zip(factors, others, strict=True)
        )
        and all(x.dtype == own.dtype for x in others)
        and kernels.usable(*maps)
    )


def sum_enlarged(maps: Sequence[Tensor], relu: bool = False) -> Tensor:
    """`sum(F.interpolate(x, (H, W), mode="bilinear", align_corners=False))`, added up in fp32, rounded once.

    Args:
        maps: [B, H, W, C] and up to three [B, H / f, W / f, C] that `fits`.
        relu: Whether ReLU follows; without gradients only.
    """
    maps = [x.contiguous() for x in maps]
    if not torch.is_grad_enabled() or relu:
        from spark_seg.models import fusion_kernels

        return fusion_kernels.sum_enlarged(maps[0], maps[1:], relu)
    out: Tensor = _SumEnlarged.apply(*maps)
    return out


class _SumEnlarged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *maps: Tensor) -> Tensor:
        from spark_seg.models import fusion_kernels

        ctx.sizes = [x.shape[1:3] for x in maps[1:]]
        return fusion_kernels.sum_enlarged(maps[0], maps[1:], False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        grad = grad.contiguous()
        return grad, *(shrink(grad, size) for size in ctx.sizes)


def shrink(grad: Tensor, size: Sequence[int]) -> Tensor:
    """The transpose of enlarging from `size` (h, w): [B, H, W, C] -> [B, h, w, C]."""
    height, width = size
    down = weights(height, grad.shape[1], grad.dtype, grad.device).t()  # [h, H]
    along = weights(width, grad.shape[2], grad.dtype, grad.device).t()  # [w, W]
    narrow = down @ grad.flatten(2)  # [B, h, W * C]
    return along @ narrow.unflatten(2, (grad.shape[2], -1))


@functools.lru_cache(maxsize=64)
def weights(few: int, many: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What each of `many` places takes of each of `few`, [many, few]."""
    with torch.no_grad():
        eye = torch.eye(few, dtype=torch.float64)[None, :, :, None]
        wide = F.interpolate(eye, (many, 1), mode="bilinear", align_corners=False)
        return wide[0, :, :, 0].t().contiguous().to(device, dtype)
