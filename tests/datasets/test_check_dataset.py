"""Each check of tools/check_dataset.py can fire, and a whole tree passes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from spark_seg.cli.check_dataset import main
from spark_seg.datasets import check, facts
from spark_seg.datasets.check import CHECKS, check_tree
from spark_seg.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def found(root, name: str, level: str, **options) -> list[tuple[str, str]]:
    """Where and what a check reports at a level."""
    report = check_tree(root, **options)
    assert report.ok == (not any(f.level == "error" for f in report.findings))
    return [(f.where, f.message) for f in report.findings if (f.check, f.level) == (name, level)]


def image_of(root, number: int = 1, split: str = "val") -> Path:
    return root / "images" / "Cheops" / split / f"image_{number:05d}_img.jpg"


def mask_of(root, number: int = 1, split: str = "val") -> Path:
    return root / "mask" / "Cheops" / split / f"image_{number:05d}_layer.jpg"


def test_a_whole_tree_is_fine(spark_tree):
    report = check_tree(spark_tree)
    assert report.ok
    assert {f.check for f in report.findings} <= {"counts", "sizes", "coding"}
    assert list(report.tallies) == ["train", "val", "test"]
    assert list(report.tallies["val"]) == ["VenusExpress", "Cheops", "XMM Newton"]
    tally = report.tallies["val"]["Cheops"]
    assert (tally.frames, tally.labelled, sum(tally.pixels)) == (3, 3, 3 * 64 * 64)
    assert tally.share(1) > 1
    assert tally.share(2) > 1
    assert report.tallies["test"][""].frames == 3
    assert report.mask_kinds == {"JPEG 4:2:0 q95": 18}


def test_missing_and_lone_masks(spark_tree):
    mask_of(spark_tree).unlink()
    image_of(spark_tree, 2).unlink()
    (spark_tree / "val.csv").unlink()
    shutil.copy(image_of(spark_tree, 3), image_of(spark_tree, 3).with_name("cheops.jpg"))
    errors = found(spark_tree, "pairs", "error")
    assert [where for where, _ in errors] == ["Cheops/val/image_00001"]
    assert "mask/Cheops/val/image_00001_layer.jpg" in errors[0][1]
    warnings = dict(found(spark_tree, "pairs", "warning"))
    assert "no image" in warnings["mask/Cheops/val/image_00002_layer.jpg"]
    assert "not used" in warnings["images/Cheops/val/cheops.jpg"]


def test_two_files_of_one_name(spark_tree):
    shutil.copy(mask_of(spark_tree), mask_of(spark_tree).with_suffix(".png"))
    assert "same name" in found(spark_tree, "pairs", "error")[0][1]


def test_no_test_set(spark_tree):
    shutil.rmtree(spark_tree.parent / "spark-2024-segmentation-test")
    assert found(spark_tree, "pairs", "note")[0][0] == "test"


def test_csv(spark_tree):
    path = spark_tree / "val.csv"
    rows = path.read_text().splitlines()
    path.write_text("\n".join(rows[:-1]))
    assert len(found(spark_tree, "csv", "warning")) == 1
    path.write_text("\n".join([*rows, "image_00099_img.jpg,image_00099_layer.jpg,Cheops,x"]))
    (where, message), *rest = found(spark_tree, "csv", "error")
    assert not rest
    assert where == "val.csv"
    assert "image_00099" in message


def test_unreadable_images(spark_tree):
    path = image_of(spark_tree)
    path.write_bytes(path.read_bytes()[:-200])
    image_of(spark_tree, 2).write_bytes(b"")
    image_of(spark_tree, 3).write_bytes(b"text")
    errors = found(spark_tree, "readable", "error")
    assert len(errors) == 3
    words = ("truncated", "empty", "decoded")
    assert all(word in message for word, (_, message) in zip(words, errors, strict=True))


def test_masks_that_are_none(spark_tree):
    shutil.copy(image_of(spark_tree), mask_of(spark_tree))
    data = mask_of(spark_tree, 2).read_bytes()
    mask_of(spark_tree, 2).write_bytes(data[:-100])
    errors = found(spark_tree, "colours", "error")
    assert [where[-1] for where, _ in errors] == ["1", "2"]
    assert "truncated" in errors[1][1]


def test_sizes(spark_tree):
    cv2.imwrite(str(image_of(spark_tree)), np.full((32, 48, 3), 50, np.uint8))
    (where, message), *rest = found(spark_tree, "sizes", "error")
    assert not rest
    assert where == "Cheops/val/image_00001"
    assert "48x32" in message
    assert "64x64" in message
    notes = found(spark_tree, "sizes", "note")
    assert ("val", "8 images have 64x64 pixels") in notes


def test_modes(spark_tree):
    cv2.imwrite(str(image_of(spark_tree)), np.full((64, 64), 50, np.uint8))
    picture = np.random.default_rng(0).integers(0, 50, (64, 64, 3), dtype=np.uint8)
    image_of(spark_tree, 2).write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    assert "1 channels" in found(spark_tree, "modes", "warning")[0][1]
    assert "1 images are stored as PNG" in found(spark_tree, "modes", "note")[0][1]


def test_empty_masks(spark_tree):
    cv2.imwrite(str(mask_of(spark_tree)), np.zeros((64, 64, 3), np.uint8))
    assert found(spark_tree, "empty", "warning") == [
        ("Cheops/val/image_00001", "the mask shows no craft")
    ]
    assert check_tree(spark_tree).tallies["val"]["Cheops"].empty == 1


def test_masks_without_panel_are_counted(spark_tree):
    red = np.zeros((64, 64, 3), np.uint8)
    red[20:40, 20:40] = (0, 0, 254)
    cv2.imwrite(str(mask_of(spark_tree)), red)
    assert check_tree(spark_tree).tallies["val"]["Cheops"].without_panel == 1


def test_duplicates_within_and_between_splits(spark_tree):
    shutil.copy(image_of(spark_tree, 1), image_of(spark_tree, 2))
    shutil.copy(image_of(spark_tree, 3, "train"), image_of(spark_tree, 3, "val"))
    assert found(spark_tree, "duplicates", "warning") == [
        ("Cheops/val/image_00002", "the same file as Cheops/val/image_00001"),
        ("Cheops/val/image_00003", "the same file as Cheops/train/image_00003"),
    ]


def test_counts_against_the_facts(spark_tree, monkeypatch):
    (spark_tree / "images" / "Zarya" / "val").mkdir(parents=True)
    (spark_tree / "mask" / "Zarya" / "val").mkdir(parents=True)
    shutil.copy(image_of(spark_tree), spark_tree / "images/Zarya/val/image_00001_img.jpg")
    shutil.copy(mask_of(spark_tree), spark_tree / "mask/Zarya/val/image_00001_layer.jpg")
    monkeypatch.setattr(facts, "FRAMES", {"train": 3, "val": 4})
    warnings = dict(found(spark_tree, "counts", "warning"))
    assert "Cheops/train" not in warnings
    assert "3 frames, SPARK 2024 has 4" in warnings["Cheops/val"]
    assert "0 frames" in warnings["Soho/val"]
    assert found(spark_tree, "counts", "note")[0][0] == "Zarya/val"


def test_shares_against_the_facts(spark_tree, monkeypatch):
    monkeypatch.setattr(check, "SHARE_FRAMES", 3)
    tally = check_tree(spark_tree).tallies["val"]["Cheops"]
    monkeypatch.setattr(facts, "SHARES", {"Cheops": (tally.share(1) * 1.1, tally.share(2) * 1.5)})
    found_in_val = [f for f in found(spark_tree, "shares", "warning") if f[0] == "Cheops/val"]
    assert len(found_in_val) == 1
    assert "are panel" in found_in_val[0][1]


def test_coding_of_the_masks(spark_tree):
    picture = cv2.imread(str(mask_of(spark_tree)))
    options = [cv2.IMWRITE_JPEG_QUALITY, 80, cv2.IMWRITE_JPEG_SAMPLING_FACTOR]
    cv2.imwrite(str(mask_of(spark_tree)), picture, [*options, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444])
    index = np.zeros((64, 64), np.uint8)
    index[20:30] = 1
    mask_of(spark_tree, 2).write_bytes(cv2.imencode(".png", index)[1].tobytes())
    messages = [message for _, message in found(spark_tree, "coding", "note")]
    assert messages[0] == "16 masks are JPEG 4:2:0 q95"
    assert set(messages[1:]) == {"1 masks are JPEG 4:4:4 q80", "1 masks are PNG"}


def test_every_check_has_a_test_above():
    source = Path(__file__).read_text()
    assert all(f'"{name}"' in source for name in CHECKS)


# -------------------------------------------------------------- the command


def test_exit_code_json_and_table(spark_tree, tmp_path, capsys):
    target = tmp_path / "new" / "report.json"
    assert main([str(spark_tree), "--workers", "0", "--json", str(target)]) == 0
    text = capsys.readouterr().out
    assert f"[{len(CHECKS)}/{len(CHECKS)}]" in text
    assert "XMM Newton" in text
    assert text.splitlines()[-1] == "no errors"
    data = json.loads(target.read_text())
    assert data["ok"] is True
    assert data["splits"]["val"]["XMM Newton"]["frames"] == 3
    assert data["splits"]["val"]["XMM Newton"]["panel"] > 1

    image_of(spark_tree).write_bytes(b"")
    assert main([str(spark_tree), "--workers", "0", "--json", str(target)]) == 1
    assert "1 errors" in capsys.readouterr().out
    data = json.loads(target.read_text())
    assert data["ok"] is False
    assert any(f["where"] == "Cheops/val/image_00001" for f in data["findings"])


def test_splits_and_limit(spark_tree, capsys):
    image_of(spark_tree, 1, "train").write_bytes(b"")
    assert main([str(spark_tree), "--workers", "0", "--splits", "val"]) == 0
    assert "train" not in capsys.readouterr().out.split("split ")[1]
    assert main([str(spark_tree), "--workers", "0", "--splits", "val", "test", "--limit", "2"]) == 0
    text = capsys.readouterr().out
    assert "part of the frames" in text
    assert "not compared with --limit" in text
    assert check_tree(spark_tree, ["val"], limit=3).tallies["val"].keys() == {
        "VenusExpress",
        "Cheops",
        "XMM Newton",
    }
    with pytest.raises(UserError, match="did you mean 'val'"):
        main([str(spark_tree), "--splits", "vla"])
    with pytest.raises(UserError, match="--limit 0"):
        main([str(spark_tree), "--limit", "0"])


def test_the_tool_with_workers(spark_tree):
    """As a user calls it; processes give the same as none."""
    image_of(spark_tree).write_bytes(b"")
    command = [sys.executable, str(ROOT / "tools" / "check_dataset.py")]
    environment = {**os.environ, "SPARK_DATA_ROOT": str(spark_tree.parent)}
    done = {
        n: subprocess.run(
            [*command, "--workers", n], env=environment, capture_output=True, text=True, check=False
        )
        for n in ("0", "2")
    }
    assert done["0"].returncode == done["2"].returncode == 1
    assert done["0"].stdout == done["2"].stdout
    assert "image_00001_img.jpg: the file is empty" in done["2"].stdout
    assert "check: 21/21 frames" in done["2"].stderr


def test_a_missing_tree_is_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "check_dataset.py"), str(tmp_path / "gone")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "gone" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_real_samples(spark_samples):
    report = check_tree(spark_samples)
    assert report.ok
    assert report.tallies["val"]["XMM Newton"].frames == 3
    assert report.tallies["test"][""].frames == 20
