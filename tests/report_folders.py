"""Folders of evaluations made up for the tests of reports, and a parser that looks a page over."""

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from spark_seg.evaluation.calibration import UNIT
from spark_seg.evaluation.frame import count_frame
from spark_seg.evaluation.report import build
from spark_seg.evaluation.report.pictures import Picture, render
from spark_seg.evaluation.store import ImageCounts

VOID = {"meta", "img", "path", "circle", "rect", "br", "link"}


class Page(HTMLParser):
    """Parses a page, insists on closed tags, and collects what it holds."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.all_rows: list[list[str | None]] = []  # of tables' cells what they are sorted by
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.all_rows.append([])
        if tag == "td":
            self.all_rows[-1].append(dict(attrs).get("data-v"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def rows(self) -> list[list[str | None]]:
        return [row for row in self.all_rows if row]

    @property
    def anchors(self) -> list[str]:
        return [str(attrs["id"]) for tag, attrs in self.tags if tag == "section"]

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def frame(rng: np.random.Generator, side: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction uint8 [side, side]: a body with a panel, and the same a little off."""
    truth = np.zeros((side, side), np.uint8)
    y, x = rng.integers(8, side // 2, 2)
    truth[y : y + 16, x : x + 10] = 1
    truth[y : y + 8, x + 10 : x + 20] = 2
    shift = tuple(int(v) for v in rng.integers(-2, 3, 2))
    return truth, np.roll(truth, shift, (0, 1))


def make_counts(
    ids: Sequence[str], satellites: Sequence[str], seed: int = 0, calibrated: bool = True
) -> ImageCounts:
    rng = np.random.default_rng(7)  # the truth is the same for every seed
    rows = []
    for n, (name, satellite) in enumerate(zip(ids, satellites, strict=True)):
        truth, _ = frame(rng)
        off = np.random.default_rng([seed, n]).integers(-2, 3, 2)
        found = np.roll(truth, tuple(int(v) for v in off), (0, 1))
        counts: dict[str, Any] = dict(count_frame(found, truth))
        if calibrated:
            sums = np.zeros((3, 15, 3), np.int64)
            sums[:, 7:] = [100, 60, 70 * UNIT]
            counts |= {"calibration": sums, "nll": np.full(3, 50 * UNIT)}
        rows.append((name, satellite, counts))
    return ImageCounts.collect(rows)


def pictures(ids: Sequence[str]) -> list[Picture]:
    rng = np.random.default_rng(1)
    found = []
    for name in ids:
        truth, prediction = frame(rng)
        area, tiles = render(rng.integers(0, 255, (64, 64, 3)).astype(np.uint8), truth, prediction)
        found.append(Picture(name, ("worst", "median", "spread"), area, (64, 64), tuple(tiles)))
    return found


IDS = [f"{s}/val/image_{n:05d}" for s in ("Cheops", "XMM Newton") for n in range(4)]
SATELLITES = [name.split("/")[0] for name in IDS]


def built(out: Path) -> tuple[str, Page]:
    html = out.read_text(encoding="utf-8")
    assert len(html.encode()) < build.LARGEST
    page = Page(html)
    for tag, attrs in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
        for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            value = attrs.get(name)
            assert value is None or value.startswith(("#", "data:image/jpeg;base64,")), value
    assert not re.search(r"url\s*\(|@import|fetch\(|XMLHttpRequest|https?://", html)
    links = [a["href"] for t, a in page.tags if t == "a"]
    assert links == [f"#{anchor}" for anchor in page.anchors]
    return html, page
