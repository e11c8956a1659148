"""The metric that mmengine's loops call: counts per image, scores over them at the end."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from spark_seg import compat

compat.install()

from mmseg.registry import METRICS  # noqa: E402

from spark_seg.atomic import make_folder  # noqa: E402
from spark_seg.errors import UserError  # noqa: E402
from spark_seg.evaluation.counts import ImageCounts, confusion  # noqa: E402
from spark_seg.evaluation.table import metrics_of, table_lines  # noqa: E402


def label_map(sample: dict, field: str) -> np.ndarray:
    """The labels [H, W] that a sample of mmseg holds under `field` ([1, H, W] or [H, W])."""
    data = sample[field]["data"]
    labels = data.detach().cpu().numpy() if hasattr(data, "detach") else np.asarray(data)
    return labels[0] if labels.ndim == 3 and labels.shape[0] == 1 else labels


@METRICS.register_module()
class SparkMetric(BaseMetric):
    """Confusion counts of every image, and all scores over them (`table.metrics_of`).

    One int64 [3, 3] per image is kept and nothing else, so memory does not grow with the images'
    size: 20 000 images take a few megabytes. The result does not depend on the order of the images
    or on the number of processes.

    Args:
        out: Folder to write `counts.npz` into (`ids`, `satellites`, `confusion` [N, 3, 3]); made if
            need be. Nothing is written without it.
        table: Whether to log the table when an evaluation ends.
        collect_device: Where several processes put their parts together.
        prefix: Set before every key; none by default, so that keys are those of `metrics.json`.

    Attributes:
        counts: The `ImageCounts` of the last evaluation (main process), ordered by id; None before.
    """

    default_prefix = ""  # None would make mmengine warn that keys have no prefix

    def __init__(
        self,
        out: str | None = None,
        table: bool = True,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.out = out
        self.table = table
        self.counts: ImageCounts | None = None

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Counts a batch of predictions at the size of their masks.

        Args:
            data_batch: Not used.
            data_samples: Dicts with `pred_sem_seg` and `gt_sem_seg`, each holding `data`
                [1, H, W] or [H, W] of any integer type; `sample_id` (else `img_path`), `satellite`.

        Raises:
            UserError: Prediction and truth differ in size, naming the sample.
        """
        for sample in data_samples:
            name = str(sample.get("sample_id") or sample.get("img_path") or "")
            try:
                counts = confusion(
                    label_map(sample, "pred_sem_seg"), label_map(sample, "gt_sem_seg")
                )
            except UserError as error:
                raise UserError(f"{name or 'a sample'}: {error}") from error
            self.results.append((name, str(sample.get("satellite") or ""), counts))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """All scores of the split as flat keys; called in the main process with all images."""
        self.counts = ImageCounts.collect(results)
        if self.out is not None:
            self.counts.save(make_folder(self.out) / "counts.npz")
        if self.table:
            print_log(
                "evaluation\n" + "\n".join(table_lines(self.counts.confusion)),
                logger="current",
                level=logging.INFO,
            )
        return metrics_of(self.counts.confusion)
