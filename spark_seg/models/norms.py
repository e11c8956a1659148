"""A block's additions and layer norms on a GPU: one pass over the tokens for both, and one back.

Under autocast torch normalises in fp32 and writes fp32, which the next layer reads, and writes again in bf16. Here the
norm is written in the dtype that the next layer computes in; what is added up along the blocks stays fp32.

Shapes: B images, L tokens, C channels.
"""

from typing import Any

import torch
from torch import Tensor, nn

from spark_seg.models import kernels


class FastLayerNorm(nn.LayerNorm):
    """A layer norm of tokens [B, L, C]."""

    low_precision = False  # whether all that reads it computes in autocast's dtype

    def forward(self, input: Tensor) -> Tensor:
        """[B, L, C] -> [B, L, C]."""
        usable = input.dim() == 3 and input.is_contiguous() and kernels.usable(input, self.weight)
        if not usable:
            return super().forward(input)
        dtype = kernels.low_dtype(input)
        if torch.is_autocast_enabled(input.device.type) and not self.low_precision:
            dtype = torch.float32  # as torch has it
        out: Tensor = _Norm.apply(input, self.weight, self.bias, self.eps, dtype)
        return out


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
    ) -> Tensor:
        from spark_seg.models import norm_kernels

        keep = any(ctx.needs_input_grad)
        _, out, mean, rstd = norm_kernels.forward(x, None, None, weight, bias, eps, dtype, keep)
        if keep:
            ctx.save_for_backward(x, mean, rstd, weight)
            ctx.bias = bias.dtype
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        from spark_seg.models import norm_kernels

        x, mean, rstd, weight = ctx.saved_tensors
        grad_x, sums = norm_kernels.backward(grad.contiguous(), x, mean, rstd, weight)
        return grad_x, sums[0].to(weight.dtype), sums[1].to(ctx.bias), None, None


class _ScaledSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, scale: Tensor) -> Tensor:
        from spark_seg.models import norm_kernels

        ctx.save_for_backward(scale)
        ctx.branch = branch.dtype
        return norm_kernels.scaled_sum(x, branch, scale, x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        from spark_seg.models import norm_kernels

        (scale,) = ctx.saved_tensors
        return grad, norm_kernels.scaled_sum(None, grad.contiguous(), scale, ctx.branch), None


def scaled_sum(x: Tensor, branch: Tensor, scale: Tensor) -> Tensor:
    """`x + branch * scale[:, None, None]`: tokens [B, L, C] that are `kernels.usable`, factors [B] in fp32."""
    out: Tensor = _ScaledSum.apply(x, branch, scale)
    return out
