"""An evaluation's folder as a report reads it; what an older run did not save is computed or left out."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spark_seg.atomic import write_bytes
from spark_seg.evaluation.bootstrap import intervals
from spark_seg.evaluation.challenge import BELIEVED, ChallengeRule
from spark_seg.evaluation.compare import counts_file, load_counts
from spark_seg.evaluation.groups import GROUPINGS, GroupScores, group_scores
from spark_seg.evaluation.identity import differences, identity_in
from spark_seg.evaluation.record import RECORD_FILE, read_json, saved_rule
from spark_seg.evaluation.report.pictures import PICTURES_FILE, Picture, load_pictures
from spark_seg.evaluation.store import ImageCounts
from spark_seg.evaluation.sums import image_values
from spark_seg.evaluation.table import metrics_of

if TYPE_CHECKING:
    from mmengine.config import Config


@dataclass(eq=False)  # by identity: arrays are not compared
class Run:
    """An evaluation's results.

    Attributes:
        name: For people.
        folder: Where it was read.
        counts: Of every image.
        metrics: Flat keys; those of `metrics.json` where it is there.
        intervals: 95 % intervals by flat key.
        groups: Scores by grouping.
        rule: The challenge's score.
        robustness: The content of `robustness.json`; None where it is not there or of another evaluation.
        pictures: The images kept, in the order kept; none where they are of another evaluation.
        record: What was evaluated with what; empty for older runs.
        values: Every score of every image, as `image_values` returns them.
        left_out: What the folder holds of another evaluation, a sentence each.
    """

    name: str
    folder: Path
    counts: ImageCounts
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    groups: dict[str, list[GroupScores]]
    rule: ChallengeRule
    robustness: dict[str, Any] | None = None
    pictures: list[Picture] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    values: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def order(self) -> np.ndarray:
        """Indices of the images from the worst to the best; see `worst_first`."""
        return worst_first(self.counts, self.values)

    def interval(self, key: str) -> tuple[float, float] | tuple[None, None]:
        """The interval of a score, or two None."""
        found = self.intervals.get(key)
        return (found[0], found[1]) if found else (None, None)


def worst_first(
    counts: ImageCounts, values: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """Indices [N] by the challenge's score of the image, then by its foreground mIoU, then by id."""
    by_id = np.argsort(np.argsort(counts.ids))
    return np.lexsort((by_id, values["mIoU/foreground"][0], values["spark/score"][0]))


def load_run(path: str | Path, name: str | None = None) -> Run:
    """Reads the folder of an evaluation.

    Args:
        path: What `tools/test.py` wrote (`--out`), its work folder, or a counts file.
        name: For people; the run's folder by default.

    Raises:
        UserError: There are no counts, or a file is damaged.
    """
    counts = load_counts(path)
    folder = counts_file(path).parent
    record = read_json(folder / RECORD_FILE) or {}
    rule = saved_rule(folder) or BELIEVED
    spans = read_json(folder / "intervals.json")
    groups = _groups(read_json(folder / "groups.json"))
    robustness = read_json(folder / "robustness.json")
    pictures = folder / PICTURES_FILE
    shown, of = load_pictures(pictures) if pictures.is_file() else ([], {})
    left_out = []
    if robustness and (other := differences(identity_in(robustness), record)):
        left_out.append(_left(folder / "robustness.json", other, "--corruptions"))
        robustness = None
    if shown and (other := differences(of, record)):
        left_out.append(_left(pictures, other, "--report"))
        shown = []
    return Run(
        name=name or _name(folder),
        folder=folder,
        counts=counts,
        metrics=read_json(folder / "metrics.json") or metrics_of(counts, rule),
        intervals=spans if spans is not None else intervals(counts, rule),
        groups=groups
        if groups is not None
        else {by: found for by in GROUPINGS if (found := group_scores(counts, by, rule))},
        rule=rule,
        robustness=robustness,
        pictures=shown,
        record=record,
        values=image_values(counts, rule),
        left_out=left_out,
    )


def _left(path: Path, other: list[str], option: str) -> str:
    return (
        f"{path} is of another evaluation ({', '.join(other)}) and is left out: "
        f"run tools/test.py with {option} again"
    )


def _name(folder: Path) -> str:
    folder = folder.resolve()
    inside = folder.name.startswith("test_") and folder.parent.name
    return f"{folder.parent.name}/{folder.name}" if inside else folder.name


def _groups(saved: Any) -> dict[str, list[GroupScores]] | None:
    if saved is None:
        return None
    return {by: [GroupScores(**one) for one in rows] for by, rows in saved.items()}


def write_record(
    folder: Path, cfg: "Config", checkpoint: Path, evaluation: Mapping[str, Any]
) -> None:
    """Writes `run.json`: checkpoint, what `identify` told, machine, config, the training's record if known."""
    from spark_seg.engine.provenance import collect, plain

    record: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        **evaluation,
        **collect(cfg.get("seed"), 1),
        "config": cfg.to_dict(),
        "training": _training(checkpoint, Path(cfg.work_dir)),
    }
    text = json.dumps(plain(record), indent=1, default=str) + "\n"
    write_bytes(folder / RECORD_FILE, text.encode())


def _training(checkpoint: Path, work_dir: Path) -> dict[str, Any] | None:
    """The `training_params.json` that lies above the checkpoint, without its config."""
    for folder in [*checkpoint.resolve().parents][:3]:
        found = read_json(folder / "training_params.json")
        if found is not None:
            return {key: value for key, value in found.items() if key not in ("config", "command")}
    return None
