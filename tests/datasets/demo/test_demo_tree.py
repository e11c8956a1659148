"""The demo data set on disk: layout, names, boxes, determinism, what it refuses."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from spark_seg.datasets.demo import ensure_demo_data, make_demo_data
from spark_seg.datasets.demo.render import box_of, render
from spark_seg.datasets.layout import SATELLITES, list_frames, list_test_images
from spark_seg.errors import UserError
from spark_seg.evaluation.groups import read_backgrounds
from spark_seg.labels import decode_mask, read_mask

SIZE = 160


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "spark"
    made = make_demo_data(root, 23, SIZE, seed=5, val=11, test=3, workers=1)
    assert made["rendered"]
    return root


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def sampling(data: bytes) -> list[int]:
    """Sampling factors of a baseline JPEG's components, from its frame header."""
    at = 2
    while data[at + 1] not in (0xC0, 0xC1, 0xC2):
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return [data[at + 11 + 3 * i] for i in range(data[at + 9])]


def test_the_package_reads_the_tree(tree: Path) -> None:
    train, val = list_frames(tree, "train"), list_frames(tree, "val")
    assert (len(train), len(val)) == (23, 11)
    assert {frame.satellite for frame in train} == set(SATELLITES)
    assert [f.id for f in list_test_images(tree, None)] == [
        "test_00000",
        "test_00001",
        "test_00002",
    ]


def test_names_restart_in_every_satellites_folder(tree: Path) -> None:
    for name in SATELLITES:
        assert (tree / "images" / name / "train" / "image_00001_img.jpg").is_file()
        assert (tree / "mask" / name / "val" / "image_00001_layer.jpg").is_file()
    files = sorted(p.name for p in (tree / "stream-1-test").iterdir())
    assert files == [f"test_{i:05d}_img.jpg" for i in range(3)]
    truth = sorted(p.name for p in (tree / "stream-1-test-truth").iterdir())
    assert truth == [f"test_{i:05d}_layer.png" for i in range(3)]


@pytest.mark.parametrize(("split", "count"), [("train", 23), ("val", 11)])
def test_csv_boxes_are_the_masks_extents(tree: Path, split: str, count: int) -> None:
    rows = rows_of(tree / f"{split}.csv")
    assert len(rows) == count
    assert list(rows[0]) == ["Image name", "Mask name", "Class", "Bounding box"]
    for row in rows:
        folder = tree / "mask" / row["Class"] / split
        assert (tree / "images" / row["Class"] / split / row["Image name"]).is_file()
        box = row["Bounding box"]
        assert box.startswith("(")
        assert box.endswith(")")
        given = [int(v) for v in box.strip("()").split(", ")]
        found = box_of(read_mask(folder / row["Mask name"]))
        assert found is not None
        # The mask went through JPEG: a lone pixel of its rim may be lost.
        assert np.abs(np.subtract(given, found)).max() <= 1, (row, found)


def test_evaluation_finds_the_background_of_every_image(tree: Path) -> None:
    found = read_backgrounds(tree)
    frames = [*list_frames(tree, "train"), *list_frames(tree, "val"), *list_test_images(tree, None)]
    assert set(found) == {frame.id for frame in frames}
    assert len(rows_of(tree / "backgrounds.csv")) == len(found) == 23 + 11 + 3
    for split in ("train", "val", "test"):
        index = 2
        frame = render(5, split, index, SIZE)
        name = f"test_{index:05d}" if split == "test" else f"{frame.satellite}/{split}/image_00001"
        assert found[name] == frame.background
    assert set(found.values()) == {"stars", "limb", "earth"}


