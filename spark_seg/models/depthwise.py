"""The feed-forward network's middle on a GPU: depthwise 3x3 convolution, bias and GELU in one pass, both ways.

cuDNN and torch's own kernels take most of a SegFormer's training time for these few operations. Here each number is
read once from memory: a program walks down a strip of rows, the two rows before stay in registers. Only the input is
kept for the backward pass, which makes the convolution again. Sums are in fp32 and in a fixed order: the same inputs
give the same gradients, bit for bit, on the same GPU.

Shapes: B images, H and W of a feature map, C channels; maps are [B, H, W, C], contiguous.
"""

from typing import Any

import torch
from torch import Tensor

from spark_seg.models import kernels


def usable(x: Tensor, conv: Any) -> bool:
    """Whether `depthwise_gelu` computes a convolution `conv` of `x`: on a GPU, 3x3 with a border of 1, and a bias."""
    if not kernels.computes(x):
        return False
    sides = (conv.stride, conv.padding, conv.dilation)
    return (
        conv.kernel_size == (3, 3)
        and all(side == (1, 1) for side in sides)
        and conv.groups == conv.in_channels == conv.out_channels
        and conv.padding_mode == "zeros"
        and conv.bias is not None
    )


def depthwise_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU(conv2d(x, weight, bias, padding=1, groups=C)), exact GELU, as a map [B, H, W, C] of `x`'s dtype.

    Args:
        x: [B, H, W, C], contiguous, of `kernels.DTYPES`.
        weight: [C, 1, 3, 3], of any floating dtype.
        bias: [C].

    Returns:
        What fp32 arithmetic gives, rounded once. Differentiable once.
    """
    out: Tensor
    if torch.compiler.is_compiling():
        out = torch.ops.spark_seg.depthwise_gelu(x, weight, bias)
    else:  # an operator of torch's, by Python, takes longer to call than to compute
        out = _DepthwiseGelu.apply(x, weight, bias)
    return out


class _DepthwiseGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return _run(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight, bias = ctx.saved_tensors
        return _gradients(*_run_back(grad, x, weight, bias), weight, bias)


def _run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from spark_seg.models import depthwise_kernels

    return depthwise_kernels.forward(x, _taps(weight), bias.float(), gelu=True)


def _run_back(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of `x` [B, H, W, C], and of weights and bias [10, C] in fp32."""
    from spark_seg.models import depthwise_kernels

    taps = _taps(weight)
    inner, sums = depthwise_kernels.backward(grad.contiguous(), x, taps, bias.float())
    return depthwise_kernels.forward(inner, taps.flip(0).contiguous(), None, gelu=False), sums


def _gradients(
    grad_x: Tensor, sums: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad_weight = sums[:9].t().reshape(weight.shape)
    return grad_x, grad_weight.to(weight.dtype), sums[9].to(bias.dtype)


# The same for graphs that Inductor compiles, which it leaves as they are.
@torch.library.custom_op("spark_seg::depthwise_gelu", mutates_args=())
def _operator(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _run(x, weight, bias)


@_operator.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("spark_seg::depthwise_gelu_backward", mutates_args=())
def _operator_back(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return _run_back(grad, x, weight, bias)


@_operator_back.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(10, x.shape[3], dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias = ctx.saved_tensors
    grad_x, sums = torch.ops.spark_seg.depthwise_gelu_backward(grad, x, weight, bias)
    return _gradients(grad_x, sums, weight, bias)


_operator.register_autograd(_differentiate, setup_context=_keep)


def _taps(weight: Tensor) -> Tensor:
    """[C, 1, 3, 3] -> [9, C] in fp32."""
    return weight.detach().float().flatten(1).t().contiguous()
