"""SegFormer with constant weights: what a prediction computes again and again is computed once.

`freeze_weights(model, dtype)` prepares an accelerated model (`fast_segformer.accelerate`) for prediction:

- Weights are kept in the dtype that is computed in (autocast casts all of them in every forward), norms of the head
  folded into them, and on CPUs in the layout that oneDNN multiplies fastest.
- A block's results are added in place, and tokens stay as they lie from the image to the logits.
- On CPUs the depthwise convolution and GELU are one pass, the head's first layers and ReLU too (torch's own
  operators for that, which Inductor calls). Where they are missing, plain operators take their place.
- On CPUs wide feed-forward maps and the whole head are computed in bands of rows that stay in the cache (`bands`).

The result is the accelerated model's up to rounding. It is used where no gradient is wanted, in eval mode, and under no
autocast but the frozen dtype's; training mode, loading weights, and moving or casting the model end it.

Shapes: B images, C channels, H and W of a feature map, L = H * W tokens, K keys, D channels of an attention head.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spark_seg.models import depthwise, kernels
from spark_seg.models.bands import bands_of, upsample_rows, whole_factor
from spark_seg.models.fast_layers import (
    Affine,
    attend,
    is_patchwise,
    nchw_to_nlc,
    nlc_to_nchw,
    norm_as_affine,
    patches_linear,
    to_nchw,
    to_nhwc,
)
from spark_seg.models.graphs import Recorded
from spark_seg.models.norms import FastLayerNorm
from spark_seg.models.resizing import fits, sum_enlarged

Layer = Callable[[Tensor], Tensor]
_ROWS = 1024  # tokens that packed weights are laid out for; others work too


class Frozen:
    """What a frozen module holds; neither copied, pickled nor saved with it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def usable(self, module: nn.Module, x: Tensor) -> bool:
        """Whether the frozen forward may stand in for the module's own, for an input `x`."""
        if module.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        if torch.jit.is_tracing() or not x.is_floating_point():
            return False
        device = x.device.type
        wanted = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return wanted in (None, self.dtype) and (wanted is not None or x.dtype == self.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a copy of the module computes as it did before it was frozen


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
    if after == "gelu" and weight.is_cuda and depthwise.usable(weight, conv):
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


class FrozenAttention(Frozen):
    """Efficient self-attention without its norm before and its addition after."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        attention, channels = module.attn, module.attn.embed_dim
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        biases = (None, None) if bias is None else bias.split((channels, 2 * channels))
        self.heads = (attention.num_heads, attention.head_dim)
        self.reduce = convolution(module.sr, dtype) if module.sr_ratio > 1 else None
        self.norm = Norm(module.norm, dtype) if module.sr_ratio > 1 else None
        if self.reduce is None:
            self.qkv = linear(weight, bias, dtype)
        else:
            parts = weight.split((channels, 2 * channels))
            self.q, self.kv = (linear(w, b, dtype) for w, b in zip(parts, biases, strict=True))
        self.out = linear(attention.out_proj.weight, attention.out_proj.bias, dtype)

    def __call__(self, x: Tensor, hw: Sequence[int]) -> Tensor:
        """Tokens [B, L, C] -> [B, L, C]."""
        if self.reduce is None or self.norm is None:
            qkv = self.qkv(x).unflatten(-1, (3, *self.heads))
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            keys = self.norm(nchw_to_nlc(self.reduce(nlc_to_nchw(x, hw))))
            q = self.q(x).unflatten(-1, self.heads).transpose(1, 2)
            k, v = self.kv(keys).unflatten(-1, (2, *self.heads)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(attend(q, k, v))


class FrozenFFN:
    """A block's second half: norm, feed-forward network and addition."""

    def __init__(self, norm: nn.LayerNorm, ffn: Any, dtype: torch.dtype) -> None:
        fc1, depthwise, _, _, fc2, _ = ffn.layers
        self.norm = Norm(norm, dtype)
        self.fc1, self.fc2 = pointwise(fc1, dtype), pointwise(fc2, dtype)
        self.depthwise_gelu = convolution(depthwise, dtype, after="gelu")
        self.width = fc1.out_channels
        ones = depthwise.stride == depthwise.padding == depthwise.dilation == (1, 1)
        self.neighbours = ones and depthwise.kernel_size == (3, 3)  # of a row: one on each side

    def add_to(self, x: Tensor, hw: Sequence[int]) -> None:
        """Tokens [B, L, C], in place."""
        tokens = self.norm(x)
        bands = bands_of(x, hw[0], hw[1] * self.width) if self.neighbours else []
        if len(bands) < 2:
            x += self.branch(tokens, hw)
            return
        height, width = hw
        for image, out in zip(tokens, x, strict=True):
            for start, stop in bands:
                above, below = max(start - 1, 0), min(stop + 1, height)
                rows = image[above * width : below * width][None]
                inner = slice(start - above, stop - above)
                branch = self.branch(rows, (below - above, width), inner)
                out[start * width : stop * width] += branch[0]

    def branch(self, tokens: Tensor, hw: Sequence[int], rows: slice = slice(None)) -> Tensor:
        """What is added to tokens whose norm is given, for some rows of the map: [B, L, C] -> [B, L', C]."""
        hidden = self.depthwise_gelu(nlc_to_nchw(self.fc1(tokens), hw))
        return self.fc2(nchw_to_nlc(hidden[:, :, rows]))


class FrozenStage(Frozen):
    """Patch embedding, blocks and norm of a stage."""

    def __init__(self, embed: Any, blocks: Any, norm: nn.LayerNorm, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.embed = convolution(embed.projection, dtype)
        self.embed_norm = Norm(embed.norm, dtype)
        self.blocks = [
            (
                Norm(block.norm1, dtype),
                FrozenAttention(block.attn, dtype),
                FrozenFFN(block.norm2, block.ffn, dtype),
            )
            for block in blocks
        ]
        self.norm = Norm(norm, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W'] with channels last."""
        x = self.embed(x)
        hw = x.shape[2:]
        x = self.embed_norm(nchw_to_nlc(x))
        if kernels.usable(x):
            return nlc_to_nchw(self._fused(x, hw), hw)
        for norm1, attention, ffn in self.blocks:
            x += attention(norm1(x), hw)
            ffn.add_to(x, hw)
        return nlc_to_nchw(self.norm(x), hw)


    def _fused(self, x: Tensor, hw: Sequence[int]) -> Tensor:
        """Tokens after all blocks and the stage's norm; each addition in one pass with the norm after it."""
        norms = [norm for norm1, _, ffn in self.blocks for norm in (norm1, ffn.norm)]
        branches = [run for _, attention, ffn in self.blocks for run in (attention, ffn.branch)]
        tokens = norms[0](x)
        for branch, norm in zip(branches, [*norms[1:], self.norm], strict=True):
            tokens = norm.after(x, branch(tokens, hw))
        return tokens


class FrozenBackbone(Frozen):
    """A MixVisionTransformer's forward."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.stages = [FrozenStage(e, b, n, dtype) for e, b, n in module.layers]
        self.kept = module.out_indices
        self.recorded = Recorded(self._maps)

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] -> maps [B, C_i, H_i, W_i] with channels last."""
        return list(self.recorded(x))

    def _maps(self, x: Tensor) -> list[Tensor]:
        outs = []
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.dtype, memory_format=torch.channels_last)
            for i, stage in enumerate(self.stages):
                x = stage(x)
                if i in self.kept:
                    outs.append(x)
        return outs


class FrozenHead(Frozen):
    """A SegformerHead's forward."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        affines = [_affine(block) for block in (*module.convs, module.fusion_conv)]
        self.embed = [
            pointwise(block.conv, dtype, affine, after="relu")
            for block, affine in zip(module.convs, affines[:-1], strict=True)
        ]
        weight, bias = module.fusion_conv.conv.matrix(affines[-1])
        parts = weight.split([block.conv.out_channels for block in module.convs], dim=1)
        last = len(parts) - 1  # the smallest map: resizing leaves a constant as it is
        self.fuse = [linear(p, bias if i == last else None, dtype) for i, p in enumerate(parts)]
        self.classify = pointwise(module.conv_seg, dtype)
        self.resize = {"mode": module.interpolate_mode, "align_corners": module.align_corners}
        self.bilinear = module.interpolate_mode == "bilinear" and not module.align_corners
        self.width, self.classes = module.channels, module.conv_seg.out_channels
        self.recorded = Recorded(lambda *maps: [self._logits(maps)])

    def __call__(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps [B, C_i, H_i, W_i] -> logits [B, classes, H_0, W_0]."""
        return self.recorded(*maps)[0]

    def _logits(self, maps: Sequence[Tensor]) -> Tensor:
        batch, _, height, width = maps[0].shape
        with torch.autocast(maps[0].device.type, enabled=False):
            x, *rest = (x.to(self.dtype) for x in maps)
            sums = [self._sum(small, i) for i, small in enumerate(rest, 1)]
            factors = [whole_factor(small, height, width) for small in sums]
            bands = []
            if self.bilinear and all(factors):
                bands = bands_of(x, height, width * self.width, max(factors, default=1))
            if len(bands) < 2:
                return to_nchw(self._rows(x, sums)).contiguous()
            logits = x.new_empty(batch, height, width, self.classes)
            for i in range(batch):
                own = [small[i : i + 1] for small in sums]
                for start, stop in bands:
                    rows = self._rows(x[i : i + 1, :, start:stop], own, (start, stop))
                    logits[i, start:stop] = rows[0]
            return to_nchw(logits).contiguous()

    def _sum(self, x: Tensor, scale: int) -> Tensor:
        """A map's share of the fusion [B, C, H_i, W_i]."""
        return nlc_to_nchw(self.fuse[scale](self.embed[scale](nchw_to_nlc(x))), x.shape[2:])

    def _rows(
        self, x: Tensor, sums: Sequence[Tensor], band: tuple[int, int] | None = None
    ) -> Tensor:
        """Logits [B, rows, W_0, classes] of the largest map's rows `x`."""
        own = to_nhwc(self._sum(x, 0))
        maps = [own, *map(to_nhwc, sums)]
        if band is None and self.bilinear and fits(maps):
            return self.classify(sum_enlarged(maps, relu=True))
        total: Tensor | None = None
        for small in reversed(sums):
            if band is None:
                out = F.interpolate(small, size=x.shape[2:], **self.resize)
            else:
                out = upsample_rows(small, band, x.shape[3])
            total = out if total is None else total.add_(out)
        total = to_nchw(own) if total is None else total.add_(to_nchw(own))
        return self.classify(to_nhwc(total.relu_()))


def _affine(block: Any) -> Affine | None:
    if not block.with_norm:
        return None
    affine = norm_as_affine(block.norm)
    if affine is None:
        raise ValueError("a norm of the head cannot be folded")
    return affine


def freeze_weights(model: nn.Module, dtype: torch.dtype = torch.float32) -> bool:
    """Prepares an accelerated model for prediction with weights that stay as they are.

    Args:
        model: In eval mode, on its device. What is not in the accelerated form is left alone.
        dtype: What to compute in; with `torch.bfloat16` the frozen forwards run under autocast of that dtype.

    Returns:
        Whether backbone or head are frozen.
    """
    from spark_seg.models import fast_segformer as fast

    done = False
    for module in list(model.modules()):
        if type(module) is fast.FastMixVisionTransformer and _is_usual_backbone(module, fast):
            module.frozen, done = FrozenBackbone(module, dtype), True
        elif type(module) is fast.FastSegformerHead and _is_usual_head(module):
            module.frozen, done = FrozenHead(module, dtype), True
    return done


def _is_usual_backbone(module: Any, fast: Any) -> bool:
    def affine(norm: Any) -> bool:
        return type(norm) in (nn.LayerNorm, FastLayerNorm) and norm.weight is not None and norm.bias is not None

    def usual(block: Any) -> bool:
        activate = block.ffn.layers[2]
        return bool(
            type(block.attn) is fast.FastAttention
            and type(block.ffn) is fast.FastMixFFN
            and type(activate) is nn.GELU
            and activate.approximate == "none"
            and affine(block.norm1)
            and affine(block.norm2)
            and (block.attn.sr_ratio == 1 or affine(block.attn.norm))
        )

    return not module.training and all(
        type(embed) is fast.FastPatchEmbed
        and embed.adap_padding is None
        and affine(embed.norm)
        and affine(norm)
        and all(usual(block) for block in blocks)
        for embed, blocks, norm in module.layers
    )


def _is_usual_head(module: Any) -> bool:
    blocks = [*module.convs, module.fusion_conv]
    return (
        not module.training
        and all(
            type(block.activate) is nn.ReLU
            and (not block.with_norm or norm_as_affine(block.norm) is not None)
            for block in blocks
            if block.with_activation
        )
        and all(block.with_activation for block in blocks)
    )
