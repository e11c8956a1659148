"""The summary, the pictures, the table of images and the parameters of a report."""

import base64
import json
import shlex
from collections.abc import Sequence
from html import escape

import numpy as np

from spark_seg.evaluation.compare import Comparison
from spark_seg.evaluation.counts import pooled
from spark_seg.evaluation.report.charts import percent
from spark_seg.evaluation.report.data import Run
from spark_seg.evaluation.report.page import Cell, Section, flat, paragraph, table
from spark_seg.evaluation.report.pictures import TILES, Picture
from spark_seg.evaluation.report.sections import short
from spark_seg.visual import ERROR_COLOURS, PART_COLOURS

Row = list[Cell | str]
# Score -> what it is, in the order shown.
SCORES = {
    "spark/score": "the challenge's score as believed: half body, half panel",
    "spark/body": "mean over images of the share of IoU thresholds that the body reaches",
    "spark/panel": "the same for the panel, in the images where it counts",
    "mIoU/foreground": "IoU of body and panel, all pixels pooled",
    "mIoU": "the same with the background",
    "per_image/mIoU/foreground": "IoU of body and panel in each image, mean over images",
    "boundary_IoU/craft": "IoU of a band along the craft's outline",
    "boundary_F1px/craft": "outline pixels that meet within 1 pixel",
    "boundary_F2px/craft": "within 2 pixels",
    "box_IoU": "IoU of the boxes that true and found masks imply",
    "aAcc": "share of pixels that are right",
    "ECE/foreground": "calibration error over the craft's pixels; lower is better",
}
_CARDS = ("spark/score", "spark/body", "spark/panel", "mIoU/foreground")


def summary(run: Run) -> Section:
    """The numbers that matter, with their intervals."""
    cards = "".join(_card(run, key) for key in _CARDS)
    rows: list[Row] = []
    kinds = []
    for key, told in SCORES.items():
        if key in run.metrics:
            low, high = run.interval(key)
            span = (
                "–" if low is None or high is None else f"{percent(low, 2)} to {percent(high, 2)}"
            )
            rows.append([key, percent(run.metrics[key], 2), span, Cell(told, kind="tell")])
            kinds.append("lead" if key == "spark/score" else "")
    grid = table(["score", "percent", "95 % interval", ""], rows, "", kinds)
    return Section(
        "summary", "Summary", f'<div class="cards">{cards}</div>{grid}{_lost(run)}{left_out([run])}'
    )


def left_out(runs: Sequence[Run]) -> str:
    """What the runs' folders hold of other evaluations, a paragraph each."""
    return "".join(paragraph(line, "note") for run in runs for line in run.left_out)


def _card(run: Run, key: str) -> str:
    low, high = run.interval(key)
    span = "" if low is None or high is None else f"{percent(low)} to {percent(high)}"
    return (
        f'<div class="card">{escape(key)}<b>{percent(run.metrics[key])}</b>'
        f"<small>{span or '&nbsp;'}</small></div>"
    )


def _lost(run: Run) -> str:
    """Where the challenge's score is lost, in one sentence."""
    body, panel = (1 - run.metrics[f"spark/{part}"] for part in ("body", "panel"))
    panels = int(run.metrics.get("spark/panel_images", 0))
    images = len(run.counts)
    # The panel's part is what is left, so that the parts as shown add up to the whole as shown.
    whole, first = (round(100 * value, 1) for value in (body / 2 + panel / 2, body / 2))
    text = (
        f"{images} image{'s' if images != 1 else ''}; the panel counts in {panels}. Of the "
        f"{whole:.1f} points lost, {first:.1f} are the body's and {whole - first:.1f} the panel's."
    )
    if not panels:
        text += " Without an image whose panel counts, the panel's half of the score is 0."
    return paragraph(text)


def compared(found: Comparison) -> str:
    """Both runs' scores with the interval of the difference."""
    rows: list[Row] = []
    kinds = []
    for key, told in SCORES.items():
        one = found.rows.get(key)
        if one is None:
            continue
        verdict = {"better": "B is better", "worse": "B is worse", "open": "open"}[one.verdict]
        rows.append(
            [
                key,
                percent(one.a, 2),
                percent(one.b, 2),
                _signed(one.difference),
                f"{_signed(one.low)} to {_signed(one.high)}",
                Cell(verdict, kind=one.verdict),
                Cell(told, kind="tell"),
            ]
        )
        kinds.append("lead" if key == "spark/score" else "")
    heads = ["score, %", "A", "B", "B − A", "95 % interval", "verdict", ""]
    return table(heads, rows, "", kinds)


def _signed(value: float) -> str:
    text = f"{100 * value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", "−")


def _key(colours: dict[str, tuple[int, int, int]]) -> str:
    spans = []
    for name, (blue, green, red) in colours.items():
        spans.append(
            f'<span class="key" style="background:#{red:02x}{green:02x}{blue:02x}"></span>{escape(name)}'
        )
    return "".join(spans)


def legend() -> str:
    """What the colours in the pictures mean."""
    parts = {"body": PART_COLOURS[1], "panel": PART_COLOURS[2]}
    return (
        f'<p class="note"><span class="keys">Labels {_key(parts)}</span> '
        f'<span class="keys">Errors {_key(ERROR_COLOURS)}</span> The white frame in the first picture '
        "is what the others show; a false alarm outside of it is marked there.</p>"
    )


def shot(run: Run, picture: Picture, head: str) -> str:
    """One image's tiles with a line above, which is escaped."""
    x0, y0, x1, y1 = picture.window
    texts = {
        "frame": f"frame, {picture.size[1]}×{picture.size[0]} px",
        "image": f"image, {x1 - x0}×{y1 - y0} px of it",
    }
    figures = []
    for name, data in zip(TILES, picture.tiles, strict=True):
        code = base64.b64encode(data).decode()
        figures.append(
            f'<figure><img src="data:image/jpeg;base64,{code}" alt="{name}">'
            f"<figcaption>{texts.get(name, name)}</figcaption></figure>"
        )
    return f'<div class="shot"><div>{head}</div><div class="tiles">{"".join(figures)}</div></div>'


def numbers(run: Run, index: int) -> str:
    """The scores of one image in a line."""
    parts = []
    for key, name in (
        ("spark/score", "score"),
        ("IoU/body", "IoU body"),
        ("IoU/panel", "panel"),
        ("boundary_IoU/craft", "boundary IoU"),
    ):
        if key in run.values:
            value, counted = (array[index] for array in run.values[key])
            parts.append(f"{name} {percent(value) if counted else '–'}")
    if "spark/panel" in run.values and not run.values["spark/panel"][1][index]:
        parts.append("the panel does not count")
    area = run.counts.true_area[index]
    parts.append(f"craft {100 * area[1:].sum() / max(area.sum(), 1):.2f} % of the frame")
    return ", ".join(parts)


def pictures(run: Run, of: str, limit: int) -> Section | None:
    """The worst or the median images."""
    shown = [picture for picture in run.pictures if of in picture.sets]
    places = {str(name): index for index, name in enumerate(run.counts.ids)}
    shown = [picture for picture in shown if picture.id in places]
    if not shown:
        return None
    rank = {int(index): n for n, index in enumerate(run.order())}
    shots = []
    for picture in sorted(shown, key=lambda one: rank[places[one.id]])[:limit]:
        index = places[picture.id]
        head = (
            f'<span class="id">{escape(short(picture.id, 120))}</span> '
            f'<span class="dim">{escape(numbers(run, index))}; '
            f"rank {rank[index] + 1} of {len(run.counts)} from the worst</span>"
        )
        shots.append(shot(run, picture, head))
    told = {
        "worst": "The images with the lowest score of their own; equal ones by their IoU.",
        "median": "The images in the middle of that order: what is usual.",
    }[of]
    title = {"worst": "Worst images", "median": "Median images"}[of]
    return Section(of, title, paragraph(told) + legend() + "".join(shots), title.split()[0])


_COLUMNS = (
    ("spark/score", "score"),
    ("IoU/body", "body"),
    ("IoU/panel", "panel"),
    ("mIoU/foreground", "mean"),
    ("boundary_IoU/craft", "outline"),
    ("box_IoU", "box"),
)


def id_cells(run: Run, index: int, satellite: bool) -> Row:
    """An image's id, and its satellite on request."""
    cells: Row = [Cell(short(str(run.counts.ids[index]), 120), kind="id")]
    return [*cells, Cell(str(run.counts.satellites[index]), kind="l")] if satellite else cells


def names_satellites(run: Run) -> bool:
    """Whether a column for the satellite says more than the ids do, which begin with it in SPARK's layout."""
    return any(
        satellite and not image.startswith(f"{satellite}/")
        for image, satellite in zip(
            run.counts.ids.tolist(), run.counts.satellites.tolist(), strict=True
        )
    )


