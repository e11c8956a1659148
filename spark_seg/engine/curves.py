"""Training curves as a PNG, from a run's metrics file."""

import io
import json
from pathlib import Path
from typing import Any

from spark_seg.atomic import write_bytes

_LOSSES = ("loss", "loss_ce", "loss_dice")
_SCORES = ("spark/score", "mIoU/foreground", "IoU/body", "IoU/panel")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl` as one uninterrupted training would have written them.

    Lines of steps that a killed run had made and that were made again are taken once; a line torn by the kill is left
    out.
    """
    rows: list[dict[str, Any]] = []
    for line in Path(path).read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row["mode"] == "resume":
            rows = [r for r in rows if _stays(r, row)]
        else:
            rows.append(row)
    return rows


def _stays(row: dict[str, Any], resume: dict[str, Any]) -> bool:
    """Whether a line is not made again by a training that was taken up."""
    if row["step"] != resume["step"]:
        return row["step"] < resume["step"]
    return row["mode"] == "train" or not resume.get("validate")


def draw_curves(metrics_file: str | Path, png: str | Path) -> None:
    """Draws losses, learning rate and validation scores over the steps.

    Args:
        metrics_file: The run's `metrics.jsonl`.
        png: Where the picture goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = read_metrics(metrics_file)
    train = [r for r in rows if r["mode"] == "train"]
    val = [r for r in rows if r["mode"] == "val"]
    figure, axes = plt.subplots(1, 3, figsize=(15, 4), constrained_layout=True)
    for name in _LOSSES:
        points = [(r["step"], r[name]) for r in train if name in r]
        if points:
            axes[0].plot(*zip(*points, strict=True), label=name)
    for name in _SCORES:
        points = [(r["step"], r[name]) for r in val if name in r]
        if points:
            axes[1].plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    axes[2].plot([r["step"] for r in train], [r["lr"] for r in train], color="black")
    for axis, title in zip(axes, ("training loss", "validation", "learning rate"), strict=True):
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    axes[1].set_ylim(0, 1)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    plt.close(figure)
    write_bytes(png, buffer.getvalue())
