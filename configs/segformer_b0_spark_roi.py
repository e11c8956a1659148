"""SegFormer-b0 on SPARK 2024, coarse to fine: the fastest way to the frame's own pixels.

    python tools/train.py configs/segformer_b0_spark_roi.py

As segformer_b2_spark_roi.py in all but the network. Expected score and GPU-hours: not measured (docs/roi.md).
"""

_base_ = ["./segformer_b2_spark_roi.py"]
variant = "b0"
model = dict(
    backbone=dict(embed_dims=32, num_layers=[2, 2, 2, 2]),
    decode_head=dict(in_channels=[32, 64, 160, 256]),
)
