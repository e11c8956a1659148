"""What faults cost: scores over the counts of `robustness.measure`, as a table, as JSON and as a chart."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spark_seg.atomic import make_folder, write_bytes
from spark_seg.corruptions import KINDS
from spark_seg.errors import UserError, UserFileNotFoundError
from spark_seg.evaluation.bootstrap import RESAMPLES, interval, weights
from spark_seg.evaluation.challenge import BELIEVED, ChallengeRule, panel_counts, part_credit
from spark_seg.evaluation.npz import DAMAGED, open_npz, reason
from spark_seg.evaluation.scores import ratio
from spark_seg.evaluation.table import metrics_of

CLEAN = "clean"
SCORE = "spark/score"
# Light to dark blue with severity, for the charts.
LEVEL_COLOURS = ("#9ecae1", "#6baed6", "#3f8fc5", "#1f66ad", "#08306b")
_KEPT = ("spark/score", "spark/body", "spark/panel", "mIoU/foreground", "IoU/body", "IoU/panel")


@dataclass(frozen=True)
class FaultCounts:
    """Counts of the same frames under every fault; F faults, the first without any, and N frames.

    Attributes:
        ids: Sample ids, str [N].
        kinds: str [F], `clean` first.
        severities: int64 [F], 0 first.
        confusion: int64 [F, N, 3, 3].
        total: How many frames the split has.
    """

    ids: np.ndarray
    kinds: np.ndarray
    severities: np.ndarray
    confusion: np.ndarray
    total: int

    def save(self, path: str | Path) -> None:
        """Writes an npz in one step; the folder must be there."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **vars(self))
        write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> "FaultCounts":
        """Reads what `save` wrote.

        Raises:
            UserError: The file is missing or holds something else.
        """
        if not Path(path).is_file():
            raise UserFileNotFoundError(f"no file {path}: run tools/test.py with --corruptions")
        try:
            with open_npz(path) as file:
                ids, kinds, severities = file["ids"], file["kinds"], file["severities"]
                return cls(ids, kinds, severities, file["confusion"], int(file["total"]))
        except PermissionError:
            raise
        except DAMAGED as error:
            raise UserError(
                f"{path} holds no counts under faults ({reason(error)}): evaluate again with --corruptions"
            ) from error


