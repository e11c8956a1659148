"""SegFormer-b2 on SPARK 2024: 24.7 M parameters: the recommended start.

    python tools/train.py configs/segformer_b2_spark.py

Starts from mmseg's ADE20K weights, 512 px, 100 epochs, ZeRO-1 on several GPUs.
Expected score and GPU-hours: not measured yet.
"""

_base_ = [
    "./_base_/datasets/spark.py",
    "./_base_/models/segformer_mit-b2.py",
    "./_base_/schedules/adamw_cosine.py",
    "./_base_/strategies/deepspeed.py",
    "./_base_/default_runtime.py",
]
variant = "b2"
pretrained = "ade20k"  # 'cityscapes' | 'imagenet' | None
freeze_backbone = False