def test_files_are_what_the_real_ones_are(tree: Path) -> None:
    for frame in list_frames(tree, "val"):
        for path in (frame.image, frame.mask):
            assert path is not None
            data = Path(path).read_bytes()
            assert sampling(data) == [0x22, 0x11, 0x11], "4:2:0"
            decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            assert decoded.shape == (SIZE, SIZE, 3)
    truth = cv2.imread(str(tree / "stream-1-test-truth" / "test_00001_layer.png"))
    colours = {tuple(c) for c in truth.reshape(-1, 3).tolist()}
    assert colours <= {(0, 0, 0), (0, 0, 255), (255, 0, 0)}
    assert len(colours) >= 2
    assert decode_mask(truth, "truth").any()


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_the_number_of_workers_changes_no_byte(tree: Path, tmp_path: Path) -> None:
    make_demo_data(tmp_path / "again", 23, SIZE, seed=5, val=11, test=3, workers=2)
    assert contents(tmp_path / "again") == contents(tree)


def test_more_frames_keep_the_first_ones_and_seeds_differ(tree: Path, tmp_path: Path) -> None:
    make_demo_data(tmp_path / "more", 14, SIZE, seed=5, val=0, test=1, workers=1)
    make_demo_data(tmp_path / "seed", 1, SIZE, seed=6, val=0, test=0, workers=1)
    name = f"images/{SATELLITES[0]}/train/image_00001_img.jpg"
    assert (tmp_path / "more" / name).read_bytes() == (tree / name).read_bytes()
    assert (tmp_path / "seed" / name).read_bytes() != (tree / name).read_bytes()


def test_the_same_tree_is_made_once(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "demo"
    first = ensure_demo_data(root, 3, 64, val=1, test=1, workers=1)
    stamp = (root / "train.csv").stat().st_mtime_ns
    second = ensure_demo_data(root, 3, 64, val=1, test=1, workers=1)
    assert (first["rendered"], second["rendered"]) == (True, False)
    assert (root / "train.csv").stat().st_mtime_ns == stamp
    other = ensure_demo_data(root, 4, 64, val=1, test=1, workers=1)
    assert other["rendered"]
    assert len(rows_of(root / "train.csv")) == 4
    assert [p.name for p in root.parent.iterdir()] == ["demo"], "nothing is left beside the tree"


def test_frames_that_were_named_are_not_rendered_over(tmp_path: Path) -> None:
    """A config's demo data over a tree that was rendered for something, as `--domain hard` is."""
    from spark_seg.cli.common import render_demo_data
    from spark_seg.config import load_config

    root, few = tmp_path / "hard", dict(images=1, size=64, val=1, test=1, workers=1)
    make_demo_data(root, **few, domain="hard")
    before = (root / "demo.json").read_bytes()
    cfg = load_config("segformer_b0_spark_demo", {"data_root": str(root)})
    cfg.demo_data = few
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    named = {"data_root": str(root)}
    for path, options in ((Path("segformer_b0_spark_demo.py"), named), (run / "config.py", {})):
        with pytest.raises(
            UserError, match=r"holds other demo frames .*domain hard.*demo_data=None"
        ):
            render_demo_data(cfg, path, options)
    assert (root / "demo.json").read_bytes() == before
    render_demo_data(cfg, Path("config.py"), {})  # a config of one's own, whatever its name
    made = json.loads((root / "demo.json").read_text())
    assert "domain" not in made
    (root / "demo.json").write_text(json.dumps({**made, "version": made["version"] - 1}))
    assert ensure_demo_data(root, **few, replace=False)["rendered"]


def test_who_waited_for_other_frames_leaves_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that name one new folder and ask for different frames: the second finds the first's when it may begin."""
    from spark_seg.datasets.demo import tree

    root, few = tmp_path / "both", dict(size=64, val=1, test=1, workers=1)
    beside = tree._beside

    @contextmanager
    def waited(path: Path) -> Iterator[Path]:
        monkeypatch.setattr(tree, "_beside", beside)
        make_demo_data(root, 1, **few)
        with beside(path) as partial:
            yield partial

    monkeypatch.setattr(tree, "_beside", waited)
    with pytest.raises(UserError, match="holds other demo frames"):
        ensure_demo_data(root, 2, **few, replace=False)
    assert len(rows_of(root / "train.csv")) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["both"]


def test_two_that_ask_at_once_render_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ensure_demo_data, tmp_path / "d", 4, 64, workers=1) for _ in range(2)]
        made = [future.result() for future in asked]
    assert sorted(m["rendered"] for m in made) == [False, True]
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_folder_in_the_way_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / ".d.partial").mkdir()
    (tmp_path / ".d.partial" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="in the way"):
        make_demo_data(tmp_path / "d", 1, 64, workers=1)
    assert (tmp_path / ".d.partial" / "thesis.txt").read_text() == "years of work"


