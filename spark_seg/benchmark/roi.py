"""Two passes against whole frames at 1024 px, both as `tools/infer.py` runs them: from image files to submission.zip.

What two passes cost depends on how large the craft are, and random weights find none. With `--roi known` the first pass
is computed as always, and then the second one is given boxes of known sizes: areas follow SPARK's distribution
(median 9 %, mean 11 %, 5th percentile 3 %, between 0.29 and 75.5 % of the frame: a log-normal one fits), longer
sides are 1 to 2 times the shorter, evenly in the logarithm (an assumption: the ten public val boxes have a median of
1.3). Places are random. Nothing falls back to whole frames then. With `--roi found` the given weights find the boxes.
"""

import argparse
import copy
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mmengine.config import Config

WHOLE = 1024
_MEDIAN, _FIFTH, _LEAST, _MOST = 0.09, 0.03, 0.0029, 0.755
_SIGMA = math.log(_MEDIAN / _FIFTH) / 1.6449  # gives a mean of 11.2 %


def box_areas(count: int) -> np.ndarray:
    """Shares of the frame that `count` boxes cover, float64, ascending: equally likely quantiles of SPARK's."""
    normal = statistics.NormalDist(math.log(_MEDIAN), _SIGMA)
    quantiles = [normal.inv_cdf((k + 0.5) / count) for k in range(count)]
    return np.clip(np.exp(quantiles), _LEAST, _MOST)


def known_boxes(ids: Sequence[str], sizes: Sequence[tuple[int, int]]) -> dict[str, list[float]]:
    """A box (x0, y0, x1, y1) for each id, in frames of `sizes` (H, W); the same at every call."""
    rng = np.random.default_rng(0)
    areas = rng.permutation(box_areas(len(ids)))
    boxes = {}
    for name, area, (height, width) in zip(ids, areas, sizes, strict=True):
        aspect = 2 ** rng.uniform(-1, 1)
        # a box that large cannot be longer than the frame
        tall = min(max(math.sqrt(area / aspect), area), 1.0)
        h, w = tall * height, area / tall * width
        x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
        boxes[name] = [x, y, x + w, y + h]
    return boxes


def race(
    args: argparse.Namespace,
    cfg: "Config",
    checkpoint: str | None,
    tree: Path,
    images: Sequence[str],
    scratch: Path,
) -> list[dict[str, Any]]:
    """Rows as `spark_seg.benchmark.infer.main` returns them; `ratio_to_stock` is to whole frames in the same precision.

    Args:
        args: The command's.
        cfg: Of a plain variant, over the images; its `image_size` is the largest crop.
        checkpoint: Weights for both, or None.
        tree: Where frames to fit the last layer to are.
        images: To predict.
        scratch: An empty folder.
    """
    from spark_seg.benchmark.infer import in_turn, model_of
    from spark_seg.benchmark.infer_ways import Ours

    whole = copy.deepcopy(cfg)
    whole.image_size = WHOLE
    for step in whole.test_dataloader.dataset.pipeline:
        if step.type == "ResizeFrame":
            step.size = WHOLE
    roi = two_passes(cfg)
    if args.roi == "known":
        roi.model.boxes = str(_write_boxes(images, scratch / f"boxes_{cfg.image_size}.json"))
    _, weights = model_of(cfg, checkpoint, tree)
    rows = []
    for precision in args.precisions:
        case = f"roi_{precision}"
        ways: dict[tuple[str, str], Any] = {}
        for name, one in (
            (f"whole frames at {WHOLE}", whole),
            (f"two passes, boxes {args.roi}", roi),
        ):
            one.precision = precision
            ways[case, name] = Ours(one, weights, images)
        out = scratch / f"out_{cfg.variant}_{cfg.image_size}_{precision}"
        rows += in_turn(args, cfg, ways, images, out)
    return rows


def two_passes(cfg: "Config") -> "Config":
    """A plain variant's config made one in two passes, as configs/segformer_b2_spark_roi.py."""
    from spark_seg.config import load_config

    roi = load_config(
        "segformer_b2_spark_roi.py", {"image_size": cfg.image_size, "pretrained": None}
    )
    for part in ("backbone", "decode_head", "data_preprocessor"):
        roi.model[part] = copy.deepcopy(cfg.model[part])
    roi.variant = cfg.variant
    pipeline = roi.test_dataloader.dataset.pipeline
    roi.test_dataloader = copy.deepcopy(cfg.test_dataloader)
    roi.test_dataloader.dataset.pipeline = pipeline
    return roi


def _write_boxes(images: Sequence[str], path: Path) -> Path:
    from spark_seg.datasets.decode import image_size
    from spark_seg.datasets.io import read_bytes, read_image

    ids = [Path(image).stem.removesuffix("_img") for image in images]
    sizes = [image_size(read_bytes(image)) or read_image(image).shape[:2] for image in images]
    path.write_text(json.dumps(known_boxes(ids, sizes)), encoding="utf-8")
    return path
