"""SegFormer-b0 from scratch on rendered frames: the whole job on a laptop, nothing to download.

    python tools/train.py configs/segformer_b0_spark_demo.py

Renders its data on first use. Many frames, small windows on the craft at two thirds of image_size, no regularisation,
input centred on the dark sky and averaged weights make the most of a few minutes; evaluation affords a closer look.
"""

_base_ = ["./segformer_b0_spark.py"]
pretrained, data_root = None, "data/spark_demo"
demo_data = dict(images=1600, train_size=512, val=60, test=20, size=1024, seed=0)
image_size, tta, batch_size, epochs, val_every = 384, 8, 32, 10, 10
lr, min_lr, warmup_epochs, betas, ema_decay = 2e-3, 1e-5, 0.05, (0.9, 0.99), 0.995
num_workers, log_every, cache, zero_stage, schedule = 0, 50, None, 0, "poly"  # all stays in memory
optimizer = dict(_delete_=True, type="MuonAdamW", ns_steps=4)  # more from each frame than AdamW
_warp = dict(scale=(0.6, 0.73), rotation=10, turns=0.75, crop=0.25, focus=0.8)
_norm, _head = dict(mean=[36, 36, 36], std=[30, 30, 30]), dict(dropout_ratio=0.0)
model = dict(data_preprocessor=_norm, backbone=dict(drop_path_rate=0.0), decode_head=_head)
train_pipeline = [
    dict(type="LoadSparkImage", shrink=2, keep=True),
    dict(type="LoadSparkMask", shrink=2, keep=True),
    dict(type="RandomWarp", size="$image_size", **_warp),
    dict(type="PackSparkInputs", meta_keys="$_meta"),
]
