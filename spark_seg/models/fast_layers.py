"""Layers that compute what mmseg's compute, on tensors with channels last.

Each class takes the place of an existing module's stock class (`fast_segformer.accelerate`): parameters, buffers and
state-dict keys are the module's own. A parameter is only ever read in the forward of the module that owns it, so that
whatever hooks into modules (ZeRO-3, which gathers parameters that way, first of all) sees every use.

Shapes: B images, C input and O output channels, H and W of a feature map, L = H * W tokens, K keys, D channels of an
attention head. An NCHW map here is nearly always a view of a contiguous [B, H, W, C]: permuting it then costs nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.wrappers import Conv2d
from mmseg.models.utils import resize
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from spark_seg.models import depthwise
from spark_seg.models.linears import linear
from spark_seg.models.resizing import fits, sum_enlarged

Affine = tuple[Tensor, Tensor]  # scale [O] and shift [O]
_SCORES = (
    1 << 22
)  # attention weights at a time: 8 MB in bf16, what a 512 x 512 image has in the first stage


def to_nhwc(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H, W, C], a view."""
    return x.permute(0, 2, 3, 1)


def to_nchw(x: Tensor) -> Tensor:
    """[B, H, W, C] -> [B, C, H, W], a view."""
    return x.permute(0, 3, 1, 2)


def nlc_to_nchw(x: Tensor, hw: Sequence[int]) -> Tensor:
    """[B, L, C] -> [B, C, H, W], a view."""
    return to_nchw(x.unflatten(1, (hw[0], hw[1])))


def nchw_to_nlc(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, L, C], contiguous; a view where `x` has its channels last."""
    return to_nhwc(x).flatten(1, 2).contiguous()


@contextmanager
def made_again(value: Tensor, make: Callable[[], Tensor]) -> Iterator[None]:
    """Inside, autograd keeps no `value` for the backward pass: there it is what `make` returns, the very same numbers.

    For what costs little time and much memory. `make` must hold on to nothing that would not be kept anyway.
    """
    # by the storage's place, as tensors of FakeTensorMode have no data; nothing here may hold `value` itself
    place, count, dtype = value.untyped_storage()._cdata, value.numel(), value.dtype

    def pack(x: Tensor) -> Any:
        same = x.untyped_storage()._cdata == place and (x.numel(), x.dtype) == (count, dtype)
        return x.shape if same and x.is_contiguous() else x

    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad():
            return make().view(kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


class PointwiseConv2d(Conv2d):
    """A 1x1 convolution as the linear map that it is."""

    def forward(
        self, x: Tensor, gain: Tensor | None = None, affine: Affine | None = None
    ) -> Tensor:
        """Tokens [B, L, C] -> [B, L, O], or a map [B, C, H, W] -> [B, O, H, W] with channels last.

        Args:
            x: Tokens or a map.
            gain: [B, C], factors of each image's input channels, applied to the weights instead.
            affine: Scale and shift [O] of the output, applied to weights and bias instead.
        """
        tokens = x if x.dim() == 3 else to_nhwc(x)
        weight, bias = self.matrix(affine)
        if gain is None:
            out = linear(tokens, weight, bias)
        else:
            each = gain[:, :, None] * weight.t()  # [B, C, O]
            flat = tokens.flatten(1, -2)
            out = flat @ each if bias is None else torch.baddbmm(bias, flat, each)
            out = out.unflatten(1, tokens.shape[1:-1])
        return out if x.dim() == 3 else to_nchw(out)

    def matrix(self, affine: Affine | None = None) -> tuple[Tensor, Tensor | None]:
        """Weight [O, C] and bias [O], followed by `affine`."""
        weight = self.weight.flatten(1)
        if affine is None:
            return weight, self.bias
        scale, shift = affine
        bias = shift if self.bias is None else shift + scale * self.bias
        return (scale[:, None] * weight).to(weight.dtype), bias.to(weight.dtype)


class SumConv2d(PointwiseConv2d):
    """A 1x1 convolution of maps that are resized and concatenated.

    Resizing maps each channel alone and is linear, so it commutes with the convolution:
    conv(cat(resize(x_i))) = sum of resize(conv_i(x_i)). The products are then as small as each map,
    and the concatenation is never made.
    """

    def forward(  # type: ignore[override]
        self,
        maps: Sequence[Tensor],
        size: Sequence[int],
        mode: str,
        align_corners: bool | None,
        affine: Affine | None = None,
    ) -> Tensor:
        """Maps [B, C_i, H_i, W_i], one of them of `size` (H, W), -> [B, O, H, W] with channels last."""
        weight, bias = self.matrix(affine)
        parts = weight.split([x.shape[1] for x in maps], dim=1)
        last = (
            len(maps) - 1
        )  # the bias once, with the smallest map: resizing leaves a constant as it is
        outs = [
            linear(to_nhwc(x), part, bias if i == last else None)
            for i, (x, part) in enumerate(zip(maps, parts, strict=True))
        ]
        if mode == "bilinear" and not align_corners and fits(outs):
            return to_nchw(sum_enlarged(outs))
        total: Tensor | None = None
        for x in map(to_nchw, reversed(outs)):
            out = x
            if x.shape[2:] != size:
                out = resize(x, size=size, mode=mode, align_corners=align_corners)
            if total is None:
                total = out
            elif torch.is_grad_enabled():
                total = total + out  # in place on a view, autograd would copy the whole map
            else:
                total.add_(out)
        assert total is not None
        return total


class FastLinear(NonDynamicallyQuantizableLinear):
    """Attention's last layer."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., C] -> [..., O]."""
        return linear(input, self.weight, self.bias)


