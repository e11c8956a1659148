"""What a report shows of one run, or of two side by side; each function makes one section or none."""

from collections.abc import Sequence

import numpy as np

from spark_seg.evaluation.counts import pooled
from spark_seg.evaluation.groups import GroupScores, group
from spark_seg.evaluation.report.charts import (
    CLASS_COLOURS,
    RUN_COLOURS,
    SHAPES,
    WHOLE,
    Curve,
    Point,
    Row,
    Series,
    dots,
    lines,
    percent,
    shade,
)
from spark_seg.evaluation.report.data import Run
from spark_seg.evaluation.report.page import Cell, Section, figure, paragraph, table
from spark_seg.evaluation.scores import ratio
from spark_seg.labels import CLASSES

PARTS = ("body", "panel")


def run_series(runs: Sequence[Run]) -> list[Series]:
    """Colour and shape of each run of a pair."""
    return [
        Series(f"{letter}: {short(run.name, 44)}", colour, shape, dash)
        for letter, run, colour, shape, dash in zip(
            "AB", runs, RUN_COLOURS, SHAPES, ("6 4", ""), strict=False
        )
    ]


def short(text: str, limit: int) -> str:
    """The text, its middle left out where it is too long."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}…{text[-(limit - limit // 2 - 1) :]}"


def _point(run: Run, key: str) -> Point | None:
    return Point(run.metrics[key], *run.interval(key)) if key in run.metrics else None


def named(run: Run, runs: Sequence[Run]) -> str:
    """Which of two runs; nothing where there is one."""
    return f"{'AB'[runs.index(run)]}: {short(run.name, 44)}" if len(runs) > 1 else ""


def classes(runs: Sequence[Run]) -> Section:
    """IoU, Dice, precision, recall and the boundary per class."""
    kinds = {
        "IoU": "IoU",
        "Dice": "Dice",
        "Precision": "precision",
        "Recall": "recall",
        "boundary_IoU": "boundary IoU",
    }
    if len(runs) == 1:
        run = runs[0]
        series = [Series(name, CLASS_COLOURS[name]) for name in CLASSES]
        rows = [
            Row(title, "", [_point(run, f"{kind}/{name}") for name in CLASSES])
            for kind, title in kinds.items()
            if f"{kind}/body" in run.metrics
        ]
    else:
        series = run_series(runs)
        rows = [
            Row(f"{title} {name}", "", [_point(run, f"{kind}/{name}") for run in runs])
            for kind, title in kinds.items()
            for name in PARTS
            if f"{kind}/body" in runs[0].metrics
        ]
    text = "All pixels of the split pooled, percent; lines are 95 % intervals over images."
    drawing = figure(dots(rows, series, "scores per class", 500, 130), text)
    tables = "".join(_class_table(run, named(run, runs), run is runs[-1]) for run in runs)
    return Section("classes", "Classes", f'<div class="row">{drawing}<div>{tables}</div></div>')


def _class_table(run: Run, name: str, explained: bool) -> str:
    columns = [
        ("IoU", "IoU/{}"),
        ("image mean", "per_image/IoU/{}"),
        ("boundary IoU", "boundary_IoU/{}"),
        ("F 1 px", "boundary_F1px/{}"),
        ("2 px", "boundary_F2px/{}"),
        ("3 px", "boundary_F3px/{}"),
    ]
    columns = [c for c in columns if c[1].format("body") in run.metrics]
    rows = []
    for part in (*CLASSES, "craft"):
        keys = [key.format(part) for _, key in columns]
        if any(key in run.metrics for key in keys):
            cells = [percent(run.metrics[k], 2) if k in run.metrics else "–" for k in keys]
            rows.append([part, *cells])
    heads = [head for head, _ in columns]
    top = paragraph(name, "dim") if name else ""
    told = (
        "IoU pools all pixels; image mean is the mean over images. Boundary scores ask how well outlines "
        "meet; craft is body and panel together."
    )
    return (
        top
        + table(["class", *heads], rows)
        + (paragraph(told, "note") if explained and len(columns) > 2 else "")
    )


_GROUP_TITLES = {
    "satellite": ("satellites", "Satellites"),
    "background": ("backgrounds", "Backgrounds"),
    "panel": ("panels", "Panel share"),
}


def groups(runs: Sequence[Run], by: str) -> Section | None:
    """The challenge's score by kind of image."""
    anchor, title = _GROUP_TITLES[by]
    found = [{one.label: one for one in run.groups.get(by, [])} for run in runs]
    labels = list(dict.fromkeys(label for part in found for label in part))
    if not labels:
        return None
    if len(runs) == 1:
        keys = ("spark/score", "spark/body", "spark/panel")
        series = [Series("score", WHOLE, "diamond")]
        series += [Series(name, CLASS_COLOURS[name]) for name in PARTS]
        rows = [
            Row(label, _images(one), [_group_point(one, key) for key in keys])
            for label, one in found[0].items()
        ]
    else:
        series = run_series(runs)
        rows = [
            Row(
                label,
                _images(found[0].get(label) or found[1][label]),
                [_group_point(part.get(label), "spark/score") for part in found],
            )
            for label in labels
        ]
    rows = [row for row in rows if any(row.points)]
    if not rows:
        return None
    if by == "satellite":
        rows.sort(key=lambda row: next(point.value for point in row.points if point))
    drawing = dots(rows, series, f"score by {by}", width=560, left=140)
    text = "Challenge's score, percent, with 95 % intervals over the images of each group."
    text += " A group's score is half its mean body and half its mean panel, each over the images "
    text += "that count for it; where no image's panel counts there is none."
    if by == "satellite":
        text += " Hardest first."
    if by == "panel":
        text += " Groups: the panel's true area as a share of the body's."
    # Groups without a score of the challenge have pixels all the same.
    shown = [row.label for row in rows]
    if by == "satellite":
        labels = shown + [label for label in labels if label not in shown]
    grid = group_table(runs, by, labels)
    return Section(
        anchor, title, f'<div class="row">{figure(drawing, text)}<div>{grid}</div></div>'
    )


