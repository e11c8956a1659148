"""A linear layer on a GPU whose bias gradient does not cost more than its weights'.

torch sums the rows of a gradient [tokens, channels] at an eighth of the memory's speed where channels are few, as in a
SegFormer's first stages. Sums here are in fp32 and in a fixed order.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spark_seg.models import kernels


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, under autocast too: [..., C], [O, C] and [O] -> [..., O]."""
    fast = bias is not None and torch.is_grad_enabled() and weight.requires_grad
    if not fast or not kernels.usable(x, weight):
        return F.linear(x, weight, bias)
    out: Tensor = _Linear.apply(x, weight, bias, kernels.low_dtype(x))
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        low, matrix = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(low, matrix)
        ctx.dtypes = (x.dtype, weight.dtype, bias.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(low, matrix, bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor, None]:
        from spark_seg.models import fusion_kernels

        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = (rows @ weight).view(x.shape).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            grad_weight = (rows.t() @ x.reshape(-1, x.shape[-1])).to(ctx.dtypes[1])
        grad_bias = fusion_kernels.sum_rows(rows.contiguous()).to(ctx.dtypes[2])
        return grad_x, grad_weight, grad_bias, None