def resampled(
    counts: FaultCounts, rule: ChallengeRule = BELIEVED, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """`spark/score` under every fault in every resampling of the frames: float64 [F, resamples].

    All faults see the same draws (paired), and the draws are those of `bootstrap.intervals`. NaN in
    resamplings without a counted panel, unless the panel counts in no frame at all.
    """
    faults, frames = counts.confusion.shape[:2]
    credit = part_credit(counts.confusion, rule.thresholds, rule.empty_union)
    body, panel = (credit[:, index].reshape(faults, frames) for index in (1, 2))
    counted = panel_counts(counts.confusion, rule.panel_share).reshape(faults, frames)
    parts = []
    for drawn in weights(frames, resamples, seed):
        there = counted.astype(np.float64) @ drawn.T
        panels = ratio((panel * counted) @ drawn.T, there)
        score = (body @ drawn.T / frames + panels) / 2
        parts.append(np.where((there > 0) | ~counted.any(), score, np.nan))
    return np.concatenate(parts, 1)


def summary(
    counts: FaultCounts, rule: ChallengeRule = BELIEVED, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """All that is told about robustness, plain values ready for JSON.

    Args:
        counts: Of the frames under every fault.
        rule: The challenge's score.
        resamples: Of the bootstrap; 0 leaves intervals out.

    Returns:
        `score`: the key that means and the worst are taken of; `images`, `of`: how many of the split's; `severities`;
        `clean`: the scores without a fault; `kinds`: for each its `title`, its scores by severity (keys are text, as
        JSON has it), `mean` and `worst` score; `mean`, over kinds and severities; `worst`: `kind`, `severity`,
        `score`, and `tied`, how many faults have that score, of which the severest is named.
        `relative` beside each mean and worst is its share of the clean score, None where that is 0.
        `interval` of each kind and of all (`clean_interval` of the clean score): the mean's 95 % interval by bootstrap
        over the frames, [low, high].
    """
    flat = [_scores(stack, rule) for stack in counts.confusion]
    clean = flat[0][SCORE]

    def relative(value: float) -> float | None:
        return value / clean if clean > 0 else None

    kinds: dict[str, Any] = {}
    for kind, severity, found in zip(
        counts.kinds[1:], counts.severities[1:], flat[1:], strict=True
    ):
        title = KINDS[str(kind)].title if str(kind) in KINDS else str(kind)
        entry = kinds.setdefault(str(kind), {"title": title, "severities": {}})
        entry["severities"][str(int(severity))] = found
    for entry in kinds.values():
        values = [found[SCORE] for found in entry["severities"].values()]
        entry["mean"], entry["worst"] = float(np.mean(values)), min(values)
        entry["relative"] = relative(entry["mean"])
        entry["relative_worst"] = relative(entry["worst"])
    mean = float(np.mean([entry["mean"] for entry in kinds.values()]))
    spans: dict[str, Any] = {}
    if resamples and len(counts.ids):
        drawn = resampled(counts, rule, resamples)
        means = {kind: drawn[1:][counts.kinds[1:] == kind].mean(0) for kind in kinds}
        for kind, entry in kinds.items():
            entry["interval"] = list(interval(means[kind], point=entry["mean"]))
        spans["clean_interval"] = list(interval(drawn[0], point=clean))
        spans["interval"] = list(interval(np.mean(list(means.values()), 0), point=mean))
    every = [
        (found[SCORE], -int(severity), kind)
        for kind, entry in kinds.items()
        for severity, found in entry["severities"].items()
    ]
    low, severity, kind = min(every)
    return {
        "score": SCORE,
        "images": len(counts.ids),
        "of": counts.total,
        "severities": sorted({int(s) for s in counts.severities[1:]}),
        "clean": flat[0],
        "mean": mean,
        "relative": relative(mean),
        "worst": {
            "kind": kind,
            "severity": -severity,
            "score": low,
            "relative": relative(low),
            "tied": sum(one[0] == low for one in every),
        },
        "kinds": kinds,
        **spans,
    }


def _scores(stack: np.ndarray, rule: ChallengeRule) -> dict[str, float]:
    found = metrics_of(stack, rule)
    return {key: found[key] for key in _KEPT}


def table_lines(found: dict[str, Any]) -> list[str]:
    """A summary as lines of text, in percent: kinds by severity, their means and worst relative to clean."""
    levels = [str(s) for s in found["severities"]]
    clean = found["clean"][found["score"]]
    lines = [
        f"{found['score']} under faults, percent, on {found['images']} of {found['of']} images; "
        f"clean {100 * clean:.2f}",
        "",
        f"{'fault':<18}"
        + "".join(f"{'sev ' + s:>8}" for s in levels)
        + "    mean             95 %  of clean   worst",
    ]
    lines.append("-" * len(lines[-1]))
    for entry in found["kinds"].values():
        cells = "".join(f"{100 * entry['severities'][s][found['score']]:>8.2f}" for s in levels)
        lines.append(
            f"{entry['title']:<18}{cells}{100 * entry['mean']:>8.2f}{_span(entry):>17}"
            f"{_share(entry['relative']):>10}{100 * entry['worst']:>8.2f}"
        )
    worst = found["worst"]
    lines += [
        "",
        f"mean of all  {100 * found['mean']:.2f}{of_clean(found)}; 95 % {_span(found)}",
        f"worst        {100 * worst['score']:.2f}{of_clean(worst)}: {worst_fault(found)}",
    ]
    return lines


def worst_fault(found: dict[str, Any]) -> str:
    """The worst fault of a summary in words; more than two at the lowest score are only counted."""
    worst = found["worst"]
    if worst.get("tied", 1) > 2:  # files of before have no such number
        return f"under {worst['tied']} faults"
    return f"{found['kinds'][worst['kind']]['title']}, severity {worst['severity']}"


def of_clean(found: dict[str, Any]) -> str:
    """`, 80.0 % of clean` of what has a `relative`; empty where clean is 0."""
    value = found["relative"]
    return "" if value is None else f", {100 * value:.1f} % of clean"


def _span(entry: dict[str, Any]) -> str:
    ends = entry.get("interval")
    return f"{100 * ends[0]:.2f} to {100 * ends[1]:.2f}" if ends else "-"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def write(
    folder: str | Path,
    counts: FaultCounts,
    rule: ChallengeRule = BELIEVED,
    evaluation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes `robustness.npz` (the counts), `robustness.json` and `robustness.png`; returns the summary.

    Args:
        folder: Made if need be.
        counts: Of the frames under every fault.
        rule: The challenge's score.
        evaluation: As `identity.identify` returns it, by which a report knows whose faults these are.
    """
    folder = make_folder(folder)
    found: dict[str, Any] = {**summary(counts, rule), "evaluation": dict(evaluation or {})}
    counts.save(folder / "robustness.npz")
    text = json.dumps(found, indent=2, allow_nan=False) + "\n"
    write_bytes(folder / "robustness.json", text.encode())
    draw(found, folder / "robustness.png")
    return found


def draw(found: dict[str, Any], png: str | Path) -> None:
    """Draws each kind's scores as a row of dots, light to dark with severity, against the clean score."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    levels = found["severities"]
    entries = sorted(found["kinds"].values(), key=lambda entry: entry["mean"])
    figure, axis = plt.subplots(figsize=(9, 1.6 + 0.36 * len(entries)), constrained_layout=True)
    rows = np.arange(len(entries))
    for row, entry in zip(rows, entries, strict=True):
        values = [100 * entry["severities"][str(s)][found["score"]] for s in levels]
        axis.plot([min(values), max(values)], [row, row], color="0.8", zorder=1)
    for severity in levels:
        values = [100 * entry["severities"][str(severity)][found["score"]] for entry in entries]
        axis.scatter(
            values,
            rows,
            color=LEVEL_COLOURS[severity - 1],
            zorder=2,
            s=42,
            label=f"severity {severity}",
        )
    clean = 100 * found["clean"][found["score"]]
    axis.axvline(clean, color="black", linewidth=1, linestyle="--", label=f"clean {clean:.1f}")
    axis.set_yticks(rows, [entry["title"] for entry in entries])
    axis.invert_yaxis()
    top = max(
        [clean, *(100 * f[found["score"]] for e in entries for f in e["severities"].values())]
    )
    axis.set_xlim(-0.01 * top, 101 if top > 48 else 1.2 * top + 1)
    axis.set_xlabel(f"{found['score']} in percent, {found['images']} images")
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=6, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    write_bytes(png, buffer.getvalue())
