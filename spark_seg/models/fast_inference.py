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

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spark_seg.models import kernels
from spark_seg.models.bands import bands_of, upsample_rows, whole_factor
from spark_seg.models.fast_layers import (
    Affine,
    attend,
    nchw_to_nlc,
    nlc_to_nchw,
    norm_as_affine,
    to_nchw,
    to_nhwc,
)
from spark_seg.models.frozen_layers import Norm, convolution, linear, pointwise
from spark_seg.models.graphs import Recorded
from spark_seg.models.norms import FastLayerNorm
from spark_seg.models.resizing import fits, sum_enlarged


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
        return (
            type(norm) in (nn.LayerNorm, FastLayerNorm)
            and norm.weight is not None
            and norm.bias is not None
        )

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
