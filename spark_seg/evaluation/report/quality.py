"""What a report shows of thresholds, faults and confidence; each function makes one section or none."""

from collections.abc import Sequence

import numpy as np

from spark_seg.evaluation.calibration import REGIONS, reliability
from spark_seg.evaluation.challenge import threshold_curve
from spark_seg.evaluation.faults import LEVEL_COLOURS, of_clean, worst_fault
from spark_seg.evaluation.report.charts import (
    CLASS_COLOURS,
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
from spark_seg.evaluation.report.sections import PARTS, named, run_series


def thresholds(runs: Sequence[Run]) -> Section:
    """How many images reach an IoU, for each part: what the challenge's score averages."""
    levels = np.linspace(0, 1, 101)
    counted = runs[0].rule.thresholds
    zone = min(counted), max(counted)
    found = [threshold_curve(run.counts.confusion, levels.tolist(), run.rule) for run in runs]
    parts = []
    if len(runs) == 1:
        curves = [
            Curve(
                Series(part, CLASS_COLOURS[part], dash="" if part == "body" else "7 4"),
                levels,
                found[0][part],
            )
            for part in PARTS
        ]
        parts.append(_threshold_chart(curves, "share of images that reach an IoU", zone, 640))
    else:
        for part in PARTS:
            curves = [
                Curve(series, levels, curve[part])
                for series, curve in zip(run_series(runs), found, strict=True)
            ]
            parts.append(f"<div><h3>{part}</h3>{_threshold_chart(curves, part, zone, 530)}</div>")
    heads = ["IoU at least", *(f"{_letter(run, runs)}{part}" for run in runs for part in PARTS)]
    credits = [threshold_curve(run.counts.confusion, counted, run.rule) for run in runs]
    rows = [
        [f"{level:.2f}", *(percent(credit[part][n]) for credit in credits for part in PARTS)]
        for n, level in enumerate(counted)
    ]
    mean = [percent(run.metrics[f"spark/{part}"]) for run in runs for part in PARTS]
    rows.append(["mean: the score", *mean])
    kinds = [*[""] * len(counted), "lead"]
    told = (
        "Share of images whose IoU reaches the level, percent; the mean over the table's levels, which lie in the "
        "shaded part, is a part's score. "
        f"The panel counts where it has at least {100 * runs[0].rule.panel_share:g} % of the body's area."
    )
    body = f'<div class="row">{"".join(parts)}<div class="keep">{table(heads, rows, "", kinds)}</div></div>'
    return Section("thresholds", "Threshold curve", body + paragraph(told, "note"), "Thresholds")


def _letter(run: Run, runs: Sequence[Run]) -> str:
    return f"{'AB'[runs.index(run)]} " if len(runs) > 1 else ""


def _threshold_chart(
    curves: Sequence[Curve], title: str, zone: tuple[float, float], width: float
) -> str:
    return figure(
        lines(
            curves, title, "IoU, %", "images that reach it, %", zone=zone, width=width, height=340
        )
    )


_SUFFIXES = ("", "/foreground", "/predicted")
_LEAST = 0.002  # of the pixels: a bin with fewer tells nothing


def robustness(runs: Sequence[Run]) -> Section | None:
    """The score under faults, where it was measured."""
    with_it = [run for run in runs if run.robustness]
    if not with_it:
        return None
    parts = []
    if len(with_it) == 2:
        parts.append(_faults_of_both(runs))
    for run in with_it:
        parts.append(_faults(run, named(run, runs), chart=len(with_it) == 1))
    return Section("robustness", "Robustness", f'<div class="row">{"".join(parts)}</div>')


def _faults_of_both(runs: Sequence[Run]) -> str:
    """Both runs' means over the severities that both have, for the kinds that both have."""
    a, b = (run.robustness or {} for run in runs)
    levels = [str(level) for level in a["severities"] if level in b["severities"]]
    kinds = [kind for kind in a["kinds"] if kind in b["kinds"]]
    if not levels or not kinds:
        return paragraph("The runs share no fault and severity.", "dim")

    def mean(found: dict, kind: str) -> float:
        values = found["kinds"][kind]["severities"]
        return float(np.mean([values[level][found["score"]] for level in levels]))

    rows = [
        Row(a["kinds"][kind]["title"], "", [Point(mean(a, kind)), Point(mean(b, kind))])
        for kind in kinds
    ]
    rows.sort(key=lambda row: row.points[0].value if row.points[0] else 0.0)
    rows.insert(0, Row("no fault", "", [Point(one["clean"][one["score"]]) for one in (a, b)]))
    text = f"Challenge's score, percent, mean over severity {', '.join(levels)}."
    if (a["images"], a["of"]) != (b["images"], b["of"]):
        text += (
            f" A was measured on {a['images']} images, B on {b['images']}: not quite comparable."
        )
    if set(a["kinds"]) != set(b["kinds"]) or a["severities"] != b["severities"]:
        text += " Not all faults and severities were measured for both, so means of all faults are over different ones."
    return figure(dots(rows, run_series(runs), "score under faults", width=640), text)


def _faults(run: Run, name: str, chart: bool) -> str:
    found = run.robustness or {}
    key, clean = found["score"], found["clean"][found["score"]]
    levels = [str(s) for s in found["severities"]]
    entries = sorted(found["kinds"].values(), key=lambda entry: entry["mean"])
    spans = all("interval" in entry for entry in entries)  # files of before have none
    rows = []
    for entry in entries:
        cells: list[Cell | str] = [entry["title"]]
        for level in levels:
            value = entry["severities"][level][key]
            back, ink = shade(0.75 * (1 - value / clean) if clean > 0 else 0.0)
            cells.append(Cell(percent(value), None, f"background:{back};color:{ink}", "c"))
        cells += [percent(entry["mean"]), *([_span(entry["interval"])] if spans else [])]
        cells += [_relative(entry["relative"]), percent(entry["worst"])]
        rows.append(cells)
    middle = ["mean", "95 %"] if spans else ["mean"]
    heads = ["fault", *(f"sev. {level}" for level in levels), *middle, "of clean", "worst"]
    worst = found["worst"]
    told = (
        f"Challenge's score, percent, on {found['images']} of {found['of']} images spread evenly. Clean: "
        f"{percent(clean)}. Mean of all faults: {percent(found['mean'])}"
        + (f" (95 % interval {_span(found['interval'])})" if "interval" in found else "")
        + f"{of_clean(found)}. "
        f"Worst: {worst_fault(found)}: {percent(worst['score'])}{of_clean(worst)}. The darker a cell, the more is lost."
    )
    text = (paragraph(name, "dim") if name else "") + paragraph(told)
    grid = table(heads, rows, "cells")
    if not chart:
        return f"<div>{text}{grid}</div>"
    colours = [LEVEL_COLOURS[min(int(level), 5) - 1] for level in levels]
    names = [f"severity {levels[0]}", *levels[1:]]
    series = [Series(name, c) for name, c in zip(names, colours, strict=True)]
    points = [
        Row(e["title"], "", [Point(e["severities"][level][key]) for level in levels])
        for e in entries
    ]
    drawing = figure(
        dots(
            points,
            series,
            "score by fault and severity",
            420,
            120,
            stacked=False,
            line=(clean, "clean"),
        )
    )
    return f'{text}<div class="row">{drawing}<div>{grid}</div></div>'


def _span(ends: Sequence[float]) -> str:
    return f"{percent(ends[0])} to {percent(ends[1])}"


def _relative(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def calibration(runs: Sequence[Run]) -> Section | None:
    """Whether a confidence of 90 % is right nine times in ten, where logits were seen."""
    with_it = [run for run in runs if run.counts.calibrated]
    if not with_it:
        return None
    # Not the truth's craft: of pixels that the truth has chosen even a perfect model leaves the diagonal.
    region = REGIONS.index("predicted")
    curves, bars = [], None
    for run in with_it:
        sums = run.counts.calibration.sum(0)
        if len(runs) > 1:
            shown = [(run_series(runs)[runs.index(run)], region)]
        else:
            shown = [
                (Series("found as craft", CLASS_COLOURS["panel"]), region),
                (Series("all pixels", CLASS_COLOURS["background"], dash="6 4"), 0),
            ]
            rel = reliability(sums[region])
            bars = (rel["low"], rel["high"], rel["share"])
        for series, which in shown:
            rel = reliability(sums[which])
            seen = rel["share"] >= _LEAST
            curves.append(Curve(series, rel["confidence"][seen], rel["accuracy"][seen], marks=True))
    drawing = lines(
        curves,
        "reliability",
        "confidence, %",
        "right, %",
        diagonal=True,
        bars=bars,
        width=540,
        height=360,
    )
    told = "On the dashed diagonal confidence is what it says; below it the model is too sure of itself. "
    told += "Bins with under 1 in 500 pixels are left out."
    if bars is not None:
        told += " Grey bars: share of the pixels found as craft with that confidence."
    elif len(runs) > 1:
        told += " Pixels found as craft only."
    told += (
        " Numbers of the craft's own pixels serve to compare runs: the truth has chosen those pixels, so even a "
        "perfectly calibrated model has an ECE there."
    )
    rows = []
    for run in with_it:
        for title, key in (("ECE, %", "ECE"), ("NLL, nats", "NLL")):
            values = [run.metrics.get(f"{key}{suffix}") for suffix in _SUFFIXES]
            shown_as = [
                "–" if v is None else percent(v, 2) if key == "ECE" else f"{v:.4f}" for v in values
            ]
            rows.append([_letter(run, runs) + title, *shown_as])
    heads = ["", "all pixels", "the craft's", "found as craft"]
    body = f'<div class="row">{figure(drawing)}<div>{table(heads, rows)}{paragraph(told, "note")}</div></div>'
    return Section("calibration", "Calibration", body)
