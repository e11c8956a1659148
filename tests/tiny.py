"""A tiny SPARK tree and tiny runs over it, for the tests of engine, configs and commands."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SATELLITES = ("Cheops", "XMM Newton")
CONFIG = "segformer_b0_spark.py"
# One process, one thread, no augmentation's cost to speak of: what is under test is the engine.
OPTIONS: dict[str, Any] = {
    "image_size": 64,
    "batch_size": 2,
    "epochs": 2,
    "lr": 1e-3,
    "warmup_epochs": 1,
    "num_workers": 0,
    "pretrained": None,
    "log_every": 1,
}

# A network of some 50 000 weights, for tests in which runs start again and again.
SMALL_MODEL: dict[str, Any] = {
    "model.backbone.embed_dims": 8,
    "model.backbone.num_layers": [1, 1, 1, 1],
    "model.decode_head.in_channels": [8, 16, 40, 64],
    "model.decode_head.channels": 32,
}


def draw_frame(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A grey body with a blue wing on noise: image and mask, BGR uint8 [H, W, 3]."""
    image = rng.normal(36, 6, (height, width, 3)).clip(0, 255).astype(np.uint8)
    mask = np.zeros((height, width, 3), np.uint8)
    y, x = (int(rng.integers(s // 8, s // 3)) for s in (height, width))
    h, w = height // 3, width // 4
    image[y : y + h, x : x + w] = 200
    mask[y : y + h, x : x + w] = (0, 0, 255)
    image[y : y + h, x + w : x + 2 * w] = (160, 60, 40)
    mask[y : y + h, x + w : x + 2 * w] = (255, 0, 0)
    return image, mask


def make_tree(root: Path, train: int = 4, val: int = 3, test: int = 3, size: int = 96) -> Path:
    """Draws a SPARK tree with a non-square frame in each split, and its test set beside `images/`.

    Args:
        root: The tree's folder.
        train: Frames of each of the two satellites; likewise val.
        val: See `train`.
        test: Frames of the test set.
        size: Their height; the first of each split is a third wider.
    """
    rng = np.random.default_rng(0)
    for satellite in SATELLITES:
        for split, count in (("train", train), ("val", val)):
            images, masks = (root / kind / satellite / split for kind in ("images", "mask"))
            images.mkdir(parents=True)
            masks.mkdir(parents=True)
            for i in range(count):
                image, mask = draw_frame(rng, size, size * 4 // 3 if i == 0 else size)
                write_jpg(images / f"image_{i:05d}_img.jpg", image)
                write_jpg(masks / f"image_{i:05d}_layer.jpg", mask)
    folder = root / "stream-1-test"
    folder.mkdir()
    for i in range(test):
        image, _ = draw_frame(rng, size, size * 4 // 3 if i == 0 else size)
        write_jpg(folder / f"test_{i:05d}_img.jpg", image)
    return root


def write_jpg(path: Path, image: np.ndarray) -> None:
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert done
    path.write_bytes(data.tobytes())


def copy_tree(tree: Path, to: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(tree, to)
    return to


def tiny_config(tree: Path, work_dir: Path, name: str = CONFIG, **options: Any) -> Any:
    """A config over a tiny tree. Dots in an option's key are written as two underscores."""
    from spark_seg.config import load_config

    given = {key.replace("__", "."): value for key, value in options.items()}
    cfg = load_config(name, {**OPTIONS, "data_root": str(tree), **given})
    cfg.work_dir = str(work_dir)
    return cfg


def command_options(tree: Path, options: Mapping[str, Any] | None = None) -> list[str]:
    """The same as `--cfg-options ...` of a command line."""
    merged = {**OPTIONS, "data_root": str(tree), **(options or {})}
    texts = {
        key: str(value).replace(" ", "") if key in SMALL_MODEL else value
        for key, value in merged.items()
    }
    return ["--cfg-options", *(f"{key}={value}" for key, value in texts.items())]
