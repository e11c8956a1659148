"""Copies of a data tree on node-local storage."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from spark_seg.datasets.layout import find_root, list_frames
from spark_seg.engine import staging
from spark_seg.engine.staging import MANIFEST, stage, stage_data
from spark_seg.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and not p.name.startswith(".")
    }


def test_a_whole_copy(spark_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (spark_tree / "images" / "Cheops" / "train" / "._image_00001_img.jpg").write_bytes(b"macOS")
    root = Path(stage_data(str(spark_tree.parent), tmp_path / "local"))  # found one level down
    assert content(root) == content(spark_tree)
    assert f"staged {spark_tree} as {root}" in capsys.readouterr().out
    assert not list(root.rglob("._*"))
    here, there = list_frames(find_root(str(root)), "train"), list_frames(spark_tree, "train")
    assert [frame.id for frame in here] == [frame.id for frame in there]
    times = [[os.stat(frame.image).st_mtime_ns for frame in frames] for frames in (here, there)]
    assert times[0] == times[1], "a cache beside the source knows its files by size and time"
    left = {p.name for p in (tmp_path / "local").iterdir()}
    assert left == {root.name, f".{root.name}.lock"}


def test_the_same_again_is_not_copied(spark_tree: Path, tmp_path: Path) -> None:
    first = stage(spark_tree, tmp_path / "local")
    before = {p: p.stat().st_mtime_ns for p in first.root.rglob("*")}
    second = stage(spark_tree, tmp_path / "local")
    assert (first.copied, second.copied) == (True, False)
    assert second.root == first.root
    assert {p: p.stat().st_mtime_ns for p in second.root.rglob("*")} == before


def test_a_changed_source_gets_a_copy_of_its_own(spark_tree: Path, tmp_path: Path) -> None:
    """Another run may be reading the former one."""
    first = stage(spark_tree, tmp_path / "local")
    (spark_tree / "train.csv").write_text("Image name\n")
    second = stage(spark_tree, tmp_path / "local")
    assert second.root != first.root
    assert second.copied
    assert content(second.root) == content(spark_tree)


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest"])
def test_a_damaged_copy_is_made_anew(spark_tree: Path, tmp_path: Path, damage: str) -> None:
    """A scratch folder's cleaner takes single files."""
    first = stage(spark_tree, tmp_path / "local")
    victim = first.root / (MANIFEST if damage == "manifest" else "train.csv")
    if damage == "truncate":
        victim.write_bytes(b"")
    else:
        victim.unlink()
    second = stage(spark_tree, tmp_path / "local")
    assert second.copied
    assert second.root == first.root
    assert content(second.root) == content(spark_tree)


def test_what_a_killed_process_left_is_no_copy(spark_tree: Path, tmp_path: Path) -> None:
    first = stage(spark_tree, tmp_path / "local")
    partial = first.root.with_name(f".{first.root.name}.partial")
    os.rename(first.root, partial)
    (partial / MANIFEST).unlink()
    (partial / "stray").write_text("x")
    second = stage(spark_tree, tmp_path / "local")
    assert second.copied
    assert content(second.root) == content(spark_tree)
    assert not partial.exists()


def test_processes_at_once_copy_once(spark_tree: Path, tmp_path: Path) -> None:
    """Four processes, as two jobs of one node with two tasks each: one copies, all find the same."""
    code = (
        "import sys, json; from spark_seg.engine.staging import stage; "
        "s = stage(sys.argv[1], sys.argv[2]); print(json.dumps([str(s.root), s.copied]))"
    )
    command = [sys.executable, "-c", code, str(spark_tree), str(tmp_path / "local")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    results = [json.loads(process.communicate(timeout=120)[0]) for process in started]
    assert len({root for root, _ in results}) == 1
    assert sum(copied for _, copied in results) == 1
    assert content(Path(results[0][0])) == content(spark_tree)


def test_space_is_looked_at_before(
    spark_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(UserError, match=r"staging needs .* GB free.*train without staging") as e:
        stage(spark_tree, tmp_path / "local")
    assert "\n" not in str(e.value)
    assert not content(tmp_path / "local")


def test_a_failed_copy_leaves_nothing(
    spark_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(staging.shutil, "copyfile", full)
    with pytest.raises(UserError, match="no room left"):
        stage(spark_tree, tmp_path / "local")
    assert [p.name for p in (tmp_path / "local").iterdir() if not p.name.endswith(".lock")] == []


def test_senseless_places(spark_tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lies inside"):
        stage(spark_tree, spark_tree / "copy")
    with pytest.raises(UserError, match="no folder"):
        stage(tmp_path / "gone", tmp_path / "local")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no files"):
        stage(tmp_path / "empty", tmp_path / "local")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        stage(spark_tree, tmp_path / "file" / "local")


def test_a_configs_datasets_read_the_copy(
    spark_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the tree came from SPARK_DATA_ROOT; the recorded config names the source."""
    from spark_seg.config import load_config, unresolved_text

    monkeypatch.setenv("SPARK_DATA_ROOT", str(spark_tree))
    cfg = load_config("segformer_b0_spark")
    staging.use_staged(cfg, tmp_path / "local")
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        assert loader.dataset.data_root == cfg.data_root
    assert content(Path(cfg.data_root)) == content(spark_tree)
    assert "local" not in unresolved_text(cfg)
