"""The cache where things go wrong: a full disk, killed builds, several builders, files that cannot be read."""

import os
import socket
from pathlib import Path

import pytest

from spark_seg.cli.cache import main as cache_main
from spark_seg.datasets.cache import cache_folder, shards_of
from spark_seg.datasets.cache_build import build_cache, make_pack
from spark_seg.datasets.layout import list_frames
from spark_seg.datasets.packs import PackWriter, remove_leftovers
from spark_seg.datasets.spark import SparkDataset
from spark_seg.datasets.transforms.loading import LoadSparkImage, LoadSparkMask
from spark_seg.errors import UserError


def plan(root):
    frames = list_frames(root, "train")
    return frames, shards_of(frames, root, cache_folder(root, None), ("labels",))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line_and_nothing_stays(spark_tree):
    """Also where the rest of a record is written by closing the file; a training goes on without a cache."""
    _, shards = plan(spark_tree)
    besides = []
    for shard in shards:
        with PackWriter(shard.path, "labels", "1") as writer:
            besides.append(writer._beside)
        shard.path.unlink()
    for beside in besides:
        beside.symlink_to("/dev/full")
    with pytest.raises(UserError, match="no room left while writing"):
        build_cache(spark_tree, shards)
    left = [path for path in (spark_tree / ".spark_cache").rglob("*.tmp") if path not in besides]
    assert not left
    for beside in besides:
        if not beside.is_symlink():
            beside.symlink_to("/dev/full")
    dataset = SparkDataset(
        str(spark_tree), "train", cache="auto", pipeline=[LoadSparkImage(), LoadSparkMask()]
    )
    assert dataset[0]["gt_seg_map"].any()


def test_what_killed_builds_left_is_removed(spark_tree):
    _, shards = plan(spark_tree)
    folder = shards[0].path.parent
    folder.mkdir(parents=True)
    host = socket.gethostname()
    dead = folder / f"{shards[0].path.name}.{host}.999999999.tmp"
    others = [
        folder / f"{shards[0].path.name}.{host}.{os.getpid()}.tmp",
        folder / f"{shards[0].path.name}.another.host.999999999.tmp",
    ]
    for path in (dead, *others):
        path.write_bytes(b"half")
    remove_leftovers(folder)
    assert not dead.exists()
    assert all(path.exists() for path in others), "they may be being written"


def test_without_what_only_linux_has(spark_tree, monkeypatch):
    """macOS has neither /proc nor a set of cores for each process."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(Path, "exists", lambda self: not str(self).startswith("/proc"))
    _, shards = plan(spark_tree)
    mine = shards[0].path.with_name(f"x.pack.{socket.gethostname()}.{os.getpid()}.tmp")
    mine.parent.mkdir(parents=True)
    mine.touch()
    assert build_cache(spark_tree, shards).made > 0
    assert mine.exists()


def test_a_pack_that_another_process_made_meanwhile_stays(spark_tree):
    """Replacing a file that others have mapped takes it away from them on a network file system."""
    _, (shard, *_) = plan(spark_tree)
    make_pack(shard, spark_tree, lambda: None)
    inode = shard.path.stat().st_ino
    make_pack(shard, spark_tree, lambda: None, needless=lambda: True)
    assert shard.path.stat().st_ino == inode
    make_pack(shard, spark_tree, lambda: None, needless=lambda: False)
    assert shard.path.stat().st_ino != inode


def test_half_size_pictures_are_for_training_alone(spark_tree):
    """What reads the train split by validation's pipeline needs none of them, and is not refused."""
    options = dict(cache="labels+half", pipeline=[LoadSparkImage()])
    dataset = SparkDataset(str(spark_tree), "train", **options)
    assert dataset[0]["img"].ndim == 3
    assert not list((spark_tree / ".spark_cache").glob("half*"))
    with pytest.raises(UserError, match="reads whole pictures"):
        dataset.require_use_of_cache()


def test_a_second_build_still_names_what_it_could_not_read(spark_tree, capsys):
    frames, _ = plan(spark_tree)
    with open(frames[1].mask, "wb") as file:
        file.write(b"\xff\xd8\xff")
    for _ in range(2):
        assert cache_main(["build", str(spark_tree)]) == 1
        assert Path(frames[1].mask).name in capsys.readouterr().out
