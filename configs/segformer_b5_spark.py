"""SegFormer-b5 on SPARK 2024: 82.0 M parameters (81.4 M of them the backbone): the largest.

    python tools/train.py configs/segformer_b5_spark.py

Starts from mmseg's ADE20K weights, 512 px, 100 epochs, ZeRO-2 on several GPUs. Expected score and
GPU-hours: not measured yet.
"""

_base_ = [
    "./_base_/datasets/spark.py",
    "./_base_/models/segformer_mit-b5.py",
    "./_base_/schedules/adamw_cosine.py",
    "./_base_/strategies/deepspeed.py",
    "./_base_/default_runtime.py",
]
variant = "b5"
pretrained = "ade20k"  # 'cityscapes' | 'imagenet' | None
freeze_backbone = False
