"""The HTML report: whole, self-contained, bounded, escaped, and with the numbers of the saved results."""

import json
import os
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_folders import IDS, SATELLITES, Page, built

from spark_seg.cli.report import main
from spark_seg.errors import UserError
from spark_seg.evaluation.report import charts, tables
from spark_seg.evaluation.report.data import load_run
from spark_seg.evaluation.report.pictures import PICTURES_FILE, Picture, save_pictures
from spark_seg.evaluation.run import summarize
from spark_seg.evaluation.store import ImageCounts

ALL = (
    "summary classes satellites size panels thresholds confusion calibration robustness worst median "
    "images parameters"
)


def test_every_section_of_one_run(make: Callable[..., Path]) -> None:
    folder = make()
    assert main([str(folder)]) == 0
    _, page = built(folder / "report.html")
    assert page.anchors == ALL.split()
    assert sum(tag == "img" for tag, _ in page.tags) == 2 * 5 * 5
    assert "best.safetensors" in page.text
    assert "a/test_val" in page.text
    for name in IDS:
        assert name in page.text


def test_numbers_are_those_of_the_files(make: Callable[..., Path]) -> None:
    folder = make()
    main([str(folder)])
    html, _ = built(folder / "report.html")
    metrics = json.loads((folder / "metrics.json").read_text())
    spans = json.loads((folder / "intervals.json").read_text())
    for key in (
        "spark/score",
        "spark/panel",
        "mIoU/foreground",
        "boundary_IoU/craft",
        "box_IoU",
        "aAcc",
    ):
        low, high = spans[key]
        row = f"<td>{key}</td><td>{100 * metrics[key]:.2f}</td><td>{100 * low:.2f} to {100 * high:.2f}</td>"
        assert row in html, key
    counts = ImageCounts.load(folder / "counts.npz")
    for value in counts.confusion.sum(0).ravel():
        assert f"{value:,} px".replace(",", "\u202f") in html
    # It reads the files rather than computing anew
    metrics["spark/score"] = 0.12345
    (folder / "metrics.json").write_text(json.dumps(metrics))
    main([str(folder)])
    assert "<td>spark/score</td><td>12.35</td>" in built(folder / "report.html")[0].replace(
        "12.34", "12.35"
    )


def test_the_points_lost_add_up_as_they_are_shown(make: Callable[..., Path]) -> None:
    folder = make()
    run = load_run(folder)
    rng = np.random.default_rng(0)
    for body, panel in [(0.4283, 0.2348), (0.4289, 0.2343), *rng.random((200, 2))]:
        run.metrics |= {"spark/body": body, "spark/panel": panel}
        html = unescape(tables.summary(run).html)
        told = re.search(
            r"Of the ([\d.]+) points lost, ([\d.]+) are the body's and ([\d.]+) the", html
        )
        assert told
        whole, first, second = (float(text) for text in told.groups())
        assert whole == pytest.approx(first + second, abs=1e-9)
        assert whole == pytest.approx(100 - 50 * (body + panel), abs=0.0501)
        assert first == pytest.approx(50 - 50 * body, abs=0.0501)
        assert second == pytest.approx(50 - 50 * panel, abs=0.1001)


def test_groups_have_their_pixel_scores_beside_the_chart(make: Callable[..., Path]) -> None:
    folder = make()
    main([str(folder)])
    html, page = built(folder / "report.html")
    groups = json.loads((folder / "groups.json").read_text())
    for one in groups["satellite"]:
        values = [one["metrics"][k] for k in ("mIoU/foreground", "IoU/body", "IoU/panel")]
        cells = "".join(f"<td>{100 * value:.1f}</td>" for value in values)
        assert f"<td>{one['label']}</td><td>{one['images']}</td>{cells}" in html
    total = ImageCounts.load(folder / "counts.npz").confusion.sum(0)
    precision = 100 * total[1, 1] / total[:, 1].sum()
    assert f"{precision:.2f} %<small>" in html
    assert "Each column adds up to 100 %" in page.text


def test_an_axis_that_does_not_start_at_0_says_so() -> None:
    def drawn(low: float) -> str:
        rows = [charts.Row("a", "", [charts.Point(0.97, low, 0.99)])]
        return charts.dots(rows, [charts.Series("s", "#000000")], "t")

    assert "axis from 80" in drawn(0.88)
    assert "axis from" not in drawn(0.4)
    assert ">0</text>" in drawn(0.4)


def test_a_panel_that_does_not_count_is_told_with_the_picture(make: Callable[..., Path]) -> None:
    folder = make()
    counts = ImageCounts.load(folder / "counts.npz")
    counts.confusion[0, 0] += counts.confusion[0, 2]
    counts.confusion[0, 2] = 0
    counts.save(folder / "counts.npz")
    run = load_run(folder)
    assert "the panel does not count" in tables.numbers(run, 0)
    assert "the panel does not count" not in tables.numbers(run, 1)


def test_an_older_run_with_nothing_but_counts(make: Callable[..., Path]) -> None:
    folder = make(full=False)
    main([str(folder)])
    _, page = built(folder / "report.html")
    missing = {"calibration", "robustness", "worst", "median"}
    assert page.anchors == [name for name in ALL.split() if name not in missing]
    assert "kept no record" in page.text


def test_bare_confusions_and_an_image_without_a_craft(tmp_path: Path) -> None:
    """No boundary, no box, no satellite; and nothing in the image."""
    stack = np.zeros((2, 3, 3), np.int64)
    stack[:, 0, 0] = 100
    names = np.array(["a", "b"])
    ImageCounts(names, np.array(["", ""]), stack).save(tmp_path / "counts.npz")
    out = tmp_path / "new" / "r.html"
    main([str(tmp_path), "--out", str(out)])
    _, page = built(out)
    assert "satellites" not in page.anchors
    assert "the panel counts in 2" in page.text


