"""`benchmark.py data`: rows of one form, over a small tree."""

import json
from argparse import Namespace
from pathlib import Path

import cv2
import numpy as np
import pytest

from spark_seg.benchmark.data import _rendered, encode_anew
from spark_seg.cli.benchmark import main
from spark_seg.errors import UserError


def test_rows_and_table(spark_tree, tmp_path, capsys):
    path = tmp_path / "rows.json"
    options = ["--data-root", str(spark_tree), "--sizes", "32", "--frames", "3", "--batch", "2"]
    assert main(["data", *options, "--repeat", "2", "--profile", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())
    ways = {"stock", "stock, cat_max_ratio=1", "ours, no cache", "ours, labels cached"}
    ways |= {"ours, half-size JPEG", "ours, half-size raw"}
    assert {row["impl"] for row in rows} == ways
    assert {row["case"] for row in rows} == {"train_batch", "train_batch_uint8"}
    for row in rows:
        assert row["size"] == 32
        assert 0 < row["low_ms"] <= row["median_ms"] <= row["high_ms"]
        assert row["images_per_s"] == pytest.approx(1000 / row["median_ms"])
        if row["impl"] == "stock":
            assert row["ratio_to_stock"] == 1
    printed = capsys.readouterr().out
    assert "| ours, half-size raw | RandomWarp |" in printed
    assert "| stock | RandomCrop |" in printed
    assert not (spark_tree / ".spark_cache").exists()  # the user's tree stays as it is


def test_frames_of_a_wanted_size(tmp_path):
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{k}.jpg" for k in range(2)]
    for file in files:
        noise = cv2.GaussianBlur(rng.integers(0, 255, (128, 128, 3), np.uint8), (0, 0), 1)
        cv2.imwrite(str(file), noise, [cv2.IMWRITE_JPEG_QUALITY, 98])
    quality = encode_anew(files, 6.0)
    assert 30 < quality < 98
    assert sum(file.stat().st_size for file in files) / 2000 == pytest.approx(6.0, rel=0.1)


def test_all_sizes_take_the_same_frames(tmp_path):
    args = Namespace(frames=1, jpeg_kb=100.0, pictures=None)
    data = Path(_rendered(tmp_path, args))
    (frame,) = data.glob("images/*/train/*.jpg")
    written = frame.read_bytes()
    assert len(written) == pytest.approx(100e3, rel=0.15)
    assert _rendered(tmp_path, args) == str(data)
    assert frame.read_bytes() == written


def test_pictures_take_the_rendered_ones_place(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    args = Namespace(frames=2, jpeg_kb=None, pictures=str(folder))
    with pytest.raises(UserError, match=r"no \.jpg in it"):
        _rendered(tmp_path, args)
    cv2.imwrite(str(folder / "a.jpg"), np.full((1024, 1024, 3), 77, np.uint8))
    data = Path(_rendered(tmp_path, args))
    frames = list(data.glob("images/*/train/*.jpg"))
    assert [frame.read_bytes() for frame in frames] == [(folder / "a.jpg").read_bytes()] * 2
    cv2.imwrite(str(folder / "b.jpg"), np.full((512, 1024, 3), 77, np.uint8))
    with pytest.raises(UserError, match=r"b\.jpg is no JPEG of 1024 x 1024"):
        _rendered(tmp_path / "other", args)


def test_options_that_make_no_sense():
    with pytest.raises(UserError, match="leave --split out"):
        main(["data", "--pictures", "somewhere", "--split", "val"])
    with pytest.raises(UserError, match="--pictures: leave --jpeg-kb and --data-root out"):
        main(["data", "--jpeg-kb", "100", "--pictures", "somewhere"])
    with pytest.raises(UserError, match="--jpeg-kb is for rendered frames"):
        main(["data", "--jpeg-kb", "100", "--data-root", "somewhere"])
    with pytest.raises(UserError, match="--sizes 32 or more"):
        main(["data", "--sizes", "8"])