class FastBatchNorm2d(nn.BatchNorm2d):
    """A batch norm whose parameters may lie anywhere.

    DeepSpeed lays all parameters out one after another, the classifier's three biases before this norm's weights:
    cuDNN's kernels for channels last then fail with a misaligned address.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        given = (self.weight, self.bias)
        if not input.is_cuda or torch.compiler.is_compiling() or self.momentum is None:
            return super().forward(input)
        if not self.training or all(p is None or p.data_ptr() % 16 == 0 for p in given):
            return super().forward(input)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        weight, bias = (None if p is None else p.clone() for p in given)
        return F.batch_norm(
            input, self.running_mean, self.running_var, weight, bias, True, self.momentum, self.eps
        )


class DepthwiseConv2d(Conv2d):
    """The feed-forward network's depthwise convolution."""

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]; with `gelu` (where `depthwise.usable` says so) followed by GELU."""
        if not gelu:
            return super().forward(x)
        tokens = to_nhwc(x).contiguous()
        return to_nchw(depthwise.depthwise_gelu(tokens, self.weight, self.bias))


def is_patchwise(conv: Any) -> bool:
    """Whether a convolution takes square patches that do not overlap."""
    size = conv.kernel_size
    plain = (conv.padding, conv.dilation, conv.groups) == ((0, 0), (1, 1), 1)
    return bool(plain and size == conv.stride and size[0] == size[1])


def patches_linear(x: Tensor, size: int, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """A linear map [O, size^2 * C] of patches: [B, C, H, W] with channels last -> [B, O, H / size, W / size]."""
    parts = to_nhwc(x).unflatten(2, (-1, size)).unflatten(1, (-1, size))
    return to_nchw(linear(parts.transpose(2, 3).flatten(3), matrix, bias))


class PatchConv2d(Conv2d):
    """A convolution of patches that do not overlap, on a GPU as the linear map of each that it is."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] with channels last -> [B, O, H / P, W / P], for a kernel and stride of P."""
        size = self.kernel_size[0]
        if not x.is_cuda or x.shape[2] % size or x.shape[3] % size:
            return super().forward(x)  # on CPUs oneDNN's convolution is as fast
        return patches_linear(x, size, self.weight.permute(0, 2, 3, 1).flatten(1), self.bias)


class FastSelfAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` by `scaled_dot_product_attention`.

    The weights [B, heads, L, K], which stock averages over the heads for nobody, need not exist.
    """

    def forward(self, query: Tensor, key: Tensor, *args: object, **kwargs: object) -> Tensor:  # type: ignore[override]
        """Queries [B, L, C] and what gives both keys and values [B, K, C] -> [B, L, C].

        With any further argument it is the stock forward: tokens first, images second.
        """
        if args or kwargs:
            return super().forward(query, key, *args, **kwargs)  # type: ignore[arg-type,return-value]
        heads = (self.num_heads, self.head_dim)
        weight, bias, channels = self.in_proj_weight, self.in_proj_bias, self.embed_dim
        if query is key:
            qkv = linear(query, weight, bias).unflatten(-1, (3, *heads))
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, L or K, D] each
        else:
            w_q, w_kv = weight.split((channels, 2 * channels))
            b_q, b_kv = (None, None) if bias is None else bias.split((channels, 2 * channels))
            q = linear(query, w_q, b_q).unflatten(-1, heads).transpose(1, 2)
            kv = linear(key, w_kv, b_kv).unflatten(-1, (2, *heads))
            k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attend(q, k, v, dropout))


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(D)) v: queries [B, heads, L, D], keys and values [B, heads, K, D] -> [B, L, heads * D].

    In bf16 on CPUs it is matrix products and a softmax instead of torch's fused kernel, which takes 1.6 times as long
    there forwards, and 2 to 5 times as long with its backward. Without gradients the queries are taken in slices that
    fit the cache; with them the weights are kept, unless they are many.
    """
    batch, heads, tokens, depth = q.shape
    keys = k.shape[2]
    kept = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
    plain = q.dtype == torch.bfloat16 and q.device.type == "cpu" and dropout == 0
    if not plain or torch.compiler.is_compiling() or (kept and heads * tokens * keys > _SCORES):
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return out.transpose(1, 2).flatten(2)
    scaled = (k * depth**-0.5).transpose(-1, -2)
    rows = max(64, _SCORES // (batch * heads * keys))
    if kept or rows >= tokens:
        return (torch.softmax(q @ scaled, -1) @ v).transpose(1, 2).flatten(2)
    slices = q.new_empty(batch, tokens, heads, depth)
    for start in range(0, tokens, rows):
        part = torch.softmax(q[:, :, start : start + rows] @ scaled, -1) @ v
        slices[:, start : start + rows] = part.transpose(1, 2)
    return slices.flatten(2)


class FastConvModule(ConvModule):
    """1x1 convolution, norm and activation of a map, channels last throughout."""

    def forward(self, x: Tensor, activate: bool = True, norm: bool = True) -> Tensor:
        """[B, C, H, W] -> [B, O, H, W]."""
        norm = norm and self.with_norm
        affine = norm_as_affine(self.norm) if norm else None
        return self.finish(self.conv(x, affine=affine), activate, norm and affine is None)

    def finish(self, out: Tensor, activate: bool, norm: bool) -> Tensor:
        """What follows the convolution."""
        if norm:
            out = self.norm(out)
        return self.activate(out) if activate and self.with_activation else out


class FastFusionModule(FastConvModule):
    """The same after several maps are resized and concatenated; see `SumConv2d`."""

    def forward(  # type: ignore[override]
        self, maps: Sequence[Tensor], size: Sequence[int], mode: str, align_corners: bool | None
    ) -> Tensor:
        """Maps [B, C_i, H_i, W_i] -> [B, O, H, W] with `size` (H, W)."""
        affine = norm_as_affine(self.norm) if self.with_norm else None
        out = self.conv(maps, size, mode, align_corners, affine)
        return self.finish(out, True, self.with_norm and affine is None)


def norm_as_affine(norm: Any) -> Affine | None:
    """What a BatchNorm in eval mode does, scale [O] and shift [O], to be folded into the layer before it.

    Computed anew in every forward (O numbers), so that it can never be older than the weights.

    Returns:
        None in train mode, and where a hook waits for the norm itself to be called.
    """
    if norm.training or norm.running_mean is None or norm.running_var is None:
        return None
    if norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks:
        return None
    precise = torch.promote_types(norm.running_var.dtype, torch.float32)
    scale = (norm.running_var.to(precise) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias
