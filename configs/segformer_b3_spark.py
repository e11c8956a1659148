"""SegFormer-b3 on SPARK 2024: 44.6 M parameters: more accuracy than b2 for 1.7 times its compute.

    python tools/train.py configs/segformer_b3_spark.py

Starts from mmseg's ADE20K weights, 512 px, 100 epochs, ZeRO-1 on several GPUs.
Expected score and GPU-hours: not measured yet.
"""

_base_ = [
    "./_base_/datasets/spark.py",
    "./_base_/models/segformer_mit-b3.py",
    "./_base_/schedules/adamw_cosine.py",
    "./_base_/strategies/deepspeed.py",
    "./_base_/default_runtime.py",
]
variant = "b3"
pretrained = "ade20k"  # 'cityscapes' | 'imagenet' | None
freeze_backbone = False