_GROUP_COLUMNS = {
    "mIoU": "mIoU/foreground",
    "body": "IoU/body",
    "panel": "IoU/panel",
    "outline": "boundary_IoU/craft",
}


def group_table(runs: Sequence[Run], by: str, labels: Sequence[str]) -> str:
    """The scores over pixels of each group, beside the challenge's; of two runs the mean IoU and its change."""
    found = [{one.label: one for one in run.groups.get(by, [])} for run in runs]
    names = list(_GROUP_COLUMNS) if len(runs) == 1 else ["mIoU"]
    names = [name for name in names if all(_GROUP_COLUMNS[name] in run.metrics for run in runs)]
    areas = [
        {g.label: pooled(run.counts.confusion[g.which]) for g in group(run.counts, by, run.rule)}
        for run in runs
    ]
    rows = []
    for label in labels:
        one = next(part[label] for part in found if label in part)
        cells = [label, str(one.images)]
        for name in names:
            for part, area in zip(found, areas, strict=True):
                cells.append(_group_cell(part.get(label), _GROUP_COLUMNS[name], area.get(label)))
        both = [part[label].metrics["mIoU/foreground"] for part in found if label in part]
        if len(runs) > 1:
            known = len(both) == 2
            cells.append(f"{100 * (both[1] - both[0]):+.1f}".replace("-", "−") if known else "–")
        rows.append(cells)
    heads = ["", "images", *(names if len(runs) == 1 else ["mIoU A", "B", "B − A"])]
    shown = "IoU of body and panel, their mean" if len(runs) == 1 else "mean IoU of body and panel"
    if "outline" in names:
        shown += ", and the craft's boundary IoU"
    told = f"Over the pixels of each group pooled, percent: {shown}."
    return table(heads, rows) + paragraph(told, "note")


def _group_cell(one: GroupScores | None, key: str, total: np.ndarray | None) -> str:
    if one is None or key not in one.metrics:
        return "–"
    part = key.split("/")[1]
    if total is not None and part in CLASSES:
        index = CLASSES.index(part)
        if not total[index].sum() + total[:, index].sum():
            return "–"  # neither true nor found in any image
    return percent(one.metrics[key])


def _images(one: GroupScores) -> str:
    return f"{one.images} image{'s' if one.images != 1 else ''}"


def _group_point(one: GroupScores | None, key: str) -> Point | None:
    # Without a panel that counts its half of the score is 0 by definition, which says nothing of the group.
    panel = key in ("spark/score", "spark/panel")
    if one is None or (panel and not one.metrics.get("spark/panel_images")):
        return None
    low, high = one.intervals.get(key, (None, None))
    return Point(one.metrics[key], low, high)


