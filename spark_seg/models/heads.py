"""The paper's decode head, built from mmseg's parts."""

from typing import Any

from spark_seg import compat

compat.install()  # mmseg.models does not import with mmcv-lite otherwise

from mmcv.cnn import ConvModule  # noqa: E402
from mmseg.models.decode_heads import SegformerHead  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402


@MODELS.register_module()
class PaperSegformerHead(SegformerHead):
    """SegFormer's decoder as the paper, NVlabs and Hugging Face have it (Xie et al. 2021, arXiv:2105.15203, 3.2).

    Each of the four maps goes through a linear projection with bias and **neither norm nor ReLU**, is resized to the
    finest and concatenated; then a 1x1 convolution, batch norm and ReLU, and the classifier. mmseg's `SegformerHead`
    has a batch norm and a ReLU after each projection too. Select it by `model.decode_head.type=PaperSegformerHead`; the
    paper's widths are `model.decode_head.channels=256` for b0 and b1 and `768` for b2 to b5.

    Parameters (`i` from 0, fine to coarse; C = `channels`):
    `convs.i.conv.weight` [C, in_channels[i], 1, 1], `convs.i.conv.bias` [C];
    `fusion_conv.conv.weight` [C, 4 C, 1, 1], its inputs from fine to coarse; `fusion_conv.bn.*` [C];
    `conv_seg.weight` [classes, C, 1, 1], `conv_seg.bias` [classes].

    Args:
        **kwargs: As of `SegformerHead`; `norm_cfg` is the fusion's, `act_cfg` too.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for i, channels in enumerate(self.in_channels):
            # in place of the stock block, whose norm and activation the paper does not have
            self.convs[i] = ConvModule(
                in_channels=channels,
                out_channels=self.channels,
                kernel_size=1,
                norm_cfg=None,
                act_cfg=None,
            )
