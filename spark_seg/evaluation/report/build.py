"""Puts a report together and keeps it under its size."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np

from spark_seg.atomic import make_folder, write_bytes
from spark_seg.errors import UserError
from spark_seg.evaluation.compare import compare
from spark_seg.evaluation.compare import pair as in_common
from spark_seg.evaluation.report import quality, sections, tables
from spark_seg.evaluation.report.charts import INK, Curve, Series, lines, percent
from spark_seg.evaluation.report.data import Run
from spark_seg.evaluation.report.page import Cell, Section, figure, page, paragraph, table
from spark_seg.evaluation.sums import image_values

LARGEST = 5_000_000  # bytes
# Rows of the table of images and pictures of each set, from most to least.
_STEPS = (
    (2000, 60),
    (2000, 24),
    (1000, 12),
    (1000, 6),
    (400, 4),
    (200, 2),
    (50, 1),
    (10, 0),
    (0, 0),
)


def write_report(runs: Sequence[Run], out: str | Path) -> Path:
    """Writes the report of one run, or of two side by side, in one step.

    Args:
        runs: One or two, as from `data.load_run`.
        out: The HTML file.

    Raises:
        UserError: Two runs that share no image, or whose truth differs; the file cannot be written.
    """
    html = single(runs[0]) if len(runs) == 1 else side_by_side(runs[0], runs[1])
    out = Path(out)
    make_folder(out.parent)
    write_bytes(out, html.encode("utf-8"))
    return out


def _fitted(build: Callable[[int, int], str]) -> str:
    for rows, pictures in _STEPS:
        html = build(rows, pictures)
        if len(html.encode("utf-8")) < LARGEST:
            return html
    raise UserError(
        f"the report does not fit into {LARGEST / 1e6:.0f} MB even without pictures: "
        "is run.json of another origin?"
    )


def _kept(*found: Section | None) -> list[Section]:
    return [section for section in found if section is not None]


def single(run: Run) -> str:
    """The report of one run as HTML, under `LARGEST` bytes."""
    runs = [run]
    _check(run)
    fixed = _kept(
        tables.summary(run),
        sections.classes(runs),
        sections.groups(runs, "satellite"),
        sections.size(runs),
        sections.groups(runs, "background"),
        sections.groups(runs, "panel"),
        quality.thresholds(runs),
        sections.matrix(runs),
        quality.calibration(runs),
        quality.robustness(runs),
    )
    subtitle = f"{len(run.counts)} images"
    if run.record.get("split"):
        subtitle += f" of {run.record['split']}"
    if run.record.get("checkpoint"):
        subtitle += f"; {run.record['checkpoint']}"

    def build(rows: int, pictures: int) -> str:
        parts = _kept(
            *fixed,
            tables.pictures(run, "worst", pictures) if pictures else None,
            tables.pictures(run, "median", pictures) if pictures else None,
            tables.images(run, rows),
            tables.parameters(runs),
        )
        return page(f"Evaluation of {sections.short(run.name, 90)}", subtitle, parts)

    return _fitted(build)


def _check(run: Run) -> None:
    if not len(run.counts):
        raise UserError(f"{run.folder}: the counts hold no image, so there is nothing to report")


def side_by_side(a: Run, b: Run) -> str:
    """The report of two runs over the same images as HTML, under `LARGEST` bytes.

    Images that only one run has are left out of everything, and their number is told.
    """
    _check(a)
    _check(b)
    found = compare(a.counts, b.counts, a.rule)
    ruled = a.rule != b.rule
    if ruled and b.robustness:
        told = f"{b.folder / 'robustness.json'} is scored by another challenge rule than A and is left out"
        b = replace(b, robustness=None, left_out=[*b.left_out, told])
    first, second = _on_shared(a, b) if found.only_a or found.only_b or ruled else (a, b)
    runs = [first, second]
    left_out = len(found.only_a) + len(found.only_b)
    told = (
        f"{found.images} images that both runs have; {left_out} that only one has are left out. "
        if left_out
        else f"{found.images} images. "
    )
    told += (
        "Differences are B − A in points, with the 95 % interval of a paired bootstrap over images; open: "
        "the interval holds 0."
    )
    if ruled:
        told += " The runs were scored by different challenge rules; here both are by A's."
    names = "".join(
        f"<p><b>{letter}</b>: {escape(sections.short(run.name, 120))} "
        f'<span class="dim">{escape(str(run.record.get("checkpoint", "")))}</span></p>'
        for letter, run in zip("AB", runs, strict=True)
    )
    top = Section(
        "summary",
        "Summary",
        names + paragraph(told) + tables.compared(found) + tables.left_out(runs),
    )
    fixed = _kept(
        top,
        sections.classes(runs),
        sections.groups(runs, "satellite"),
        sections.size(runs),
        sections.groups(runs, "background"),
        sections.groups(runs, "panel"),
        quality.thresholds(runs),
        sections.matrix(runs),
        quality.calibration(runs),
        quality.robustness(runs),
        per_image(runs),
    )

    def build(rows: int, pictures: int) -> str:
        parts = _kept(
            *fixed,
            shared_pictures(runs, pictures) if pictures else None,
            changes(runs, rows),
            tables.parameters(runs),
        )
        title = f"{sections.short(a.name, 60)} and {sections.short(b.name, 60)}"
        return page(title, "Two evaluations side by side", parts)

    return _fitted(build)


def _on_shared(a: Run, b: Run) -> tuple[Run, Run]:
    """Both runs on the images that they share, everything computed anew; the metrics of the files do not hold there."""
    from spark_seg.evaluation.run import summarize

    shared = []
    for run, counts in zip((a, b), in_common(a.counts, b.counts), strict=True):
        new = summarize(counts, a.rule)
        shared.append(
            replace(
                run,
                counts=counts,
                metrics=new.metrics,
                intervals=new.intervals,
                groups=new.groups,
                rule=a.rule,
                values=image_values(counts, a.rule),
            )
        )
    return shared[0], shared[1]


def per_image(runs: Sequence[Run]) -> Section:
    """Each image's IoU in one run against the other's."""
    a, b = (run.values["mIoU/foreground"][0] for run in runs)
    which = np.linspace(0, len(a) - 1, min(len(a), 2000)).astype(int)
    diagonal = Curve(Series("equal", INK), np.array([]), np.array([]))
    drawing = lines(
        [diagonal],
        "images in both runs",
        f"A: {sections.short(runs[0].name, 44)}, %",
        f"B: {sections.short(runs[1].name, 44)}, %",
        clouds=[("#0072b2", a[which], b[which])],
        diagonal=True,
        legend=False,
        width=460,
        height=440,
    )
    better, worse = int((b > a).sum()), int((b < a).sum())
    told = (
        f"Foreground mIoU of each image: B is higher in {better}, lower in {worse}, equal in "
        f"{len(a) - better - worse}. Above the diagonal B is better."
    )
    return Section("per-image", "Image by image", figure(drawing, told), "By image")


def changes(runs: Sequence[Run], limit: int) -> Section:
    """The images whose score changed most, as a table that can be sorted."""
    a, b = runs
    gap = b.values["spark/score"][0] - a.values["spark/score"][0]
    fine = b.values["mIoU/foreground"][0] - a.values["mIoU/foreground"][0]
    order = np.lexsort((-np.abs(fine), -np.abs(gap)))[:limit]
    satellite = tables.names_satellites(a)
    rows = []
    for index in order:
        cells = tables.id_cells(a, index, satellite)
        for key in ("spark/score", "mIoU/foreground"):
            values = [float(run.values[key][0][index]) for run in runs]
            cells += [percent(value) for value in values]
            change = values[1] - values[0]
            kind = "better" if change > 0 else "worse" if change < 0 else ""
            cells.append(Cell(f"{100 * change:+.1f}".replace("-", "−"), change, kind=kind))
        rows.append(cells)
    first = ["image", "satellite"] if satellite else ["image"]
    heads = [*first, "score A", "B", "B − A", "mIoU A", "B", "B − A"]
    sort = ["up"] * len(heads)
    total = len(a.counts)
    told = (
        f"All {total} images"
        if len(order) == total
        else f"The {len(order)} of {total} images that changed most"
    )
    told += ", the challenge's score and the foreground's mIoU in percent; press a column's head to sort by it."
    note = '<p class="print note">In print: the first 40 rows.</p>' if len(order) > 40 else ""
    grid = table(heads, rows, "", (), sort)
    return Section("images", "Images", f'{paragraph(told)}{note}<div class="scroll">{grid}</div>')


def shared_pictures(runs: Sequence[Run], limit: int) -> Section | None:
    """Images that both runs kept, the ones that changed most first."""
    kept = [{picture.id: picture for picture in run.pictures} for run in runs]
    places = {str(name): index for index, name in enumerate(runs[0].counts.ids)}
    both = [name for name in kept[0] if name in kept[1] and name in places]
    if not both:
        if not any(kept):
            return None
        told = "The runs kept no picture of the same image."
        return Section("pictures", "Pictures", paragraph(told, "dim"))
    a, b = (run.values["mIoU/foreground"][0] for run in runs)
    both.sort(key=lambda name: -abs(b[places[name]] - a[places[name]]))
    parts = []
    for name in both[:limit]:
        shots = [
            tables.shot(
                run,
                pictures[name],
                f'<b>{letter}</b> <span class="dim">{escape(tables.numbers(run, places[name]))}</span>',
            )
            for letter, run, pictures in zip("AB", runs, kept, strict=True)
        ]
        parts.append(
            f'<div class="shot"><h3 class="id">{escape(sections.short(name, 120))}</h3>{"".join(shots)}</div>'
        )
    told = "Images of which both runs kept pictures, the most changed first."
    return Section("pictures", "Pictures", paragraph(told) + tables.legend() + "".join(parts))
