"""A whole evaluation: checkpoint, split, table, files."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spark_seg.atomic import make_folder, write_bytes
from spark_seg.evaluation.table import metrics_of, table_lines, write_metrics_json

if TYPE_CHECKING:
    from mmengine.config import Config


@dataclass
class Evaluation:
    """What an evaluation found.

    Attributes:
        metrics: Flat keys and values 0 to 1.
        table: Lines for a terminal.
        confusion: Per-image counts [N, 3, 3], int64, ordered by id.
    """

    metrics: dict[str, float]
    table: list[str]
    confusion: np.ndarray


def evaluate(
    cfg: "Config",
    checkpoint: str | Path,
    split: str = "val",
    out: str | Path | None = None,
    overlays: int = 0,
    strategy: str = "deepspeed",
    trust: bool = False,
) -> Evaluation:
    """Scores a checkpoint on a labelled split, at the masks' own resolution.

    Args:
        cfg: As from `spark_seg.config.load_config`, with `work_dir` set.
        checkpoint: Any form that `spark_seg.engine.checkpoints.load_state_dict` takes.
        split: `train` or `val`.
        out: Folder for `metrics.json`, `counts.npz` and `overlays.png`; None writes nothing there.
        overlays: Rows of the overlay sheet, spread evenly over the split.
        strategy: `deepspeed` or `single`.
        trust: Whether the checkpoint may be unpickled without restriction.

    Raises:
        UserError: Checkpoint or data do not fit; see there.
    """
    from spark_seg.engine.build import prediction_runner
    from spark_seg.engine.checkpoints import load_state_dict
    from spark_seg.evaluation.metric import SparkMetric

    weights = load_state_dict(checkpoint, trust)
    cfg = copy.deepcopy(cfg)
    dataloader = copy.deepcopy(cfg.val_dataloader)
    dataloader.dataset.split = split
    if out is not None:
        out = make_folder(out)
    metric = SparkMetric(out=str(out) if out is not None else None, table=False)
    runner = prediction_runner(cfg, weights, checkpoint, dataloader, metric, strategy)
    if out is not None and overlays:
        from spark_seg.evaluation.overlays import OverlaySheetHook

        runner.register_hook(OverlaySheetHook(out / "overlays.png", overlays))
    runner.test()
    assert metric.counts is not None
    counts = metric.counts.confusion
    metrics, table = metrics_of(counts), table_lines(counts)
    if out is not None:
        write_metrics_json(out / "metrics.json", metrics)
        write_bytes(out / "table.txt", ("\n".join(table) + "\n").encode())
    return Evaluation(metrics, table, counts)
