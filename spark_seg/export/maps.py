"""The accelerated model's graph in the form that OpenVINO computes fastest: 1x1 convolutions of maps.

PyTorch and ONNX Runtime are faster with matrix products of tokens (`spark_seg.models.fast_layers`). OpenVINO lays maps
out itself, and runs convolution, depthwise convolution and activation in that layout; between matrix products and
convolutions it copies whole maps instead, and resizes maps of tokens slowly (a quarter and a sixth of a b0's time).
The function is the same up to rounding, the weights are the model's own.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from spark_seg.models.fast_layers import nchw_to_nlc, norm_as_affine
from spark_seg.models.fast_segformer import (
    FastMixFFN,
    FastPaperSegformerHead,
    FastSegformerHead,
    add_branch,
)


class MapMixFFN(FastMixFFN):
    """The feed-forward network on a map."""

    def forward(self, x: Tensor, hw_shape: Sequence[int], identity: Tensor | None = None) -> Tensor:
        """As `FastMixFFN.forward`."""
        fc1, depthwise, activate, drop, fc2, _ = self.layers
        out = x.transpose(1, 2).unflatten(2, tuple(hw_shape))
        out = drop(activate(depthwise(_convolve(fc1, out))))
        out = nchw_to_nlc(drop(_convolve(fc2, out)))
        return add_branch(x if identity is None else identity, out, self.dropout_layer)


class MapSegformerHead(FastSegformerHead):
    """The head, its fusion convolution applied to each map before that is resized."""

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """As `FastSegformerHead.forward`."""
        inputs = self._transform_inputs(inputs)
        size = inputs[0].shape[2:]
        fusion = self.fusion_conv
        affine = norm_as_affine(fusion.norm) if fusion.with_norm else None
        weight, bias = fusion.conv.matrix(affine)
        parts = weight.split([block.conv.out_channels for block in self.convs], dim=1)
        total: Tensor | None = None
        for x, block, part in reversed(list(zip(inputs, self.convs, parts, strict=True))):
            own = norm_as_affine(block.norm) if block.with_norm else None
            before, shift = block.conv.matrix(own)
            out = block.finish(
                F.conv2d(x, before[..., None, None], shift), True, block.with_norm and own is None
            )
            # the bias once, with the smallest map: resizing leaves a constant as it is
            out = F.conv2d(out, part[..., None, None], bias if total is None else None)
            if x.shape[2:] != size:
                out = F.interpolate(
                    out, size=size, mode=self.interpolate_mode, align_corners=self.align_corners
                )
            total = out if total is None else total + out
        assert total is not None
        return _convolve(
            self.conv_seg, fusion.finish(total, True, fusion.with_norm and affine is None)
        )


class MapPaperSegformerHead(MapSegformerHead, FastPaperSegformerHead):
    """The same for the paper's head."""


def as_maps(model: nn.Module) -> None:
    """Gives an accelerated model's feed-forward networks and head their form for OpenVINO, in place."""
    for module in model.modules():
        for fast, maps in _FORMS:
            if type(module) is fast:
                module.__class__ = maps


def _convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, conv.bias)


_FORMS: tuple[tuple[type, type], ...] = (
    (FastMixFFN, MapMixFFN),
    (FastSegformerHead, MapSegformerHead),
    (FastPaperSegformerHead, MapPaperSegformerHead),
)