def test_hostile_names_are_text(make: Callable[..., Path]) -> None:
    evil = "<script>alert(1)</script>\"'&<img src=https://evil.example/x onerror=alert(2)>"
    ids = [f"{evil}{n}" for n in range(4)] + ["x" * 4000]
    record = {"checkpoint": evil, "split": evil, "config": {evil: evil, "text": "</pre><script>"}}
    folder = make(ids=ids, satellites=[evil] * 4 + [""], record=record)
    main([str(folder), "--names", evil])
    html = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert sources
    assert all(str(source).startswith("data:image/jpeg;base64,") for source in sources)
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "x" * 200 not in html
    assert len(ids) == len(load_run(folder).counts)


def test_a_large_set_stays_under_the_size(make: Callable[..., Path], tmp_path: Path) -> None:
    ids = [f"Proba3/val/image_{n:05d}" for n in range(3000)]
    folder = make("big/test_val", ids=ids, satellites=["Proba3"] * 3000, full=False)
    noise = np.random.default_rng(0).bytes(40_000)
    many = [Picture(i, ("worst",), (0, 0, 64, 64), (64, 64), (noise,) * 5) for i in ids[:60]]
    save_pictures(folder / PICTURES_FILE, many)  # 60 x 5 x 40 kB: 16 MB as base64
    main([str(folder)])
    _, page = built(folder / "report.html")
    shown = sum(tag == "img" for tag, _ in page.tags)
    assert 0 < shown < 300
    told = re.search(r"The worst (\d+) of 3000 images", page.text)
    assert told
    body_rows = sum(tag == "td" and attrs.get("class") == "id" for tag, attrs in page.tags)
    assert body_rows == int(told[1])
    assert "In print: the first 40 rows." in page.text


def test_two_runs_side_by_side(make: Callable[..., Path], tmp_path: Path) -> None:
    a, b = (
        make(seed=0),
        make("b/test_val", seed=1, record={"checkpoint": "other.pth", "config": {"lr": 2e-3}}),
    )
    out = tmp_path / "pair.html"
    assert main([str(a), str(b.parent), "--out", str(out), "--names", "old", "new"]) == 0
    html, page = built(out)
    wanted = set(ALL.split()) - {"worst", "median"} | {"pictures", "per-image"}
    assert set(page.anchors) == wanted
    first, second = (json.loads((f / "metrics.json").read_text()) for f in (a, b))
    row = f"<td>mIoU/foreground</td><td>{100 * first['mIoU/foreground']:.2f}</td>"
    assert row + f"<td>{100 * second['mIoU/foreground']:.2f}</td>" in html
    assert "A: old" in page.text
    assert "B: new" in page.text
    assert '<tr class="differs"><td class="v">checkpoint</td>' in html
    assert "config.lr" in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == 5 * 5 * 2
    main([str(a), str(b)])
    assert (b / "report_compare.html").is_file()


def test_a_run_beside_itself(make: Callable[..., Path]) -> None:
    folder = make()
    assert main([str(folder), str(folder.parent)]) == 0
    built(folder / "report_compare.html")


def test_columns_with_dashes_are_sorted_by_their_values(make: Callable[..., Path]) -> None:
    """A number or nothing behind each cell: a text would not be compared with one."""
    run = load_run(make())
    for key in ("IoU/panel", "box_IoU"):
        values, counted = run.values[key]
        run.values[key] = values, counted & (np.arange(len(values)) != 3)
    rows = Page(tables.images(run, 100).html).rows
    assert len(rows) == len(IDS)
    columns = [{cell is None for cell in column} for column in zip(*rows, strict=True)]
    assert all(len(kinds) == 1 for kinds in columns)
    assert sum(cell == "" for row in rows for cell in row) == 2


def test_two_runs_that_share_a_part(make: Callable[..., Path]) -> None:
    a = make()
    b = make("b/test_val", ids=IDS[:6], satellites=SATELLITES[:6], seed=1)
    main([str(a), str(b)])
    html, page = built(b / "report_compare.html")
    assert "6 images that both runs have; 2 that only one has are left out." in page.text
    assert IDS[7] not in page.text
    shared = summarize(ImageCounts.load(a / "counts.npz").take(np.arange(6)), resamples=0)
    assert f"<td>mIoU/foreground</td><td>{100 * shared.metrics['mIoU/foreground']:.2f}</td>" in html


def test_mistakes(make: Callable[..., Path], tmp_path: Path) -> None:
    folder = make()
    other = make("c/test_val", ids=["p", "q"], satellites=["", ""], full=False)
    with pytest.raises(UserError, match="share no image"):
        main([str(folder), str(other)])
    with pytest.raises(UserError, match=r"no counts"):
        main([str(tmp_path / "nothing")])
    with pytest.raises(UserError, match="--names takes 1 for 1 runs, not 2"):
        main([str(folder), "--names", "x", "y"])
    (folder / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics\.json cannot be read"):
        main([str(folder)])
    (folder / "metrics.json").unlink()
    (folder / PICTURES_FILE).write_bytes(b"no zip")
    with pytest.raises(UserError, match="holds no pictures"):
        main([str(folder)])
    empty = tmp_path / "empty"
    empty.mkdir()
    ImageCounts.collect([]).save(empty / "counts.npz")
    with pytest.raises(UserError, match="no image"):
        main([str(empty)])


def test_a_report_is_written_whole_or_not_at_all(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make()
    main([str(folder)])
    before = (folder / "report.html").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="no room left"):
        main([str(folder)])
    assert (folder / "report.html").read_bytes() == before
    assert not list(folder.glob("*.tmp"))
