"""Collects a few predictions of an evaluation and draws them as one picture."""

from pathlib import Path
from typing import Any

import cv2
from mmengine.hooks import Hook

from spark_seg.datasets.io import read_image
from spark_seg.evaluation.metric import label_map
from spark_seg.submission.metric import spread
from spark_seg.visual import OverlayRow, save_overlay_sheet


class OverlaySheetHook(Hook):
    """Keeps every k-th image | truth | prediction of a test and writes the sheet at its end.

    Args:
        path: The PNG.
        rows: How many images, spread evenly.
        width: Tiles are scaled to this width in pixels, so that memory and file stay small.
    """

    def __init__(self, path: str | Path, rows: int, width: int = 384) -> None:
        self.path, self.rows, self.width = Path(path), rows, width
        self._kept: list[OverlayRow] = []
        self._wanted: set[int] = set()
        self._seen = 0

    def before_test_epoch(self, runner: Any) -> None:
        # of several processes the first one draws, from its own share
        self._wanted = set(spread(self.rows, len(runner.test_dataloader.sampler)))
        self._kept, self._seen = [], 0

    def after_test_iter(self, runner: Any, batch_idx: int, outputs: Any = None, **_: Any) -> None:
        for sample in outputs or ():
            if self._seen in self._wanted:
                self._keep(sample)
            self._seen += 1

    def _keep(self, sample: Any) -> None:
        image = read_image(sample.img_path)
        fields = sample.to_dict()
        size = (self.width, round(self.width * image.shape[0] / image.shape[1]))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        truth, found = (
            cv2.resize(
                label_map(fields, name).astype("uint8"), size, interpolation=cv2.INTER_NEAREST
            )
            for name in ("gt_sem_seg", "pred_sem_seg")
        )
        self._kept.append(OverlayRow(sample.sample_id, image, truth, found))

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        if self._kept:
            save_overlay_sheet(self.path, self._kept, tile_size=(self.width, self.width))