def matrix(runs: Sequence[Run]) -> Section:
    """The confusion matrix, each row a share of the true class."""
    went = "Each row adds up to 100 %: where the pixels of a true class went. All images pooled."
    came = "Each column adds up to 100 %: what the pixels found as a class are in truth."
    if len(runs) == 1:
        total = pooled(runs[0].counts.confusion)
        parts = [
            f"<div>{_confusion(total, axis)}{paragraph(told, 'note')}</div>"
            for axis, told in ((1, went), (0, came))
        ]
        below = ""
    else:
        parts = [
            f"<div>{paragraph(named(run, runs), 'dim')}{_confusion(pooled(run.counts.confusion), 1)}</div>"
            for run in runs
        ]
        below = paragraph(went, "note")
    body = f'<div class="row">{"".join(parts)}</div>{below}'
    return Section("confusion", "Confusion matrix", body, "Confusion")


def _confusion(total: np.ndarray, axis: int) -> str:
    """Counts [3, 3] as a table; shares of each row (axis 1) or column (axis 0)."""
    share = ratio(total, total.sum(axis, keepdims=True))
    rows = []
    for index, name in enumerate(CLASSES):
        cells: list[Cell | str] = [f"truth: {name}"]
        for found in range(len(CLASSES)):
            back, ink = shade(float(share[index, found]))
            count = f"{int(total[index, found]):,}".replace(",", "\u202f")
            style = f"background:{back};color:{ink}"
            cells.append(
                Cell(f"{percent(share[index, found], 2)} %", None, style, "c", f"{count} px")
            )
        rows.append(cells)
    return table(["", *(f"found: {name}" for name in CLASSES)], rows, "cells")


_CLOUD = 1500  # dots at most


def size(runs: Sequence[Run]) -> Section | None:
    """The score against the craft's share of the frame."""
    curves, clouds, bands = [], [], []
    ends: list[float] = []
    for run, series in zip(runs, run_series(runs) if len(runs) > 1 else [None], strict=True):
        area = run.counts.true_area
        share = area[:, 1:].sum(1) / np.maximum(area.sum(1), 1)
        there = np.flatnonzero(share > 0)
        if not len(there):
            continue
        keys = ["spark/score"] if series else ["spark/score", "spark/body", "spark/panel"]
        known = {one.label: one for one in run.groups.get("size", [])}
        parts = [g for g in group(run.counts, "size", run.rule) if g.label in known]
        parts = [g for g in parts if g.label != "no craft"]
        found = [known[g.label] for g in parts]
        middle = np.array([np.log10(np.median(share[g.which])) for g in parts])
        for key in keys:
            part = key.split("/")[1]
            one = series or Series(
                part, CLASS_COLOURS.get(part, WHOLE), dash="" if part == "score" else "5 3"
            )
            values = np.array([g.metrics[key] for g in found])
            curves.append(Curve(one, middle, values, marks=True))
            if key == "spark/score" and all(key in g.intervals for g in found):
                spans = np.array([g.intervals[key] for g in found]).reshape(-1, 2)
                bands.append((one.colour, middle, spans[:, 0], spans[:, 1]))
        kept = there[
            np.linspace(0, len(there) - 1, min(_CLOUD // len(runs), len(there))).astype(int)
        ]
        colour = series.colour if series else WHOLE
        clouds.append((colour, np.log10(share[kept]), run.values["spark/score"][0][kept]))
        ends += [float(np.log10(share[there].min())), float(np.log10(share[there].max()))]
    if not curves:
        return None
    low, high = min(ends) - 0.05, max(ends) + 0.05
    ticks = [
        (float(np.log10(v)), f"{100 * v:g} %")
        for v in (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1)
        if low <= np.log10(v) <= high
    ]
    drawing = lines(
        curves,
        "score against the craft's size",
        "craft's share of the frame",
        "challenge's score, %",
        x_range=(low, high),
        x_ticks=ticks,
        clouds=clouds,
        bands=bands,
        width=560,
        height=360,
    )
    told = "Marks: fifths of the images by size, the score with its 95 % interval. Faint dots: single images"
    many = max(len(run.counts) for run in runs) > _CLOUD // len(runs)
    told += f" (some {_CLOUD} of them, spread evenly)." if many else "."
    labels = list(dict.fromkeys(one.label for run in runs for one in run.groups.get("size", [])))
    grid = group_table(runs, "size", labels)
    return Section(
        "size", "Craft's size", f'<div class="row">{figure(drawing, told)}<div>{grid}</div></div>'
    )
