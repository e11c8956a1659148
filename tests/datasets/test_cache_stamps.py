"""Files that were touched and hold the same: compared once, at a training's start, instead of for every sample."""

import logging
import multiprocessing
import os

import cv2
import numpy as np
import pytest

from spark_seg.cli.cache import main as cache_main
from spark_seg.datasets import cache as cache_module
from spark_seg.datasets import cache_stamps
from spark_seg.datasets.cache import FrameCache, cache_folder, shards_of
from spark_seg.datasets.cache_build import build_cache
from spark_seg.datasets.layout import list_frames
from spark_seg.datasets.packs import Pack, stamps_beside
from spark_seg.datasets.spark import SparkDataset
from spark_seg.datasets.transforms.loading import LoadSparkImage, LoadSparkMask
from spark_seg.errors import UserError
from spark_seg.labels import read_mask


def plan(root, kinds=("labels",)):
    frames = list_frames(root, "train")
    return frames, shards_of(frames, root, cache_folder(root, None), kinds)


def training(root):
    """A training's data set; making it makes and refreshes the cache."""
    return SparkDataset(
        str(root), "train", pipeline=[LoadSparkImage(), LoadSparkMask()], cache="labels"
    )


def touch(frames):
    for number, frame in enumerate(frames):
        os.utime(frame.mask, ns=(1, 10**9 + number))


@pytest.fixture
def hashed(monkeypatch):
    """Counts the files that a sample's look-up reads and hashes."""
    calls = []
    digest = cache_module.digest_of
    monkeypatch.setattr(cache_module, "digest_of", lambda data: calls.append(0) or digest(data))
    return calls


@pytest.fixture
def told(monkeypatch):
    lines = []
    monkeypatch.setattr(cache_stamps, "_log", lambda text, level=logging.INFO: lines.append(text))
    return lines


def test_a_trainings_start_notes_what_was_touched(spark_tree, hashed, told):
    frames, shards = plan(spark_tree)
    training(spark_tree)
    packs = [shard.path.read_bytes() for shard in shards]
    touch(frames[:4])
    # before, every sample of such a file was read and hashed, for as long as the training went on
    cache = FrameCache(spark_tree, shards)
    for _ in range(3):
        assert cache.labels(frames[0].mask) is not None
    assert len(hashed) == 3
    hashed.clear()
    assert not told
    dataset = training(spark_tree)
    assert told == [
        "cache: 4 files were touched since it was made and hold the same, which is noted"
    ]
    for number, frame in enumerate(frames):
        np.testing.assert_array_equal(dataset[number]["gt_seg_map"], read_mask(frame.mask))
    assert not hashed
    assert [shard.path.read_bytes() for shard in shards] == packs, "others may have them mapped"
    training(spark_tree)
    assert len(told) == 1
    assert not list(spark_tree.rglob("*.tmp"))
    # touched again, and again noted
    os.utime(frames[3].mask, ns=(1, 77))
    training(spark_tree)
    assert "1 files" in told[-1]
    assert FrameCache(spark_tree, shards).labels(frames[3].mask) is not None
    assert not hashed


def test_what_changed_is_not_noted(spark_tree, told):
    """A file of the same size and other content, one of another size, one that is gone, one that never was readable."""
    frames, shards = plan(spark_tree)
    with open(frames[8].mask, "wb") as file:
        file.write(b"\xff\xd8\xff")
    training(spark_tree)
    with open(frames[0].mask, "r+b") as file:
        file.seek(-3, os.SEEK_END)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    cv2.imwrite(frames[1].mask, np.zeros((64, 64, 3), np.uint8))
    os.utime(frames[8].mask, ns=(1, 1))
    touch(frames[2:3])
    dataset = training(spark_tree)
    assert told == [
        "cache: 1 files were touched since it was made and hold the same, which is noted"
    ]
    assert dataset._cache.labels(frames[0].mask) is None
    assert dataset._cache.labels(frames[1].mask) is None
    assert dataset._cache.labels(frames[2].mask) is not None
    assert dataset._cache.outdated == {frames[0].mask, frames[1].mask}
    os.unlink(frames[2].mask)
    assert dataset._cache.labels(frames[2].mask) is None
    assert cache_stamps.refresh_stamps(spark_tree, shards, 2) == 0


