# SPARK 2024, stream 1. The root is `data_root`, else the environment variable SPARK_DATA_ROOT.
data_root = None
test_images = (
    None  # a folder of images; None: SPARK_TEST_ROOT, else found inside or beside the root
)
num_classes = 3
image_size = 512  # the whole frame is resized to image_size x image_size
batch_size = 8  # per GPU
val_batch_size = 1
num_workers = 4
subset = None  # a fraction, a number of frames, or a list of ids, or a file that lists them
sampling = None  # 'satellite' | 'small' | 'panel', a list of them, or dict(by="small", share=0.03, factor=3)
multi_scale = None  # [384, 448, 512]: each step at one of these sizes; image_size is the largest
# Augmentation beside train_pipeline's; numbers are probabilities but where said, a dict has all options (docs/data.md).
turns = None  # 0.75: by a quarter, half or three quarters, all four ways alike
crop_size = None  # 448: training on windows of so many pixels (0.5: of half the side) of the image_size frame
foreground_crop = None  # 0.8: the window is placed on the craft; dict(prob=0.8, least=0.02)
mosaic = None  # 0.3: four frames in one
copy_paste = None  # 0.3: the craft on another frame's background
camera_faults = None  # 2: strength, 0 to 5; half of the samples get up to three faults
coarse_dropout = None  # 0.3: up to eight black rectangles
cache = "auto"  # None | 'auto' | 'labels' | 'labels+half' | 'labels+half_raw': decoded once, on first use; docs/data.md
cache_dir = None  # None: `.spark_cache` inside the tree
skip_bad_files = (
    False  # True: a training file that cannot be read is named and replaced, not an error
)
leave_out = None  # a satellite, or several, to keep out of training

_meta = ("img_path", "seg_map_path", "sample_id", "satellite", "ori_shape", "img_shape")
# mmseg's stock RandomCrop with cat_max_ratio is left out on purpose: background fills over 75 % of nearly every
# frame, so that its test never passes and its ten retries take 60 % of the pipeline's time.
train_pipeline = [
    # decoded no larger than the warp needs it; enlarged again by a quarter at most
    dict(type="LoadSparkImage", reduce=1.25),
    dict(type="LoadSparkMask"),
    dict(
        type="RandomWarp",
        size="$image_size",
        hflip=0.5,
        vflip=0.5,
        rotation=30,
        scale=0.2,
        shift=0.1,
    ),
    dict(type="ColorJitter", brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1, space="yiq"),
    dict(type="PackSparkInputs", meta_keys=_meta),
]
# The mask keeps its own resolution: scores are counted there.
val_pipeline = [
    dict(type="LoadSparkImage"),
    dict(type="ResizeFrame", size="$image_size"),
    dict(type="LoadSparkMask"),
    dict(type="PackSparkInputs", meta_keys=_meta),
]
test_pipeline = [
    dict(type="LoadSparkImage"),
    dict(type="ResizeFrame", size="$image_size"),
    dict(type="PackSegInputs", meta_keys=_meta),
]
train_dataloader = dict(
    batch_size="$batch_size",
    num_workers="$num_workers",
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type="ResumableSampler", shuffle=True),
    dataset=dict(
        type="SparkDataset",
        data_root="$data_root",
        split="train",
        subset="$subset",
        leave_out="$leave_out",
        cache="$cache",
        cache_dir="$cache_dir",
        skip_bad_files="$skip_bad_files",
        pipeline="$train_pipeline",
    ),
)
val_dataloader = dict(
    batch_size="$val_batch_size",
    num_workers="$num_workers",
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="SparkDataset",
        data_root="$data_root",
        split="val",
        subset="$subset",
        cache="$cache",
        cache_dir="$cache_dir",
        pipeline="$val_pipeline",
    ),
)
# The challenge's unlabelled test set, which tools/infer.py predicts.
test_dataloader = dict(
    batch_size="$val_batch_size",
    num_workers="$num_workers",
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="SparkDataset",
        data_root="$data_root",
        split="test",
        images="$test_images",
        pipeline="$test_pipeline",
    ),
)
val_evaluator = dict(type="SparkMetric")
