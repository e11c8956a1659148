"""A whole evaluation: checkpoint, split, table, files."""

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spark_seg.atomic import make_folder, write_bytes
from spark_seg.datasets.layout import find_root
from spark_seg.errors import UserError
from spark_seg.evaluation.bootstrap import RESAMPLES, intervals
from spark_seg.evaluation.challenge import BELIEVED, ChallengeRule
from spark_seg.evaluation.groups import (
    GROUPINGS,
    GroupScores,
    group_lines,
    group_scores,
    read_backgrounds,
)
from spark_seg.evaluation.store import ImageCounts
from spark_seg.evaluation.table import metrics_of, table_lines, write_metrics_json

if TYPE_CHECKING:
    import torch
    from mmengine.config import Config


@dataclass
class Evaluation:
    """What an evaluation found.

    Attributes:
        metrics: Flat keys and values 0 to 1.
        table: Lines for a terminal.
        confusion: Per-image counts [N, 3, 3], int64, ordered by id.
        counts: All counts.
        intervals: 95 % intervals by flat key; empty without resamples.
        groups: By grouping (`groups.GROUPINGS`) the scores of its groups, where known.
        rule: The challenge's score.
    """

    metrics: dict[str, float]
    table: list[str]
    confusion: np.ndarray
    counts: ImageCounts
    intervals: dict[str, tuple[float, float]]
    groups: dict[str, list[GroupScores]]
    rule: ChallengeRule


def summarize(
    counts: ImageCounts,
    rule: ChallengeRule = BELIEVED,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """Everything that counts tell: scores, intervals, groups and the table of all.

    Args:
        counts: Of a split.
        rule: The challenge's score.
        resamples: Of the bootstrap; 0 leaves intervals out.
        seed: Of its draws.
    """
    spans = intervals(counts, rule, resamples, seed)
    groups = {by: group_scores(counts, by, rule, resamples, seed) for by in GROUPINGS}
    groups = {by: found for by, found in groups.items() if found}
    table = table_lines(counts, rule, spans)
    for found in groups.values():
        table += ["", *group_lines(found)]
    metrics = metrics_of(counts, rule)
    return Evaluation(metrics, table, counts.confusion, counts, spans, groups, rule)


def write_results(out: Path, found: Evaluation) -> None:
    """Writes `metrics.json`, `intervals.json`, `groups.json` and `table.txt` into a folder."""
    write_metrics_json(out / "metrics.json", found.metrics)
    write_json(out / "intervals.json", found.intervals)
    groups = {by: [asdict(one) for one in rows] for by, rows in found.groups.items()}
    write_json(out / "groups.json", groups)
    write_bytes(out / "table.txt", ("\n".join(found.table) + "\n").encode())


def write_json(path: Path, value: Any) -> None:
    """Writes JSON in one step; NaN is an error."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def metric_options(cfg: "Config") -> dict[str, Any]:
    """The arguments that the config gives its `SparkMetric`, without those of a run.

    Raises:
        UserError: The config's `val_evaluator` is another metric.
    """
    given = dict(cfg.get("val_evaluator") or {"type": "SparkMetric"})
    if given.pop("type", None) != "SparkMetric":
        raise UserError("val_evaluator: evaluation needs type='SparkMetric'")
    return {key: value for key, value in given.items() if key not in ("out", "table", "prefix")}


def evaluate(
    cfg: "Config",
    checkpoint: str | Path,
    split: str = "val",
    out: str | Path | None = None,
    overlays: int = 0,
    strategy: str = "deepspeed",
    trust: bool = False,
    resamples: int = RESAMPLES,
    weights: "dict[str, torch.Tensor] | None" = None,
) -> Evaluation:
    """Scores a checkpoint on a labelled split, at the masks' own resolution.

    Args:
        cfg: As from `spark_seg.config.load_config`, with `work_dir` set.
        checkpoint: Any form that `spark_seg.engine.checkpoints.load_state_dict` takes.
        split: `train` or `val`.
        out: Folder for what `write_results` writes, `counts.npz` and `overlays.png`; None writes
            nothing there.
        overlays: Rows of the overlay sheet, spread evenly over the split.
        strategy: `deepspeed` or `single`.
        trust: Whether the checkpoint may be unpickled without restriction.
        resamples: Of the bootstrap; 0 leaves intervals out.
        weights: What was read from the checkpoint already; None reads it.

    Raises:
        UserError: Checkpoint or data do not fit; see there.
    """
    from spark_seg.engine.build import prediction_runner
    from spark_seg.engine.checkpoints import load_state_dict
    from spark_seg.engine.launch import from_first, is_first
    from spark_seg.evaluation.metric import SparkMetric

    if split == "test":
        raise UserError(
            "the split 'test' has no masks to score against: --split train or val, or tools/infer.py"
        )
    weights = load_state_dict(checkpoint, trust) if weights is None else weights
    cfg = copy.deepcopy(cfg)
    dataloader = copy.deepcopy(cfg.val_dataloader)
    dataloader.dataset.split = split
    backgrounds = read_backgrounds(find_root(dataloader.dataset.get("data_root")))
    if out is not None:
        out = make_folder(out)
    metric = SparkMetric(table=False, **metric_options(cfg))
    runner = prediction_runner(cfg, weights, checkpoint, dataloader, metric, strategy)
    if out is not None and overlays and is_first():
        from spark_seg.evaluation.overlays import OverlaySheetHook

        runner.register_hook(OverlaySheetHook(out / "overlays.png", overlays))
    runner.test()
    counts = from_first(metric.counts).with_backgrounds(backgrounds)
    found = summarize(counts, metric.rule, resamples)
    if out is not None and is_first():
        counts.save(out / "counts.npz")
        write_results(out, found)
    return found
