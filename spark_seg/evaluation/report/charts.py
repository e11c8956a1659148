"""Charts as inline SVG, drawn here so that a report needs no library in the browser.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; where two runs are compared the marks
differ in shape too. Values are 0 to 1 and shown in percent. Every text passes through `html.escape`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

INK, DIM, GRID = "#222222", "#5f6368", "#e3e5e8"
CLASS_COLOURS = {"background": "#767676", "body": "#d55e00", "panel": "#0072b2"}
WHOLE = "#222222"
RUN_COLOURS = ("#55585c", "#009e73")
SHAPES = ("circle", "diamond")
Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Series:
    """What belongs together in a chart: a label, a colour, and a shape or a dash to tell it apart in print."""

    label: str
    colour: str
    shape: str = "circle"
    dash: str = ""


@dataclass(frozen=True)
class Point:
    """A value with its interval; `low` and `high` None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of a dot chart: its label, a note in grey, and a point per series (None: nothing to show)."""

    label: str
    note: str
    points: Sequence[Point | None]


@dataclass
class Canvas:
    """An SVG being drawn; lengths are pixels of its own coordinates."""

    width: float
    height: float
    title: str
    parts: list[str] = field(default_factory=list)

    def line(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        colour: str = GRID,
        width: float = 1,
        dash: str = "",
    ) -> None:
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<path d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}" stroke="{colour}" '
            f'stroke-width="{width:g}" fill="none"{dashed}/>'
        )

    def path(
        self,
        xs: Values,
        ys: Values,
        colour: str,
        width: float = 2,
        dash: str = "",
    ) -> None:
        if not len(xs):
            return
        points = "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True))
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<path d="M{points}" stroke="{colour}" stroke-width="{width:g}" fill="none" '
            f'stroke-linejoin="round"{dashed}/>'
        )

    def cloud(self, xs: Values, ys: Values, colour: str) -> None:
        """Many dots as one path, a dozen bytes each."""
        points = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in zip(xs, ys, strict=True))
        if points:
            self.parts.append(
                f'<path d="{points}" stroke="{colour}" stroke-width="{5 if len(xs) < 300 else 4}" '
                f'stroke-linecap="round" fill="none" opacity="{min(0.35, max(0.22, 60 / len(xs))):.2f}"/>'
            )

    def mark(
        self, x: float, y: float, colour: str, shape: str = "circle", size: float = 4.5
    ) -> None:
        if shape == "circle":
            self.parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:g}" fill="{colour}" stroke="#fff"/>'
            )
            return
        r = size * 1.3
        self.parts.append(
            f'<path d="M{x:.1f} {y - r:.1f}l{r:.1f} {r:.1f}l{-r:.1f} {r:.1f}l{-r:.1f} {-r:.1f}z" '
            f'fill="{colour}" stroke="#fff"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        content: str,
        anchor: str = "start",
        colour: str = INK,
        size: float = 12,
        turn: bool = False,
    ) -> None:
        turned = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turn else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" '
            f'font-size="{size:g}"{turned}>{escape(content)}</text>'
        )

    def bar(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" '
            f'height="{max(height, 0):.1f}" fill="{colour}"/>'
        )

    def legend(self, series: Sequence[Series], x: float, y: float, lines: bool = False) -> None:
        for one in series:
            if lines:
                self.line(x, y - 4, x + 22, y - 4, one.colour, 2.5, one.dash)
                x += 28
            else:
                self.mark(x + 5, y - 4, one.colour, one.shape)
                x += 15
            self.text(x, y, one.label)
            x += 7.0 * len(one.label) + 20

    def svg(self) -> str:
        name = escape(self.title)
        return (
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}" role="img" '
            f'aria-label="{name}">{"".join(self.parts)}</svg>'
        )


def percent(value: float, digits: int = 1) -> str:
    """0.9731 -> `97.3`."""
    return f"{100 * value:.{digits}f}"


def lower_end(values: Sequence[float]) -> float:
    """A round start for an axis up to 1 on which all values lie: 0, or a tenth below a minimum over a half."""
    low = min(values, default=0.0)
    start = np.floor(low * 10 - 0.2) / 10
    return float(start) if start >= 0.5 else 0.0


def upper_end(values: Sequence[float]) -> float:
    """A round end of an axis from 0: 1, or the next tenth where nothing reaches half."""
    high = max(values, default=1.0)
    return float(np.ceil(high * 10 + 0.2) / 10) if high < 0.48 else 1.0


def _ticks(low: float, high: float) -> list[float]:
    step = 0.1 if high - low <= 0.55 else 0.2
    return [float(v) for v in np.arange(round(low / step), round(high / step) + 1) * step]


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def dots(
    rows: Sequence[Row],
    series: Sequence[Series],
    title: str,
    width: float = 540,
    left: float = 150,
    stacked: bool = True,
    line: tuple[float, str] | None = None,
) -> str:
    """Rows of dots with their intervals on one axis; the values are written on the right.

    Args:
        rows: What to show.
        series: One for each of a row's points.
        title: For those who cannot see it.
        width: Of the drawing.
        left: The width of the labels.
        stacked: Whether a row's dots have a line each; else they share one, and no value is written.
        line: A value to be drawn across all rows, and its name.
    """
    present = [p for row in rows for p in row.points if p is not None]
    ends = [v for p in present for v in (p.value, p.low) if v is not None]
    low = lower_end(ends)
    tops = [p.value if p.high is None else p.high for p in present] + [line[0] if line else 0.0]
    high = upper_end(tops) if low == 0 else 1.0
    step, top, right = (15, 26, 54) if stacked else (0, 26, 16)
    pitch = step * len(series) + 9 if stacked else 25
    height = top + pitch * len(rows) + 34
    canvas = Canvas(width, height, title)

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    if len(series) > 1:
        canvas.legend(series, left, 14)
    for tick in _ticks(low, high):
        canvas.line(at(tick), top, at(tick), height - 30)
        canvas.text(at(tick), height - 14, percent(tick, 0), "middle", DIM, 11)
    if low > 0:
        canvas.text(left - 10, height - 14, f"axis from {percent(low, 0)}", "end", DIM, 11)
    if line is not None:
        canvas.line(at(line[0]), top - 4, at(line[0]), height - 30, INK, 1, "4 3")
        near = at(line[0]) > width - 90
        canvas.text(
            at(line[0]) + (-5 if near else 5),
            height - 33,
            line[1],
            "end" if near else "start",
            DIM,
            11,
        )
    for index, row in enumerate(rows):
        middle = top + pitch * (index + 0.5)
        canvas.text(left - 10, middle + (0 if row.note else 4), _short(row.label, 21), "end")
        if row.note:
            canvas.text(left - 10, middle + 12, row.note, "end", DIM, 10)
        shown = [p.value for p in row.points if p is not None]
        if not stacked and shown:
            canvas.line(at(max(min(shown), low)), middle, at(max(shown)), middle, "#c9cdd2", 2)
        for place, (one, point) in enumerate(zip(series, row.points, strict=True)):
            if point is None:
                continue
            y = middle + (place - (len(series) - 1) / 2) * step
            if point.low is not None and point.high is not None:
                canvas.line(at(max(point.low, low)), y, at(point.high), y, one.colour, 2)
            canvas.mark(at(max(point.value, low)), y, one.colour, one.shape)
            if stacked:
                canvas.text(width - 4, y + 4, percent(point.value), "end", one.colour, 11)
    return canvas.svg()


@dataclass(frozen=True)
class Curve:
    """A line of a chart: x and y of equal length, in the chart's units; marks on its points on request."""

    series: Series
    x: np.ndarray
    y: np.ndarray
    marks: bool = False


