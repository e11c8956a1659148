"""Hands predictions to the submission's writer from mmengine's test loop, which goes on meanwhile."""

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
from spark_seg.datasets.memory import reuse_memory  # noqa: E402
from spark_seg.engine.folder import together  # noqa: E402
from spark_seg.engine.launch import first_process  # noqa: E402
from spark_seg.evaluation.metric import label_map  # noqa: E402
from spark_seg.submission.background import Background  # noqa: E402
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

    Labels are packed and written in a thread beside the loop. What fails there, a full disk for example, is raised by
    one of the following calls, at the latest by `evaluate`.

    Raises:
        UserError: What the writer raises.
    """

    default_prefix = ""  # None would make mmengine warn that keys have no prefix

    def __init__(self, writer: SubmissionWriter | dict, overlays: int = 0) -> None:
        super().__init__(collect_device="gpu")  # through the process group, not through files
        reuse_memory()  # a picture's arrays are made anew for every image
        # One core packs a thousand pictures a second; only a large batch on a GPU comes faster.
        self.background = Background(threads=max(1, min(4, (os.cpu_count() or 1) // 4)))
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
            self.background.run(self._write, path, sample["pred_sem_seg"]["data"])
            self.results.append(path)

    def _write(self, path: str, data: Any) -> None:
        # Labels of a GPU are fetched here too: the loop does not wait for them.
        labels = label_map({"pred_sem_seg": {"data": data}}, "pred_sem_seg").astype(np.uint8)
        if member_name(path) in self._chosen:
            picture = self.overlay_folder / f"{Path(path).stem}.png"
            save_png(picture, overlay(read_image(path), labels))
        self.writer.add(path, labels)

    def evaluate(self, size: int) -> dict[str, float]:
        """As mmengine's, and the first process makes the zip once all have written their share.

        Raises:
            UserError: On every process, where one of them fails: a full disk, a zip that does not pass its check.
        """
        with together(self.writer.folder):
            self.background.wait()
        metrics = super().evaluate(size)
        first_process(self.writer.finish, True)
        return metrics

    def compute_metrics(self, results: list) -> dict[str, float]:
        """`submission/images` is how many images the zip answers."""
        return {"submission/images": len(self.writer.images)}
