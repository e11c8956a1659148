"""Hands predictions to the submission's writer from mmengine's test loop."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from spark_seg import compat

compat.install()

from mmseg.registry import METRICS  # noqa: E402

from spark_seg.atomic import make_folder  # noqa: E402
from spark_seg.datasets.io import read_image  # noqa: E402
from spark_seg.evaluation.metric import label_map  # noqa: E402
from spark_seg.submission.members import member_name  # noqa: E402
from spark_seg.submission.writer import SubmissionWriter  # noqa: E402
from spark_seg.visual import overlay, save_png  # noqa: E402


def spread(count: int, total: int) -> list[int]:
    """`count` indices spread evenly over `range(total)`, each at the middle of its share."""
    count = min(count, total)
    return [(2 * k + 1) * total // (2 * count) for k in range(count)]


@METRICS.register_module()
class SubmissionMetric(BaseMetric):
    """Writes each prediction into the submission; finishes the zip when all images are through.

    Args:
        writer: The writer, or the arguments of one as a dict.
        overlays: How many overlays to write as PNG into `overlays/` beside the zip, spread evenly
            over all images of the submission, whichever part of them this run predicts.

    Several processes write into one folder, each its share, and the first one finishes the zip.

    Raises:
        UserError: What the writer raises.
    """

    default_prefix = ""  # None would make mmengine warn that keys have no prefix

    def __init__(self, writer: SubmissionWriter | dict, overlays: int = 0) -> None:
        super().__init__(collect_device="gpu")  # through the process group, not through files
        self.writer = SubmissionWriter(**writer) if isinstance(writer, dict) else writer
        images = self.writer.images
        self._chosen = {member_name(images[k]) for k in spread(overlays, len(images))}
        if self._chosen:
            self.overlay_folder = make_folder(self.writer.folder / "overlays")

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Writes a batch.

        Args:
            data_batch: Not used.
            data_samples: Dicts with `pred_sem_seg`, holding `data` [1, H, W] or [H, W] at the
                image's own size, and `img_path`.
        """
        for sample in data_samples:
            path = os.fspath(sample["img_path"])
            labels = label_map(sample, "pred_sem_seg").astype(np.uint8)
            if member_name(path) in self._chosen:
                picture = self.overlay_folder / f"{Path(path).stem}.png"
                save_png(picture, overlay(read_image(path), labels))
            self.writer.add(path, labels)
            self.results.append(path)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Assembles and checks the zip; `submission/images` is how many images it answers."""
        self.writer.finish(progress=True)
        return {"submission/images": len(self.writer.images)}
