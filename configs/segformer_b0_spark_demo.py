"""SegFormer-b0 from scratch on rendered frames: the whole job on a laptop, nothing to download.

    python tools/train.py configs/segformer_b0_spark_demo.py

Renders its data on first use. Expected on 2 CPU cores: see the README.
"""

_base_ = ["./segformer_b0_spark.py"]
pretrained = None
data_root = "data/spark_demo"
demo_data = dict(images=400, val=60, test=20, size=1024, seed=0)
image_size = 256
batch_size = 8
epochs = 7
warmup_epochs = 0.1  # of all epochs
lr = 1e-3
min_lr = 1e-5
num_workers = 2
val_every = 3
log_every = 10
