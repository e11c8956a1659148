"""SegFormer-b2 on SPARK 2024, coarse to fine: finds the craft in the shrunken frame, segments a crop at native size.

    python tools/train.py configs/segformer_b2_spark_roi.py

Weights fit segformer_b2_spark.py and the other way round. Expected score and GPU-hours: not measured (docs/roi.md).
"""

_base_ = ["./segformer_b2_spark.py"]
roi = dict(coarse=0.5, crops=[0.5, 0.75, 1.0], fallback=1.0)  # shares of image_size
roi.update(margin=0.15, least_margin=16, threshold=0.3, sure=0.6, join=0.05, mix=0.25)
model = dict(type="RoiEncoderDecoder", size="$image_size", roi="$roi", boxes=None, finder=None)
train_pipeline = [
    dict(type="LoadSparkImage"),
    dict(type="LoadSparkMask"),
    dict(type="ColorJitter", brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1, space="yiq"),
    dict(type="RandomRoi", size="$image_size", roi="$roi", rotation=30, scale=0.2, shift=0.1),
    dict(type="PackRoiInputs", meta_keys="$_meta"),
]
_shrink = dict(type="ShrinkFrame", size="$image_size", roi="$roi")
_pack = dict(type="PackRoiInputs", meta_keys="$_meta")
val_pipeline = [dict(type="LoadSparkImage"), _shrink, dict(type="LoadSparkMask"), _pack]
test_pipeline = [dict(type="LoadSparkImage"), _shrink, _pack]