def test_a_tree_of_another_renderer_is_made_anew(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    ensure_demo_data(root, 1, 64, val=0, test=0, workers=1)
    manifest = json.loads((root / "demo.json").read_text())
    (root / "demo.json").write_text(json.dumps({**manifest, "version": manifest["version"] - 1}))
    assert ensure_demo_data(root, 1, 64, val=0, test=0, workers=1)["rendered"]


@pytest.mark.parametrize("make", [make_demo_data, ensure_demo_data])
def test_a_foreign_folder_is_never_touched(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root = tmp_path / "mine"
    root.mkdir()
    (root / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"mine holds files that were not made"):
        make(root, 1, 64)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        make(tmp_path / "file", 1, 64)
    assert (root / "thesis.txt").read_text() == "years of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "mine"]


def test_numbers_that_make_no_sense(tmp_path: Path) -> None:
    for wrong in ({"images": 0}, {"size": 8}, {"seed": -1}, {"val": -1}, {"workers": 0}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} must be"):
            make_demo_data(tmp_path / "d", **{"images": 1, **wrong})  # type: ignore[arg-type]
    assert not (tmp_path / "d").exists()


def test_a_failure_leaves_no_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def full(self: Path, data: bytes) -> int:
        calls.append(self)
        if len(calls) > 3:
            raise OSError(28, "No space left on device", str(self))
        with self.open("wb") as file:
            return file.write(data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="no room left"):
        make_demo_data(tmp_path / "demo", 3, 64, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_killed_half_way_then_made_again(tmp_path: Path) -> None:
    code = (
        "import sys; from spark_seg.datasets.demo import make_demo_data;"
        "make_demo_data(sys.argv[1], 4000, 64, workers=1)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "demo")], env=env)
    partial = tmp_path / ".demo.partial"
    try:
        deadline = time.monotonic() + 60
        while not list(partial.glob("tree/images/*/train/*.jpg")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "demo").exists()
    ensure_demo_data(tmp_path / "demo", 2, 64, val=1, test=1, workers=1)
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]
    assert len(list((tmp_path / "demo" / "images").rglob("*.jpg"))) == 3


def test_command_line(tmp_path: Path) -> None:
    tool = Path(__file__).resolve().parents[3] / "tools" / "make_demo_data.py"
    options = ["--images", "2", "--val", "1", "--test", "1", "--size", "64", "--workers", "1"]
    command = [sys.executable, str(tool), "--out", str(tmp_path / "d"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "2 train, 1 val, 1 test frames of 64 px" in done.stdout
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "already there" in again.stdout
    wrong = subprocess.run([*command, "--size", "7"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert len(wrong.stderr.strip().splitlines()) == 1


def test_training_frames_may_be_smaller(tmp_path: Path) -> None:
    made = make_demo_data(
        tmp_path / "a", images=2, size=96, val=1, test=1, train_size=48, workers=1
    )
    assert made["train_size"] == 48
    sizes = {
        split: {cv2.imread(f.image).shape[:2] for f in list_frames(tmp_path / "a", split)}
        for split in ("train", "val")
    }
    assert sizes == {"train": {(48, 48)}, "val": {(96, 96)}}
    # another size of the training frames is another tree, none of its own the tree of before
    again = ensure_demo_data(tmp_path / "a", images=2, size=96, val=1, test=1, train_size=48)
    assert not again["rendered"]
    whole = ensure_demo_data(tmp_path / "a", images=2, size=96, val=1, test=1, workers=1)
    assert whole["rendered"]
    assert "train_size" not in whole
