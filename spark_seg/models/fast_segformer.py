"""SegFormer, the same function in less time.

`accelerate(model)` gives mmseg's native modules faster forwards, in place. What is saved:

- Attention by `scaled_dot_product_attention`; mmseg asks for the averaged weights and drops them.
- The feed-forward network's 1x1 convolutions are matrix products of tokens as they lie, between them a depthwise
  convolution with channels last: no copies from tokens to maps and back.
- Training keeps GELU's inputs and not its outputs, which are made again: much less memory for little time.
- The head's fusion convolution acts on each scale before it is upsampled (`fast_layers.SumConv2d`).
- In eval mode the head's norms are folded into its convolutions.
- Drop path is one pass over the residual, the head's dropout acts on the classifier's weights. Both draw the
  random numbers that stock draws: from equal seeds come equal masks.

Shapes: B images, C channels, H and W of a feature map, L = H * W tokens.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.drop import DropPath
from mmcv.cnn.bricks.wrappers import Conv2d
from mmseg.models.backbones.mit import (
    EfficientMultiheadAttention,
    MixFFN,
    MixVisionTransformer,
    TransformerEncoderLayer,
)
from mmseg.models.decode_heads import SegformerHead
from mmseg.models.utils import PatchEmbed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from spark_seg.models import kernels, norms
from spark_seg.models.depthwise import usable
from spark_seg.models.fast_layers import (
    DepthwiseConv2d,
    FastBatchNorm2d,
    FastConvModule,
    FastFusionModule,
    FastLinear,
    FastSelfAttention,
    PatchConv2d,
    PointwiseConv2d,
    SumConv2d,
    is_patchwise,
    made_again,
    nchw_to_nlc,
    nlc_to_nchw,
)
from spark_seg.models.heads import PaperSegformerHead


class Freezable:
    """Mixed into a module: it may hold a faster forward for constant weights (`fast_inference.freeze_weights`)."""

    frozen: Any = None

    def train(self, mode: bool = True) -> Any:
        """Training ends the freeze."""
        if mode:
            self.frozen = None
        return super().train(mode)  # type: ignore[misc]

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.frozen = None  # moved or cast
        return super()._apply(*args, **kwargs)  # type: ignore[misc]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.frozen = None
        super()._load_from_state_dict(*args, **kwargs)  # type: ignore[misc]


class FastMixVisionTransformer(Freezable, MixVisionTransformer):
    """The backbone; its maps have their channels last."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] -> a map [B, C_i, H_i, W_i] of each stage in `out_indices`."""
        if self.frozen is not None and self.frozen.usable(self, x):
            return self.frozen(x)
        outs = []
        for i, (embed, blocks, norm) in enumerate(self.layers):
            x, size = embed(x)
            for block in blocks:
                x = block(x, size)
            x = nlc_to_nchw(norm(x), size)
            if i in self.out_indices:
                outs.append(x)
        return outs


