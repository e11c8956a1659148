"""An evaluation's folder as a report reads it; what an older run did not save is computed or left out."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spark_seg.atomic import write_bytes
from spark_seg.errors import UserError
from spark_seg.evaluation.bootstrap import intervals
from spark_seg.evaluation.challenge import ChallengeRule
from spark_seg.evaluation.compare import load_counts
from spark_seg.evaluation.groups import GROUPINGS, GroupScores, group_scores
from spark_seg.evaluation.report.pictures import PICTURES_FILE, Picture, load_pictures
from spark_seg.evaluation.store import ImageCounts
from spark_seg.evaluation.sums import image_values
from spark_seg.evaluation.table import metrics_of

if TYPE_CHECKING:
    from mmengine.config import Config

RECORD_FILE = "run.json"


@dataclass
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
        robustness: The content of `robustness.json`; None where it is not there or of other weights.
        pictures: The images kept, in the order kept; none where they are of other weights.
        record: What was evaluated with what; empty for older runs.
        values: Every score of every image, as `image_values` returns them.
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
    folder = Path(path)
    if folder.is_file():
        folder = folder.parent
    elif not (folder / "counts.npz").is_file():
        folder = next(iter(sorted(folder.glob("*/counts.npz")))).parent
    record = _json(folder / RECORD_FILE) or {}
    rule = _rule(record.get("rule"), folder / RECORD_FILE)
    spans = _json(folder / "intervals.json")
    groups = _groups(_json(folder / "groups.json"))
    robustness = _json(folder / "robustness.json")
    pictures = folder / PICTURES_FILE
    shown, of = load_pictures(pictures) if pictures.is_file() else ([], None)
    return Run(
        name=name or _name(folder),
        folder=folder,
        counts=counts,
        metrics=_json(folder / "metrics.json") or metrics_of(counts, rule),
        intervals=spans if spans is not None else intervals(counts, rule),
        groups=groups
        if groups is not None
        else {by: found for by in GROUPINGS if (found := group_scores(counts, by, rule))},
        rule=rule,
        robustness=robustness if _same((robustness or {}).get("weights"), record) else None,
        pictures=shown if _same(of, record) else [],
        record=record,
        values=image_values(counts, rule),
    )


def _same(weights: Any, record: dict[str, Any]) -> bool:
    """Whether a file is of the evaluated weights; a folder can hold what an earlier checkpoint left."""
    evaluated = record.get("weights")
    return weights is None or evaluated is None or weights == evaluated


def _name(folder: Path) -> str:
    folder = folder.resolve()
    inside = folder.name.startswith("test_") and folder.parent.name
    return f"{folder.parent.name}/{folder.name}" if inside else folder.name


def _json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): evaluate again") from error


def _rule(saved: Any, path: Path) -> ChallengeRule:
    try:
        saved = dict(saved or {})
        if "thresholds" in saved:
            saved["thresholds"] = tuple(saved["thresholds"])
        return ChallengeRule(**saved)
    except TypeError as error:
        raise UserError(f"{path} holds no rule that is known here ({error})") from error


def _groups(saved: Any) -> dict[str, list[GroupScores]] | None:
    if saved is None:
        return None
    return {by: [GroupScores(**one) for one in rows] for by, rows in saved.items()}


def write_record(
    folder: Path, cfg: "Config", checkpoint: Path, weights: str, split: str, rule: ChallengeRule
) -> None:
    """Writes `run.json`: checkpoint, split, rule, machine, versions, config, and the training's own record if known."""
    from spark_seg.engine.provenance import collect, plain

    record: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "weights": weights,
        "split": split,
        "rule": asdict(rule),
        **collect(cfg.get("seed"), 1),
        "config": cfg.to_dict(),
        "training": _training(checkpoint, Path(cfg.work_dir)),
    }
    text = json.dumps(plain(record), indent=1, default=str) + "\n"
    write_bytes(folder / RECORD_FILE, text.encode())


def _training(checkpoint: Path, work_dir: Path) -> dict[str, Any] | None:
    """The `training_params.json` that lies above the checkpoint, without its config."""
    for folder in [*checkpoint.resolve().parents][:3]:
        found = _json(folder / "training_params.json")
        if found is not None:
            return {key: value for key, value in found.items() if key not in ("config", "command")}
    return None
