"""Sheets of samples as a model sees them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from spark_seg.datasets.sampling import SampleIndex
from spark_seg.errors import UserError, nearest
from spark_seg.visual import contact_sheet, overlay

if TYPE_CHECKING:
    from mmengine.config import Config

SPLITS = ("train", "val")


def browse_sheet(
    cfg: "Config",
    split: str = "train",
    pipeline: str | None = None,
    count: int = 8,
    draws: int = 3,
    ids: Sequence[str] | None = None,
    seed: int | None = None,
    tile: int = 256,
) -> tuple[np.ndarray, str]:
    """A row for each frame: of every draw, the image and its labels over it.

    Args:
        cfg: A loaded config.
        split: `train` or `val`: whose frames.
        pipeline: `train` or `val`: whose transforms; None: the split's own. That of validation draws nothing, so a
            frame is shown once.
        count: Frames, spread evenly over the split's.
        draws: Of each frame. Draw k is what epoch k of a training with `seed` sees.
        ids: These frames instead, by sample id.
        seed: Of the augmentation; None takes the config's, or 0.
        tile: Side of a picture in pixels.

    Returns:
        The sheet uint8 BGR [H, W, 3], and in words what is on it.

    Raises:
        UserError: No such split or id, or what the data set and its transforms raise.
    """
    from mmseg.registry import DATASETS

    if split not in SPLITS:
        raise UserError(f"--split {split}: a frame without labels shows nothing; give train or val")
    which = pipeline or split
    config: Any = dict(cfg[f"{split}_dataloader"].dataset)
    # all but what packs the sample
    steps = list(cfg[f"{which}_dataloader"].dataset.pipeline)
    while steps and str(steps[-1].get("type", "")).startswith("Pack"):
        steps.pop()
    if config.get("type") != "SparkDataset":
        raise UserError(f"the {split} data set is a {config.get('type')}, not a SparkDataset")
    dataset = DATASETS.build({**config, "pipeline": steps})
    chosen = _chosen(dataset, ids, count)
    draws = 1 if which == "val" else draws
    seed = (cfg.get("seed") or 0) if seed is None else seed
    tiles: list[np.ndarray] = []
    captions: list[str] = []
    for index in chosen:
        for draw in range(draws):
            sample = dataset[SampleIndex(index, (seed, draw, index))]
            image, labels = sample["img"], sample["gt_seg_map"]
            if labels.shape != image.shape[:2]:  # validation's keep their size
                labels = _as_the_picture(labels, image.shape[:2], padded="frame" in sample)
            tiles += [image, overlay(image, labels, ignored=True)]
            applied = ", ".join(sample.get("applied", ()))
            captions += [sample["sample_id"], applied or ("" if which == "val" else f"draw {draw}")]
    shown = f"{len(chosen)} of {len(dataset)} {split} frames" + (
        f", {draws} draws each (seed {seed})" if which == "train" else ""
    )
    header = f"{shown}; red: body, blue: panel, grey: ignored"
    sheet = contact_sheet(tiles, 2 * draws, (tile, tile), captions, header)
    return sheet, shown


def _as_the_picture(labels: np.ndarray, size: tuple[int, int], padded: bool) -> np.ndarray:
    """Labels uint8 [H, W] as the frame was brought to `size`: stretched, or padded to a square and shrunk."""
    if padded:
        from spark_seg.datasets.transforms.roi import cut
        from spark_seg.labels import IGNORE_INDEX
        from spark_seg.windows import whole_frame

        height, width = labels.shape[:2]
        return cut(labels, whole_frame(height, width, size[0]), IGNORE_INDEX)
    from spark_seg.datasets.transforms.geometry import resize_mask

    return resize_mask(labels, *size)


def _chosen(dataset: Any, ids: Sequence[str] | None, count: int) -> list[int]:
    total = len(dataset)
    if not ids:
        count = min(count, total)
        return [(2 * i + 1) * total // (2 * count) for i in range(count)]
    places = {dataset.get_data_info(i)["sample_id"]: i for i in range(total)}
    for name in ids:
        if name not in places:
            raise UserError(f"--ids: no frame {name!r}{nearest(name, list(places)[:2000])}")
    return [places[name] for name in ids]
