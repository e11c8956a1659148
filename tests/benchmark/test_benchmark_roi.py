"""tools/benchmark.py infer --roi: boxes as large as SPARK's, both ways make a zip."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from spark_seg.benchmark.roi import box_areas, known_boxes
from spark_seg.cli.benchmark import main
from spark_seg.errors import UserError


def test_areas_are_those_of_the_facts() -> None:
    areas = box_areas(4000)
    assert np.median(areas) == pytest.approx(0.09, abs=1e-4)
    assert areas.mean() == pytest.approx(0.11, abs=0.003)
    assert np.quantile(areas, 0.05) == pytest.approx(0.03, abs=1e-3)
    assert areas.min() >= 0.0029
    assert areas.max() <= 0.755


def test_boxes_cover_what_they_should() -> None:
    ids = [f"test_{k:05d}" for k in range(200)]
    sizes = [(1024, 1024) if k % 2 else (600, 800) for k in range(200)]
    boxes = known_boxes(ids, sizes)
    assert boxes == known_boxes(ids, sizes)
    found = []
    for name, (height, width) in zip(ids, sizes, strict=True):
        x0, y0, x1, y1 = boxes[name]
        assert 0 <= x0 < x1 <= width + 1e-6
        assert 0 <= y0 < y1 <= height + 1e-6
        found.append((x1 - x0) * (y1 - y0) / (height * width))
    assert np.allclose(np.sort(found), box_areas(200))


@pytest.mark.slow
def test_rows(tmp_path: Path) -> None:
    target = tmp_path / "roi.json"
    folder = tiny.make_tree(tmp_path / "tree", train=1, val=1, test=3, size=64) / "stream-1-test"
    options = [
        "--variants",
        "b0",
        "--sizes",
        "64",
        "--images",
        "3",
        "--repeat",
        "1",
        "--roi",
        "known",
    ]
    more = ["--images-dir", str(folder), "--workers", "0", "--json", str(target)]
    assert main(["infer", *options, *more]) == 0
    whole, two = json.loads(target.read_text())
    assert (whole["impl"], two["impl"]) == ("whole frames at 1024", "two passes, boxes known")
    assert {row["case"] for row in (whole, two)} == {"roi_fp32"}
    assert two["ratio_to_stock"] == pytest.approx(whole["median_ms"] / two["median_ms"])
    assert two["ratio_to_stock"] > 2, "frames are enlarged to 1024, crops are of 64"


def test_finding_wants_weights() -> None:
    with pytest.raises(UserError, match="random weights find no craft"):
        main(["infer", "--roi", "found"])