def test_a_cache_that_cannot_be_written_is_told(spark_tree, told, monkeypatch):
    frames, shards = plan(spark_tree)
    training(spark_tree)
    touch(frames[:2])
    monkeypatch.setattr(cache_stamps.os, "access", lambda path, mode: False)
    monkeypatch.setattr(cache_stamps, "read_bytes", lambda path: pytest.fail("read in vain"))
    dataset = training(spark_tree)
    (line,) = told
    assert line.startswith("cache: 2 files have another time than when it was made, and ")
    assert "cannot be written: each is read and compared for every sample, which is slow" in line
    assert dataset._cache.labels(frames[0].mask) is not None
    assert not stamps_beside(shards[0].path).exists()


def test_a_disk_that_is_full_is_told_and_the_training_starts(spark_tree, told, monkeypatch):
    frames, _ = plan(spark_tree)
    training(spark_tree)
    touch(frames[:2])

    def full(self, stamps):
        raise UserError("no room left")

    monkeypatch.setattr(Pack, "write_stamps", full)
    dataset = training(spark_tree)
    assert "no room left" in told[0]
    assert dataset._cache.labels(frames[0].mask) is not None


def test_stamps_are_read_with_their_own_pack_alone(spark_tree, hashed):
    frames, shards = plan(spark_tree)
    training(spark_tree)
    touch(frames)
    training(spark_tree)
    beside = stamps_beside(shards[0].path)
    good = beside.read_bytes()
    assert FrameCache(spark_tree, shards).labels(frames[0].mask) is not None
    assert not hashed
    # damaged in each part, cut, or another pack's: as if there were none, and the content decides
    bad = [good[:-1], b"", good[:20], stamps_beside(shards[1].path).read_bytes()]
    for at in (3, 20, -4):
        flipped = bytearray(good)
        flipped[at] ^= 1
        bad.append(bytes(flipped))
    for data in bad:
        hashed.clear()
        beside.write_bytes(data)
        assert FrameCache(spark_tree, shards).labels(frames[0].mask) is not None
        assert len(hashed) == 1
    # a pack that is made anew holds its stamps itself
    beside.write_bytes(good)
    shards[0].path.unlink()
    build_cache(spark_tree, shards)
    assert not beside.exists()
    hashed.clear()
    assert FrameCache(spark_tree, shards).labels(frames[0].mask) is not None
    assert not hashed


def _start(root, queue):
    dataset = training(root)
    queue.put(all(dataset._cache.labels(frame.mask) is not None for frame in plan(root)[0]))


def test_processes_of_one_training_note_at_once(spark_tree, hashed):
    frames, shards = plan(spark_tree)
    training(spark_tree)
    touch(frames)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    jobs = [context.Process(target=_start, args=(spark_tree, queue)) for _ in range(3)]
    for job in jobs:
        job.start()
    assert all(queue.get(timeout=60) for _ in jobs)
    for job in jobs:
        job.join()
        assert job.exitcode == 0
    cache = FrameCache(spark_tree, shards)
    assert all(cache.labels(frame.mask) is not None for frame in frames)
    assert not hashed
    assert not list(spark_tree.rglob("*.tmp"))


def test_the_command_notes_and_removes(spark_tree, capsys):
    """Without copying the packs, of which those of bare pixels are large."""
    root = str(spark_tree)
    frames, shards = plan(spark_tree)
    assert cache_main(["build", root]) == 0
    inodes = [shard.path.stat().st_ino for shard in shards]
    touch(frames)
    capsys.readouterr()
    assert cache_main(["build", root]) == 0
    out = capsys.readouterr().out
    assert "0 records made, 0 kept from before, 6 of 6 packs were up to date" in out
    assert "9 files were touched since and hold the same, which is noted" in out
    assert [shard.path.stat().st_ino for shard in shards] == inodes
    assert cache_main(["build", root]) == 0
    assert "touched" not in capsys.readouterr().out
    assert cache_main(["remove", root]) == 0
    assert not list(cache_folder(spark_tree, None).rglob("*"))
