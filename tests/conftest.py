"""Fixtures for all tests: a tiny SPARK 2024 tree, and the real samples where someone has them."""

import csv
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

SATELLITES = ("VenusExpress", "Cheops", "XMM Newton")


def draw_mask(rng: np.random.Generator, size: int, box: float = 0.6) -> np.ndarray:
    """Class indices uint8 `[size, size]` of a craft: a body, two wings on stubs, at a random angle."""
    mask = np.zeros((size, size), np.uint8)
    angle, half = rng.uniform(0, np.pi), box * size / 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    def fill(x0: float, y0: float, x1: float, y1: float, value: int) -> None:
        corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]) * half @ turn.T + size / 2
        cv2.fillPoly(mask, [np.round(corners * 16).astype(np.int32)], value, shift=4)

    width, depth = rng.uniform(0.2, 0.3), rng.uniform(0.15, 0.3)
    fill(-1, -0.05, 1, 0.05, 1)
    fill(width + 0.1, -depth, 1, depth, 2)
    fill(-1, -depth, -width - 0.1, depth, 2)
    fill(-width, -0.35, width, 0.35, 1)
    return mask


def write_spark_tree(
    root: Path, size: int = 64, frames: int = 3, satellites: tuple[str, ...] = SATELLITES
) -> Path:
    """Writes `frames` images and masks per satellite in train and in val, both CSVs, and a test set
    beside.

    File names repeat in every satellite's folder; masks are JPEG 4:2:0 with 254 for full colours.
    """
    rng = np.random.default_rng(7)
    palette = np.array([[0, 0, 0], [0, 0, 254], [254, 0, 0]], np.uint8)  # BGR
    for split in ("train", "val"):
        rows = []
        for satellite in satellites:
            images, masks = root / "images" / satellite / split, root / "mask" / satellite / split
            images.mkdir(parents=True)
            masks.mkdir(parents=True)
            for number in range(1, frames + 1):
                mask = draw_mask(rng, size)
                grey = np.array([30, 150, 90], np.uint8)[mask][..., None]
                image = (grey + rng.integers(0, 12, (size, size, 3))).astype(np.uint8)
                names = f"image_{number:05d}_img.jpg", f"image_{number:05d}_layer.jpg"
                cv2.imwrite(str(images / names[0]), image)
                cv2.imwrite(str(masks / names[1]), palette[mask])
                rows.append((*names, satellite, f"(0, 0, {size - 1}, {size - 1})"))
        rng.shuffle(rows)
        with open(root / f"{split}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("Image name", "Mask name", "Class", "Bounding box"))
            writer.writerows(rows)
    test = root.parent / "spark-2024-segmentation-test" / "stream-1-test"
    test.mkdir(parents=True, exist_ok=True)
    for number in range(frames):
        image = rng.integers(20, 60, (size, size, 3)).astype(np.uint8)
        cv2.imwrite(str(test / f"test_{number:05d}_img.jpg"), image)
    return root


@pytest.fixture
def make_spark_tree(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tree below `tmp_path` as `write_spark_tree`'s arguments say; returns its root."""
    return lambda **options: write_spark_tree(tmp_path / "spark-2024-train-val", **options)


@pytest.fixture
def spark_tree(make_spark_tree: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Root of a tiny tree: 3 satellites (`XMM Newton` among them), 3 frames of 64 px in train and in val."""
    monkeypatch.delenv("SPARK_DATA_ROOT", raising=False)
    monkeypatch.delenv("SPARK_TEST_ROOT", raising=False)
    return make_spark_tree()


@pytest.fixture
def spark_samples() -> Path:
    """Real SPARK frames, where the environment variable SPARK_SAMPLES names them."""
    folder = os.environ.get("SPARK_SAMPLES")
    if not folder:
        pytest.skip("SPARK_SAMPLES is not set: no real SPARK frames to try")
    return Path(folder)
