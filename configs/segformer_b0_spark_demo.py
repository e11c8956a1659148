"""SegFormer-b0 from scratch on rendered frames: the whole job on a laptop, nothing to download.

    python tools/train.py configs/segformer_b0_spark_demo.py

Renders its data on first use. Windows on the craft, no regularisation, input centred on the dark sky: few steps count.
"""

_base_ = ["./segformer_b0_spark.py"]
pretrained = None
data_root = "data/spark_demo"
demo_data = dict(images=400, val=60, test=20, size=1024, seed=0)
image_size, batch_size, epochs, val_every = 256, 12, 45, 15
lr, min_lr, warmup_epochs = 1.2e-3, 1e-5, 0.05
num_workers, log_every = 1, 10
_norm = dict(mean=[36, 36, 36], std=[30, 30, 30])
_head = dict(dropout_ratio=0.0)
model = dict(data_preprocessor=_norm, backbone=dict(drop_path_rate=0.0), decode_head=_head)
train_pipeline = [
    dict(type="LoadSparkImage", shrink=2, keep=True),
    dict(type="LoadSparkMask", shrink=2, keep=True),
    dict(type="RandomWarp", size="$image_size", crop=0.5, focus=0.8),
    dict(type="ColorJitter"),
    dict(type="PackSegInputs", meta_keys="$_meta"),
]
