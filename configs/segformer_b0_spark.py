"""SegFormer-b0 on SPARK 2024: 3.7 M parameters: the fastest; prototypes, and SPARK 2026's size and FLOP bonus.

    python tools/train.py configs/segformer_b0_spark.py

Starts from mmseg's ADE20K weights, 512 px, 100 epochs, ZeRO-1 on several GPUs.
Expected score and GPU-hours: not measured yet.
"""

_base_ = [
    "./_base_/datasets/spark.py",
    "./_base_/models/segformer_mit-b0.py",
    "./_base_/schedules/adamw_cosine.py",
    "./_base_/strategies/deepspeed.py",
    "./_base_/default_runtime.py",
]
variant = "b0"
pretrained = "ade20k"  # 'cityscapes' | 'imagenet' | None
freeze_backbone = False
