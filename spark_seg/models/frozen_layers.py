"""Layers with constant weights: functions of tokens and maps, in the layout and by the kernels that are fastest there.

Shapes: B images, C input and O output channels, H and W of a feature map, L = H * W tokens.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spark_seg.models import depthwise, kernels
from spark_seg.models.fast_layers import (
    Affine,
    is_patchwise,
    patches_linear,
    to_nchw,
    to_nhwc,
)

Layer = Callable[[Tensor], Tensor]
_ROWS = 1024  # tokens that packed weights are laid out for; others work too


def linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, after: str = "none") -> Layer:
    """Weight [O, C] and bias [O] as a function of tokens [..., C] -> [..., O], followed by `none` or `relu`."""
    weight = weight.detach().to(dtype).contiguous()
    bias = None if bias is None else bias.detach().to(dtype).contiguous()
    if len(weight) >= 8 and fused_operators(weight.device, dtype):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        run = torch.ops.mkldnn._linear_pointwise.default
        return lambda x: run(x, packed, bias, after, [], "")
    if after == "relu":
        return lambda x: F.linear(x, weight, bias).relu_()
    return lambda x: F.linear(x, weight, bias)


def pointwise(
    conv: Any, dtype: torch.dtype, affine: Affine | None = None, after: str = "none"
) -> Layer:
    """A `fast_layers.PointwiseConv2d` of tokens, with `affine` folded into it."""
    weight, bias = conv.matrix(affine)
    return linear(weight, bias, dtype, after)


def convolution(conv: nn.Conv2d, dtype: torch.dtype, after: str = "none") -> Layer:
    """A convolution of maps with channels last, followed by `none` or `gelu`."""
    weight = conv.weight.detach().to(dtype)
    bias = None if conv.bias is None else conv.bias.detach().to(dtype)
    module: Any = conv  # its padding may be a name, in general
    stride, padding, dilation = list(module.stride), list(module.padding), list(module.dilation)
    groups = conv.groups
    if after == "gelu" and bias is not None and depthwise.usable(weight, conv):
        return lambda x: to_nchw(depthwise.depthwise_gelu(to_nhwc(x).contiguous(), weight, bias))
    if weight.is_cuda and is_patchwise(conv):
        return _patches(weight, bias)
    if fused_operators(weight.device, dtype):
        size = [1, conv.in_channels, 64, 64]
        packed = torch.ops.mkldnn._reorder_convolution_weight(
            weight, padding, stride, dilation, groups, size
        )
        run = torch.ops.mkldnn._convolution_pointwise.default
        return lambda x: run(x, packed, bias, padding, stride, dilation, groups, after, [], "none")
    weight = weight.contiguous(memory_format=torch.channels_last)

    def plain(x: Tensor) -> Tensor:
        out = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        return F.gelu(out) if after == "gelu" else out

    return plain


def _patches(weight: Tensor, bias: Tensor | None) -> Layer:
    """A convolution of patches that do not overlap; maps whose borders it would leave out go the usual way."""
    size = weight.shape[2]
    matrix = weight.permute(0, 2, 3, 1).flatten(1).contiguous()

    def run(x: Tensor) -> Tensor:
        if x.shape[2] % size or x.shape[3] % size:
            return F.conv2d(x, weight, bias, size)
        return patches_linear(x, size, matrix, bias)

    return run


class Norm:
    """A layer norm of tokens [B, L, C]."""

    def __init__(self, norm: nn.LayerNorm, dtype: torch.dtype) -> None:
        self.weight, self.bias = (p.detach().to(dtype) for p in (norm.weight, norm.bias))
        self.shape, self.eps = norm.normalized_shape, norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        """[B, L, C] -> [B, L, C]."""
        if kernels.usable(x) and x.is_contiguous():
            return self.after(x, None)
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)

    def after(self, x: Tensor, branch: Tensor | None) -> Tensor:
        """The norm of `x`, to which `branch` is added in place before; by a kernel that `kernels.usable` promises."""
        from spark_seg.models import norm_kernels

        given = (x, branch, None, self.weight, self.bias, self.eps, x.dtype, False)
        return norm_kernels.forward(*given)[1]


@functools.cache
def fused_operators(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's fused oneDNN operators work here. They are its own, without promise: each is tried first."""
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return False
    generator = torch.Generator().manual_seed(0)
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        with torch.no_grad():
            x, weight = (torch.randn(n, 16, generator=generator).to(dtype) for n in (64, 32))
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
            ours = torch.ops.mkldnn._linear_pointwise(
                x, packed, x[0, :1].expand(32).contiguous(), "relu", [], ""
            )
            theirs = (x @ weight.t() + x[0, :1]).relu()
            maps = to_nchw(x.view(2, 4, 8, 16))
            kernel = torch.randn(16, 1, 3, 3, generator=generator).to(dtype)
            sides: tuple[list[int], ...] = ([1, 1], [1, 1], [1, 1])
            packed = torch.ops.mkldnn._reorder_convolution_weight(
                kernel, *sides, 16, [1, 16, 64, 64]
            )
            convolved = torch.ops.mkldnn._convolution_pointwise(
                maps, packed, x[0], *sides, 16, "gelu", [], "none"
            )
            expected = F.gelu(F.conv2d(maps, kernel, x[0], padding=1, groups=16))
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):
        return False
    limit = 1e-4 if dtype == torch.float32 else 0.2
    return bool((ours - theirs).abs().max() < limit and (convolved - expected).abs().max() < limit)
