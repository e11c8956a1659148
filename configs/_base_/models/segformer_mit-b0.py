"""SegFormer with a MiT-B0 backbone (arXiv:2105.15203), 3.716 M parameters at 3 classes.

mmsegmentation's own modules throughout; b1 to b5 derive from this file. `$num_classes` is filled in
from the config's `num_classes` after all merging.
"""

# BN, not SyncBN: mmengine's DeepSpeed strategy never converts it, and SyncBN cannot run on a CPU in
# a process group.
_norm_cfg = dict(type="BN", requires_grad=True)
_data_preprocessor = dict(
    type="SparkDataPreProcessor",
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
    # mmseg wants either a size or a divisor; 1 leaves frames of equal size as they are.
    size_divisor=1,
)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=_data_preprocessor,
    pretrained=None,
    backbone=dict(
        type="MixVisionTransformer",
        in_channels=3,
        embed_dims=32,
        num_stages=4,
        num_layers=[2, 2, 2, 2],
        num_heads=[1, 2, 5, 8],
        patch_sizes=[7, 3, 3, 3],
        strides=[4, 2, 2, 2],
        sr_ratios=[8, 4, 2, 1],
        out_indices=(0, 1, 2, 3),
        mlp_ratio=4,
        qkv_bias=True,
        drop_rate=0.0,
        attn_drop_rate=0.0,
        drop_path_rate=0.1,
        norm_cfg=dict(type="LN", eps=1e-6),
        with_cp="$activation_checkpointing",
    ),
    decode_head=dict(
        type="SegformerHead",
        in_channels=[32, 64, 160, 256],
        in_index=[0, 1, 2, 3],
        channels=256,
        dropout_ratio=0.1,
        num_classes="$num_classes",
        norm_cfg=_norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyDiceLoss", ce_weight=0.5, dice_weight=0.5),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