def images(run: Run, limit: int) -> Section:
    """The table of images, worst first."""
    order = run.order()[:limit]
    columns = [(key, name) for key, name in _COLUMNS if key in run.values]
    matrix = run.counts.confusion
    area = run.counts.true_area
    share = area[:, 1:].sum(1) / np.maximum(area.sum(1), 1)
    missed, alarm = matrix[:, 1:, 0].sum(1), matrix[:, 0, 1:].sum(1)
    swapped = matrix[:, 1, 2] + matrix[:, 2, 1]
    satellite = names_satellites(run)
    rows = []
    for index in order:
        cells = id_cells(run, index, satellite)
        cells.append(f"{100 * share[index]:.2f}")
        for key, _ in columns:
            value, counted = (array[index] for array in run.values[key])
            told = percent(value) if counted else "–"
            cells.append(Cell(told, float(value) if counted else float("nan")))
        cells += [str(int(array[index])) for array in (missed, alarm, swapped)]
        rows.append(cells)
    names = [name for _, name in columns]
    first = ["image", "satellite"] if satellite else ["image"]
    heads = [*first, "craft", *names, "missed", "false", "wrong part"]
    sort = [*["up"] * len(first), "up", *["up"] * len(names), "down", "down", "down"]
    total = len(run.counts)
    told = (
        f"All {total} images"
        if len(order) == total
        else f"The worst {len(order)} of {total} images"
    )
    told += (
        "; press a column's head to sort by it. In percent: the craft's share of the frame, the challenge's score, "
        "the IoU of body, panel, both, outline and box. In pixels: missed craft, false alarm, body and panel "
        "confused. A dash: the part is neither in the image nor found. Where the true panel is too small beside the "
        "body to count, the image's score is its body's alone."
    )
    note = ""
    if len(order) > 40:
        note = '<p class="print note">In print: the first 40 rows.</p>'
    return Section(
        "images",
        "Images",
        f'{paragraph(told)}{note}<div class="scroll">{table(heads, rows, "", (), sort)}</div>',
    )


_FIRST = ("checkpoint", "split", "command", "seed", "rule", "versions", "git", "host", "gpu")


def parameters(runs: Sequence[Run]) -> Section:
    """What was evaluated, with what and where."""
    if not any(run.record for run in runs):
        told = "This run was evaluated by a version that kept no record (run.json)."
        return Section("parameters", "Run parameters", paragraph(told, "dim"))
    leaves = [_leaves(run) for run in runs]
    if len(runs) == 1:
        rows: list[Row] = [
            [Cell(name, kind="v"), Cell(value, kind="v")] for name, value in leaves[0].items()
        ]
        text = json.dumps(runs[0].record.get("config", {}), indent=1, default=str)
        body = table(["", ""], rows)
        shown = f'<h3 class="config">Config</h3><pre class="config">{escape(text)}</pre>'
        return Section("parameters", "Run parameters", body + shown, "Parameters")
    names = list(dict.fromkeys(name for part in leaves for name in part))
    config = [dict(flat(run.record.get("config") or {}, "config")) for run in runs]
    extra = [
        name
        for name in dict.fromkeys(name for part in config for name in part)
        if len({part.get(name, "") for part in config}) > 1
    ]
    values = [(n, [part.get(n, "–") for part in leaves]) for n in names]
    values += [(n, [part.get(n, "–") for part in config]) for n in extra]
    rows = [
        [Cell(name, kind="v"), *(Cell(value, kind="v") for value in pair)] for name, pair in values
    ]
    kinds = ["differs" if len(set(pair)) > 1 else "" for _, pair in values]
    heads = [
        "",
        *(f"{letter}: {short(run.name, 44)}" for letter, run in zip("AB", runs, strict=True)),
    ]
    told = "What differs is shaded; of the config only that is shown."
    body = table(heads, rows, "", kinds).replace("<th ", '<th class="l" ')
    return Section("parameters", "Run parameters", paragraph(told) + body, "Parameters")


def _leaves(run: Run) -> dict[str, str]:
    first = {key: run.record[key] for key in _FIRST if key in run.record}
    if isinstance(first.get("command"), list):
        first["command"] = shlex.join(str(word) for word in first["command"])
    found = dict(flat({"folder": str(run.folder), **first}))
    # Of the training's record what the evaluation's own does not say already.
    own = dict(flat({key: run.record.get(key) or {} for key in ("versions", "git", "host")}))
    trained = dict(flat(run.record.get("training") or {}, "training"))
    found |= {
        name: value
        for name, value in trained.items()
        if own.get(name.removeprefix("training.")) != value
    }
    total = int(pooled(run.counts.confusion).sum())
    return {**found, "images": str(len(run.counts)), "pixels counted": str(total)}