class FastPatchEmbed(PatchEmbed):
    """An image or a map to tokens."""

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[B, C, H, W] -> tokens [B, L, C'], and (H', W')."""
        if self.adap_padding:
            x = self.adap_padding(x)
        x = self.projection(x.contiguous(memory_format=torch.channels_last))
        size = (x.shape[2], x.shape[3])
        x = nchw_to_nlc(x)
        return (x if self.norm is None else self.norm(x)), size


class FastMixFFN(MixFFN):
    """The feed-forward network with a depthwise convolution in its middle."""

    def forward(self, x: Tensor, hw_shape: Sequence[int], identity: Tensor | None = None) -> Tensor:
        """Tokens [B, L, C] of a map of `hw_shape` (H, W), and what they are added to [B, L, C] -> [B, L, C]."""
        fc1, depthwise, activate, drop, fc2, _ = self.layers
        wide = nlc_to_nchw(fc1(x), hw_shape)
        gelu = type(activate) is nn.GELU and activate.approximate == "none"
        if gelu and usable(wide, depthwise):
            out = fc2(drop(nchw_to_nlc(depthwise(wide, gelu=True))))
            return add_branch(x if identity is None else identity, drop(out), self.dropout_layer)
        hidden = nchw_to_nlc(depthwise(wide))
        out = drop(activate(hidden))
        # Of three maps four times as wide as the stage's, one need not be kept: GELU's input is, its output is cheap.
        again = type(activate) is nn.GELU and (drop.p == 0 or not drop.training)
        if again and hidden.requires_grad and hidden.dtype == out.dtype and not _is_traced():
            with made_again(out, lambda: activate(hidden)):
                out = fc2(out)
        else:
            out = fc2(out)
        return add_branch(x if identity is None else identity, drop(out), self.dropout_layer)


class FastAttention(EfficientMultiheadAttention):
    """Self-attention with keys and values from a smaller map."""

    def forward(self, x: Tensor, hw_shape: Sequence[int], identity: Tensor | None = None) -> Tensor:
        """As `FastMixFFN.forward`."""
        keys = x
        if self.sr_ratio > 1:
            keys = self.norm(nchw_to_nlc(self.sr(nlc_to_nchw(x, hw_shape))))
        out = self.proj_drop(self.attn(x, keys))
        return add_branch(x if identity is None else identity, out, self.dropout_layer)


class FastSegformerHead(Freezable, SegformerHead):
    """The all-MLP head."""

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps [B, C_i, H_i, W_i] of the backbone -> logits [B, classes, H_0, W_0]."""
        inputs = self._transform_inputs(inputs)
        if self.frozen is not None and self.frozen.usable(self, inputs[0]):
            return self.frozen(inputs)
        maps = [conv(x) for conv, x in zip(self.convs, inputs, strict=True)]
        size = inputs[0].shape[2:]
        return self.cls_seg(self.fusion_conv(maps, size, self.interpolate_mode, self.align_corners))

    def cls_seg(self, feat: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, classes, H, W]."""
        gain = None
        if self.dropout is not None and self.dropout.training:
            # Whole channels are dropped or scaled: what becomes of ones says all of it.
            gain = self.dropout(feat.new_ones(*feat.shape[:2], 1, 1)).flatten(1)
        return self.conv_seg(feat, gain=gain).contiguous()


class FastPaperSegformerHead(FastSegformerHead, PaperSegformerHead):
    """The same for the paper's head, whose projections have neither norm nor activation."""


def add_branch(identity: Tensor, branch: Tensor, drop: Any) -> Tensor:
    """`identity + drop(branch)` [B, L, C], for drop path in one pass."""
    if isinstance(drop, DropPath) and not drop.training:
        return (
            identity + branch
        )  # unasked: a compiled graph would hold for this block's probability alone
    if type(drop) is TensorDropPath:
        noise = torch.rand((branch.shape[0], 1, 1), dtype=branch.dtype, device=branch.device)
        return identity + branch * ((drop.keep + noise).floor() / drop.keep)
    if type(drop) is not DropPath or drop.drop_prob == 0:
        return identity + drop(branch)
    # As mmcv's `drop_path` draws it: the same numbers from the same seed, a share `keep` of ones.
    keep = 1 - drop.drop_prob
    noise = torch.rand((branch.shape[0], 1, 1), dtype=branch.dtype, device=branch.device)
    if kernels.usable(identity, branch) and identity.is_contiguous() and branch.is_contiguous():
        scale = (keep + noise).floor().flatten().float() / keep
        return norms.scaled_sum(identity, branch, scale)
    return torch.addcmul(identity, branch, (keep + noise).floor(), value=1 / keep)


class TensorDropPath(DropPath):
    """Drop path whose probability is a tensor: blocks that differ in it share one compiled graph."""

    keep: Tensor  # 0-dimensional, in the host's memory

    @classmethod
    def convert(cls, drop: DropPath) -> None:
        """Makes one of a DropPath, in place."""
        drop.__class__ = cls
        drop.keep = torch.tensor(1 - drop.drop_prob, dtype=torch.float64)


def accelerate(model: nn.Module) -> int:
    """Gives every SegFormer part of a model a faster forward, in place.

    Parameters, buffers, state-dict keys, and outputs and gradients up to rounding stay as they are; modules change
    their class to a subclass, so copies and pickles stay fast. Call it on a model that is not wrapped yet. What is not
    mmseg's own class in its usual form (a subclass of it, a layer replaced or parametrised) is left alone. Calling it
    again changes nothing. Warns where the model has nothing to accelerate.

    Args:
        model: Any module, in any mode, on any device.

    Returns:
        How many attentions, feed-forward networks, patch embeddings and heads are now fast.
    """
    count = 0
    for module in list(model.modules()):
        for stock, fast, convert in _CONVERSIONS:
            if type(module) is stock and convert(module):
                module.__class__ = fast
            count += type(module) is fast
        if type(module) is TransformerEncoderLayer:
            _convert_norms(module)
        if type(module) is MixVisionTransformer:
            module.__class__ = FastMixVisionTransformer
            stages: Any = module.layers
            for embed, _, norm in stages:
                _convert_norm(embed.norm)
                _convert_norm(norm)
    if not count:
        warnings.warn(
            f"accelerate: {type(model).__name__} has no SegFormer parts that could be made faster",
            stacklevel=2,
        )
    return count


def _convert_patch_embed(module: PatchEmbed) -> bool:
    return isinstance(module.projection, nn.Conv2d)


def _convert_ffn(module: MixFFN) -> bool:
    layers = list(module.layers)
    if len(layers) != 6:
        return False
    fc1, depthwise, _, _, fc2, _ = layers
    if not (_is_pointwise(fc1) and isinstance(depthwise, nn.Conv2d) and _is_pointwise(fc2)):
        return False
    fc1.__class__ = fc2.__class__ = PointwiseConv2d
    if type(depthwise) in (nn.Conv2d, Conv2d):
        depthwise.__class__ = DepthwiseConv2d
    return True


def _convert_attention(module: EfficientMultiheadAttention) -> bool:
    attention = module.attn
    if type(attention) is not nn.MultiheadAttention or not module.batch_first:
        return False
    # Its forward is bound to the legacy one under mmcv before 1.3.17; the others are what `__init__` never asks for.
    usual = "forward" not in vars(module) and not attention.batch_first
    if not usual or not attention._qkv_same_embed_dim or attention.bias_k is not None:
        return False
    if attention.add_zero_attn:
        return False
    attention.__class__ = FastSelfAttention
    if type(attention.out_proj) is NonDynamicallyQuantizableLinear:
        attention.out_proj.__class__ = FastLinear
    if module.sr_ratio > 1 and type(module.sr) in (nn.Conv2d, Conv2d) and is_patchwise(module.sr):
        module.sr.__class__ = PatchConv2d
    return True


def _convert_norms(block: TransformerEncoderLayer) -> None:
    norm: Any
    for norm in (block.norm1, block.norm2, getattr(block.attn, "norm", None)):
        if _convert_norm(norm):
            norm.low_precision = True  # linear layers and convolutions read it, nobody else


def _convert_norm(norm: Any) -> bool:
    if type(norm) is nn.LayerNorm and norm.elementwise_affine and norm.bias is not None:
        norm.__class__ = norms.FastLayerNorm
    return type(norm) is norms.FastLayerNorm


def _convert_head(module: SegformerHead) -> bool:
    blocks = [*module.convs, module.fusion_conv]
    if not all(_is_usual_block(block) for block in blocks) or not _is_pointwise(module.conv_seg):
        return False
    for block in module.convs:
        block.__class__, block.conv.__class__ = FastConvModule, PointwiseConv2d
    fusion = module.fusion_conv
    fusion.__class__, fusion.conv.__class__ = FastFusionModule, SumConv2d
    module.conv_seg.__class__ = PointwiseConv2d
    for block in blocks:
        if block.with_norm and type(block.norm) is nn.BatchNorm2d:
            block.norm.__class__ = FastBatchNorm2d
    return True


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _is_pointwise(module: Any) -> bool:
    return bool(
        type(module) in (nn.Conv2d, Conv2d)
        and module.kernel_size == module.stride == (1, 1)
        and module.padding == (0, 0)
        and module.groups == 1
    )


def _is_usual_block(module: Any) -> bool:
    return bool(
        type(module) is ConvModule
        and _is_pointwise(module.conv)
        and module.order == ("conv", "norm", "act")
        and not module.with_explicit_padding
        and not module.with_spectral_norm
        and module.efficient_conv_bn_eval_forward is None
        and (not module.with_norm or isinstance(module.norm, _BatchNorm))
    )


_CONVERSIONS: tuple[tuple[type, type, Callable[[Any], bool]], ...] = (
    (PatchEmbed, FastPatchEmbed, _convert_patch_embed),
    (MixFFN, FastMixFFN, _convert_ffn),
    (EfficientMultiheadAttention, FastAttention, _convert_attention),
    (SegformerHead, FastSegformerHead, _convert_head),
    (PaperSegformerHead, FastPaperSegformerHead, _convert_head),
)
