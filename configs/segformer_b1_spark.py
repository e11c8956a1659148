"""SegFormer-b1 on SPARK 2024: 13.7 M parameters: a step up from b0 at little cost.

    python tools/train.py configs/segformer_b1_spark.py

Starts from mmseg's ADE20K weights, 512 px, 100 epochs, ZeRO-1 on several GPUs.
Expected score and GPU-hours: not measured yet.
"""

_base_ = [
    "./_base_/datasets/spark.py",
    "./_base_/models/segformer_mit-b1.py",
    "./_base_/schedules/adamw_cosine.py",
    "./_base_/strategies/deepspeed.py",
    "./_base_/default_runtime.py",
]
variant = "b1"
pretrained = "ade20k"  # 'cityscapes' | 'imagenet' | None
freeze_backbone = False