def lines(
    curves: Sequence[Curve],
    title: str,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] = (0, 1),
    y_range: tuple[float, float] = (0, 1),
    x_ticks: Sequence[tuple[float, str]] | None = None,
    clouds: Sequence[tuple[str, np.ndarray, np.ndarray]] = (),
    diagonal: bool = False,
    bars: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    bands: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]] = (),
    zone: tuple[float, float] | None = None,
    legend: bool = True,
    width: float = 540,
    height: float = 330,
) -> str:
    """Curves over an axis of shares in percent.

    Args:
        curves: What to draw.
        title: For those who cannot see it.
        x_label: Below; y_label: beside.
        y_label: See `x_label`.
        x_range: Ends of the axis; likewise y_range.
        y_range: See `x_range`.
        x_ticks: Places and texts; tenths in percent by default.
        clouds: (colour, x, y) of single dots behind.
        diagonal: Whether to draw where x equals y.
        bars: (low, high, share) of bars from below, in light grey.
        bands: (colour, x, low, high): vertical intervals.
        zone: A part of the x axis to be shaded.
        legend: Whether to name the curves above.
        width: Of the drawing.
        height: Likewise.
    """
    left, right, top, bottom = 52, 16, 30, 46
    canvas = Canvas(width, height, title)

    def at_x(value: np.ndarray | float) -> np.ndarray:
        share = (np.asarray(value, float) - x_range[0]) / (x_range[1] - x_range[0])
        return left + np.clip(share, 0, 1) * (width - left - right)

    def at_y(value: np.ndarray | float) -> np.ndarray:
        share = (np.asarray(value, float) - y_range[0]) / (y_range[1] - y_range[0])
        return height - bottom - np.clip(share, 0, 1) * (height - top - bottom)

    if zone is not None:
        x0, x1 = (float(at_x(end)) for end in zone)
        canvas.bar(x0, top, x1 - x0, height - top - bottom, "#f1f3f6")
    for tick in _ticks(*y_range):
        y = float(at_y(tick))
        canvas.line(left, y, width - right, y)
        canvas.text(left - 8, y + 4, percent(tick, 0), "end", DIM, 11)
    for tick, text in x_ticks or [(t, percent(t, 0)) for t in _ticks(*x_range)]:
        x = float(at_x(tick))
        canvas.line(x, height - bottom, x, height - bottom + 4, DIM)
        canvas.text(x, height - bottom + 17, text, "middle", DIM, 11)
    if bars is not None:
        for low, high, share in zip(*bars, strict=True):
            x0, x1, y = float(at_x(low)), float(at_x(high)), float(at_y(y_range[0] + share))
            canvas.bar(x0 + 1, y, x1 - x0 - 2, height - bottom - y, "#e9ebee")
    canvas.line(left, height - bottom, width - right, height - bottom, DIM)
    if diagonal:
        ends = np.array([max(x_range[0], y_range[0]), min(x_range[1], y_range[1])])
        canvas.path(at_x(ends), at_y(ends), DIM, 1, "4 4")
    for colour, xs, ys in clouds:
        canvas.cloud(at_x(xs), at_y(ys), colour)
    for colour, xs, lows, highs in bands:
        for x, low, high in zip(at_x(xs), at_y(lows), at_y(highs), strict=True):
            canvas.line(x, low, x, high, colour, 2)
    for curve in curves:
        xs, ys = at_x(curve.x), at_y(curve.y)
        canvas.path(xs, ys, curve.series.colour, 2.2, curve.series.dash)
        if curve.marks:
            for x, y in zip(xs, ys, strict=True):
                canvas.mark(x, y, curve.series.colour, curve.series.shape, 4)
    if legend and (len(curves) > 1 or clouds):
        canvas.legend([curve.series for curve in curves], left, 16, lines=True)
    canvas.text((left + width - right) / 2, height - 8, x_label, "middle", DIM)
    canvas.text(13, (top + height - bottom) / 2, y_label, "middle", DIM, turn=True)
    return canvas.svg()


def shade(share: float, ramp: Callable[[float], str] | None = None) -> tuple[str, str]:
    """Background and ink of a table's cell for a share 0 to 1: white to a dark blue."""
    share = min(max(share, 0.0), 1.0)
    if ramp is not None:
        return ramp(share), INK
    start, end = np.array([255, 255, 255]), np.array([8, 81, 156])
    red, green, blue = np.rint(start + (end - start) * share).astype(int)
    return f"#{red:02x}{green:02x}{blue:02x}", "#ffffff" if share > 0.5 else INK
