"""The metric that mmengine's loops call: counts per image, scores over them at the end."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from spark_seg import compat

compat.install()

from mmseg.registry import METRICS  # noqa: E402

from spark_seg.atomic import make_folder  # noqa: E402
from spark_seg.datasets.memory import reuse_memory  # noqa: E402
from spark_seg.errors import UserError  # noqa: E402
from spark_seg.evaluation.boundary import BAND_SHARE, BOUNDARY_PX  # noqa: E402
from spark_seg.evaluation.calibration import BINS, calibration_counts  # noqa: E402
from spark_seg.evaluation.challenge import PANEL_SHARE, THRESHOLDS, ChallengeRule  # noqa: E402
from spark_seg.evaluation.counts import confusion  # noqa: E402
from spark_seg.evaluation.device import fetch  # noqa: E402
from spark_seg.evaluation.frame import (  # noqa: E402
    CountOptions,
    count_frame,
    count_frame_on_device,
    from_device,
    several,
)
from spark_seg.evaluation.store import ImageCounts  # noqa: E402
from spark_seg.evaluation.table import metrics_of, table_lines  # noqa: E402

SUMS_FIELD = "calibration_sums"


def label_map(sample: dict, field: str) -> np.ndarray:
    """The labels [H, W] that a sample of mmseg holds under `field` ([1, H, W] or [H, W])."""
    data = sample[field]["data"]
    labels = data.detach().cpu().numpy() if hasattr(data, "detach") else np.asarray(data)
    return labels[0] if labels.ndim == 3 and labels.shape[0] == 1 else labels


@METRICS.register_module()
class SparkMetric(BaseMetric):
    """Counts of every image, and all scores over them (`table.metrics_of`).

    Some 200 integers per image are kept and nothing else, so memory does not grow with the images'
    size: 20 000 images take 40 MB. The result does not depend on the order of the images or on the
    number of processes. Labels on a GPU are counted there, and the host waits for it once a batch,
    to fetch the counts.

    Args:
        out: Folder to write `counts.npz` into (see `store.ImageCounts`); made if need be. Nothing
            is written without it.
        table: Whether to log the table when an evaluation ends.
        details: Whether to count boundaries and boxes; without, confusions alone.
        calibration: Whether to count calibration where the loop shows logits.
        thresholds, panel_share, empty_union: The challenge's score; see `challenge.ChallengeRule`.
        boundary_px, band_share, bins: See `frame.CountOptions`.
        collect_device: How several processes put their parts together: `gpu` goes through the process group (on the
            CPU too), `cpu` through files in the current folder.
        prefix: Set before every key; none by default, so that keys are those of `metrics.json`.

    Attributes:
        counts: The `ImageCounts` of the last evaluation (main process), ordered by id; None before.
        rule, options: As the arguments say.

    Raises:
        UserError: A parameter that makes no sense.
    """

    default_prefix = ""  # None would make mmengine warn that keys have no prefix

    def __init__(
        self,
        out: str | None = None,
        table: bool = True,
        details: bool = True,
        calibration: bool = True,
        thresholds: Sequence[float] = THRESHOLDS,
        panel_share: float = PANEL_SHARE,
        empty_union: float = 0.0,
        boundary_px: Sequence[int] = BOUNDARY_PX,
        band_share: float = BAND_SHARE,
        bins: int = BINS,
        collect_device: str = "gpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        reuse_memory()  # a frame's pictures are made anew for every image
        self.out = out
        self.table = table
        self.details = details
        self.calibration = calibration
        self.rule = ChallengeRule(several("thresholds", thresholds), panel_share, empty_union)
        self.options = CountOptions(several("boundary_px", boundary_px), band_share, bins)
        self.counts: ImageCounts | None = None

    def observe_logits(self, logits: torch.Tensor, data_samples: Sequence[Any]) -> None:
        """Counts calibration beside the logits and leaves the sums with the samples.

        The evaluation loops call it, before `process`, on every metric that has it.

        Args:
            logits: [B, C, h, w] at the head's own resolution.
            data_samples: Samples of mmseg; those with a truth get the field `calibration_sums`.
        """
        if not self.calibration:
            return
        for image, sample in zip(logits, data_samples, strict=True):
            if "gt_sem_seg" in sample:
                truth = sample.gt_sem_seg.data
                truth = truth.reshape(truth.shape[-2:]).to(image.device)
                table, nll = calibration_counts(image, truth, self.options.bins)
                sample.set_field(torch.cat([table.reshape(-1), nll]), SUMS_FIELD)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Counts a batch of predictions at the size of their masks.

        Args:
            data_batch: Not used.
            data_samples: Dicts with `pred_sem_seg` and `gt_sem_seg`, each holding `data`
                [1, H, W] or [H, W] of any integer type; `sample_id` (else `img_path`), `satellite`;
                perhaps `calibration_sums`.

        Raises:
            UserError: Prediction and truth differ in size or hold what is no class, naming the
                sample.
        """
        counted = [self._on_device(sample) for sample in data_samples]
        sums = [sample.get(SUMS_FIELD) for sample in data_samples]
        # The whole batch is on its way to the device before the host waits for it, once.
        arrays = iter(fetch([vector for vector in (*counted, *sums) if vector is not None]))
        vectors = [None if vector is None else next(arrays) for vector in counted]
        tables = [None if vector is None else next(arrays) for vector in sums]
        for sample, vector, table in zip(data_samples, vectors, tables, strict=True):
            name = str(sample.get("sample_id") or sample.get("img_path") or "")
            try:
                counts = self._counts(sample, vector)
            except UserError as error:
                raise UserError(f"{name or 'a sample'}: {error}") from error
            if table is not None:
                counts["calibration"] = table[:-3].reshape(3, -1, 3).copy()
                counts["nll"] = table[-3:].copy()
            self.results.append((name, str(sample.get("satellite") or ""), counts))

    def _on_device(self, sample: dict) -> torch.Tensor | None:
        """Starts counting where the prediction is on a device of its own; None on the CPU."""
        pred = sample["pred_sem_seg"]["data"]
        if not (isinstance(pred, torch.Tensor) and pred.device.type != "cpu"):
            return None
        truth = torch.as_tensor(sample["gt_sem_seg"]["data"], device=pred.device)
        pred, truth = (labels.reshape(labels.shape[-2:]) for labels in (pred, truth))
        if pred.shape != truth.shape:
            return None  # told below, with the sample's name
        return count_frame_on_device(pred, truth, self.options, self.details)

    def _counts(self, sample: dict, vector: np.ndarray | None) -> dict[str, np.ndarray]:
        if vector is not None:
            return from_device(vector, self.options)
        pred, truth = label_map(sample, "pred_sem_seg"), label_map(sample, "gt_sem_seg")
        if not self.details:
            return {"confusion": confusion(pred, truth)}
        return count_frame(pred, truth, self.options)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """All scores of the split as flat keys; called in the main process with all images."""
        self.counts = ImageCounts.collect(results, self.options)
        if self.out is not None:
            self.counts.save(make_folder(self.out) / "counts.npz")
        if self.table:
            print_log(
                "evaluation\n" + "\n".join(table_lines(self.counts, self.rule)),
                logger="current",
                level=logging.INFO,
            )
        return metrics_of(self.counts, self.rule)
