"""SegFormer-b0 from scratch on rendered frames: the whole job on a laptop, nothing to download.

    python tools/train.py configs/segformer_b0_spark_demo.py

Renders its data on first use, training frames at half size. Many frames, small windows on the craft, no
regularisation, input centred on the dark sky and an average of the weights make the most of a few minutes. What
computes little in training may look closer afterwards: whole frames a quarter larger, in eight views.
"""

_base_ = ["./segformer_b0_spark.py"]
pretrained, data_root = None, "data/spark_demo"
demo_data = dict(images=1600, train_size=512, val=60, test=20, size=1024, seed=0)
image_size, tta = 320, 8
batch_size, epochs, val_every = 8, 10, 10
lr, min_lr, warmup_epochs, betas, ema_decay = 2e-3, 1e-5, 0.05, (0.9, 0.99), 0.998
num_workers, log_every, cache = 1, 50, None  # masks stay in memory
zero_stage = 0  # partitions cost a small model more than they save
optim_wrapper = dict(optimizer=dict(fused=True))
_norm, _head = dict(mean=[36, 36, 36], std=[30, 30, 30]), dict(dropout_ratio=0.0)
model = dict(data_preprocessor=_norm, backbone=dict(drop_path_rate=0.0), decode_head=_head)
train_pipeline = [
    dict(type="LoadSparkImage", shrink=2, keep=True),
    dict(type="LoadSparkMask", shrink=2, keep=True),
    dict(type="RandomWarp", size=256, rotation=10, scale=0.1, crop=96, focus=0.8),
    dict(type="PackSparkInputs", meta_keys="$_meta"),
]
