"""Samples and data sets for the tests of augmentation."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tiny

from spark_seg.datasets.spark import SparkDataset

STILL = {"hflip": 0.0, "vflip": 0.0, "rotation": 0.0, "scale": 0.0, "shift": 0.0}


def seed(number: int) -> None:
    np.random.seed(number)  # noqa: NPY002


def sample(height: int = 64, width: int = 64) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    img = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), (0, 0), 3)
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 3 : width // 2] = 1
    mask[height // 2 : height // 2 + 5, width // 3 : width // 2] = 2
    return {"img": img, "gt_seg_map": mask}


def dataset(tree: Path, **options: Any) -> SparkDataset:
    """The training data set of a config with these choices."""
    cfg = tiny.tiny_config(tree, tree.parent, **options)
    return SparkDataset(**{k: v for k, v in cfg.train_dataloader.dataset.items() if k != "type"})


def arrays(packed: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    return packed["inputs"].numpy(), packed["data_samples"].gt_sem_seg.data.numpy()[0]


ALL: dict[str, Any] = dict(
    turns=0.75,
    crop_size=48,
    foreground_crop=dict(prob=0.8, least=0.02),
    mosaic=0.5,
    copy_paste=0.5,
    camera_faults=3,
    coarse_dropout=0.5,
)
