"""The cache of labels and half-size pictures: the same labels, made once, never out of date."""

import hashlib
import multiprocessing
import os
import pickle
import time

import cv2
import numpy as np
import pytest
import torch

from spark_seg.cli.cache import main
from spark_seg.datasets import cache_build
from spark_seg.datasets.cache import RULES, FrameCache, cache_folder, relative, shards_of
from spark_seg.datasets.cache_build import build_cache, check_cache
from spark_seg.datasets.layout import list_frames
from spark_seg.datasets.packs import Pack
from spark_seg.datasets.spark import SparkDataset
from spark_seg.datasets.transforms.geometry import RandomWarp
from spark_seg.datasets.transforms.loading import LoadSparkImage, LoadSparkMask
from spark_seg.errors import UserError
from spark_seg.labels import _nearest_by_luma, decode_mask, read_mask

KINDS = ("labels", "half", "half_raw")


def plan(root, kinds=("labels",), split="train"):
    frames = list_frames(root, split)
    return frames, shards_of(frames, root, cache_folder(root, None), kinds)


def steps(size=64, **options):
    return [LoadSparkImage(**options), LoadSparkMask(), RandomWarp(size)]


def sample(dataset, index=4):
    np.random.seed(index)  # noqa: NPY002
    return dataset[index]


# ------------------------------------------------------------------- results


def test_labels_are_the_files_own(spark_tree):
    frames, shards = plan(spark_tree)
    built = build_cache(spark_tree, shards, 2)
    assert (built.made, built.kept, built.packs, built.bad) == (9, 0, 0, [])
    cache = FrameCache(spark_tree, shards)
    for frame in frames:
        labels = cache.labels(frame.mask)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, read_mask(frame.mask))
    assert cache.labels(frames[0].mask + "x") is None
    assert not cache.outdated


def test_samples_are_the_same_with_cached_labels(spark_tree, monkeypatch):
    plain = SparkDataset(str(spark_tree), "train", pipeline=steps())
    cached = SparkDataset(str(spark_tree), "train", pipeline=steps(), cache="labels")

    def never(path):
        raise AssertionError(path)

    expected = [sample(plain, k) for k in range(9)]
    monkeypatch.setattr("spark_seg.datasets.transforms.loading.read_mask", never)
    for k in range(9):
        for key in ("img", "gt_seg_map"):
            np.testing.assert_array_equal(sample(cached, k)[key], expected[k][key])


@pytest.mark.parametrize("kind", ["half", "half_raw"])
def test_half_size_pictures(make_spark_tree, kind):
    """From a picture at half size a sample at that size differs by what halving and the JPEG take, the labels not."""
    root = make_spark_tree(size=128)
    rng = np.random.default_rng(0)
    for frame in list_frames(root, "train"):  # smooth pictures, as frames are
        noise = cv2.GaussianBlur(rng.integers(0, 256, (128, 128, 3), dtype=np.uint8), (0, 0), 6)
        cv2.imwrite(frame.image, cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX))
    whole = SparkDataset(str(root), "train", pipeline=steps())
    half = SparkDataset(str(root), "train", pipeline=steps(reduce=1.25), cache=f"labels+{kind}")
    for k in range(9):
        a, b = sample(whole, k), sample(half, k)
        assert b["ori_shape"] == (128, 128)
        np.testing.assert_array_equal(a["gt_seg_map"], b["gt_seg_map"])
        off = np.abs(a["img"].astype(int) - b["img"])[3:-3, 3:-3]
        assert off.mean() < (4 if kind == "half" else 3)
    # bare pixels are those that the JPEG gives when it is decoded at half size
    reduced = SparkDataset(str(root), "train", pipeline=steps(reduce=1.25))
    off = [np.abs(sample(reduced, k)["img"].astype(int) - sample(half, k)["img"]) for k in range(9)]
    if kind == "half_raw":
        assert not np.any(off)
    else:
        assert 0 < np.mean(off) < 4


def test_auto_makes_labels_but_not_for_a_trial_with_few_frames(spark_tree):
    folder = cache_folder(spark_tree, None)
    few = SparkDataset(str(spark_tree), "train", pipeline=steps(), cache="auto", subset=2)
    assert len(few) == 2
    assert not folder.exists()
    plain = SparkDataset(str(spark_tree), "train", pipeline=steps())
    whole = SparkDataset(str(spark_tree), "train", pipeline=steps(), cache="auto")
    assert whole._cache.kinds == {"labels"}
    np.testing.assert_array_equal(sample(whole)["gt_seg_map"], sample(plain)["gt_seg_map"])
    few = SparkDataset(str(spark_tree), "train", pipeline=steps(), cache="auto", subset=2)
    assert few._cache.kinds == {"labels"}  # what is there is used
    test = SparkDataset(str(spark_tree), "test", pipeline=[], cache="auto")
    assert test._cache is None


def test_auto_goes_without_where_nothing_can_be_written(spark_tree, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("spark_seg.datasets.spark.print_log", lambda text, *_: told.append(text))
    blocked = tmp_path / "file"
    blocked.write_text("")
    options = dict(pipeline=steps(), cache_dir=str(blocked / "cache"))
    dataset = SparkDataset(str(spark_tree), "train", cache="auto", **options)
    assert [text.split(" (")[0] for text in told] == [f"no label cache in {blocked / 'cache'}"]
    plain = SparkDataset(str(spark_tree), "train", pipeline=steps())
    np.testing.assert_array_equal(sample(dataset)["gt_seg_map"], sample(plain)["gt_seg_map"])
    with pytest.raises(UserError, match="cannot write"):
        SparkDataset(str(spark_tree), "train", cache="labels", **options)


def test_validation_reads_whole_pictures(spark_tree):
    val = SparkDataset(
        str(spark_tree), "val", pipeline=[LoadSparkImage(), LoadSparkMask()], cache="labels+half"
    )
    assert val[0]["img"].shape == (64, 64, 3)
    assert val._cache.kinds == {"labels"}
    assert not (spark_tree / ".spark_cache" / "half").exists()


# --------------------------------------------------------- out of date, damaged


def test_a_changed_mask_is_read_itself(spark_tree):
    frames, shards = plan(spark_tree)
    build_cache(spark_tree, shards)
    path = frames[2].mask
    kept = path + ".png"
    os.link(path, kept)
    cache = FrameCache(spark_tree, shards)
    # touched: the content says that it is the same
    os.utime(path, ns=(1, 1))
    assert cache.labels(path) is not None
    other = cv2.imread(frames[5].mask)
    os.unlink(path)
    cv2.imwrite(path, other)
    assert cache.labels(path) is None
    assert cache.outdated == {path}
    dataset = SparkDataset(
        str(spark_tree), "train", pipeline=[LoadSparkImage(), LoadSparkMask()], cache="labels"
    )
    np.testing.assert_array_equal(dataset[2]["gt_seg_map"], read_mask(path))
    # building again decodes that file alone
    built = build_cache(spark_tree, shards)
    assert (built.made, built.kept) == (1, 2)
    np.testing.assert_array_equal(FrameCache(spark_tree, shards).labels(path), read_mask(path))


def test_a_damaged_record_is_not_used(spark_tree):
    frames, shards = plan(spark_tree)
    build_cache(spark_tree, shards)
    data = bytearray(shards[1].path.read_bytes())
    data[3] ^= 255
    shards[1].path.write_bytes(data)
    cache = FrameCache(spark_tree, shards)
    assert cache.labels(frames[3].mask) is None
    assert cache.labels(frames[4].mask) is not None
    assert check_cache(spark_tree, shards).damaged == [relative(frames[3].mask, spark_tree)]


def test_other_rules_are_not_used(spark_tree, monkeypatch):
    frames, shards = plan(spark_tree)
    build_cache(spark_tree, shards)
    monkeypatch.setitem(RULES, "labels", "2")
    assert FrameCache(spark_tree, shards).labels(frames[0].mask) is None
    assert build_cache(spark_tree, shards).made == 9


def test_rules_are_those_of_the_labels():
    """When this fails, masks decode to other labels than before: raise RULES['labels'], then put the new value here."""
    rng = np.random.default_rng(5)
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[10:40, 10:40, 2], mask[40:60, 30:60, 0] = 255, 254
    noise = rng.integers(0, 20, mask.shape, dtype=np.uint8)
    mask = np.where(mask > 127, mask - noise, mask + noise)
    pixels = rng.integers(0, 256, (4096, 3)).astype(np.int32)
    luma = rng.integers(0, 256, 4096, dtype=np.uint8)
    digest = hashlib.sha256(decode_mask(mask, "x").tobytes())
    digest.update(_nearest_by_luma(pixels, luma).tobytes())
    assert (RULES["labels"], digest.hexdigest()[:16]) == ("1", "056ff0d4e8e8cc70")


# -------------------------------------------------------------------- building


def test_building_goes_on_where_it_stopped(spark_tree, monkeypatch):
    _, shards = plan(spark_tree)
    calls = []

    def interrupted(path):
        calls.append(path)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return read_mask(path)

    monkeypatch.setattr(cache_build, "read_mask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_cache(spark_tree, shards, 1)
    there = [shard for shard in shards if shard.path.exists()]
    assert len(there) == 1
    assert not list((spark_tree / ".spark_cache").rglob("*.tmp"))
    monkeypatch.setattr(cache_build, "read_mask", read_mask)
    built = build_cache(spark_tree, shards)
    assert (built.packs, built.made) == (1, 6)


def test_a_new_frame_costs_one_record(spark_tree):
    _, shards = plan(spark_tree)
    build_cache(spark_tree, shards)
    for kind, ending in (("images", "img"), ("mask", "layer")):
        source = spark_tree / kind / "Cheops/train" / f"image_00001_{ending}.jpg"
        (source.parent / f"image_00000_{ending}.jpg").write_bytes(source.read_bytes())
    (spark_tree / "train.csv").unlink()
    _, shards = plan(spark_tree)
    built = build_cache(spark_tree, shards)
    assert (built.packs, built.made, built.kept) == (2, 1, 3)


def _build(root, queue):
    built = build_cache(root, plan(root, KINDS)[1], 2)
    queue.put((built.made, built.packs))


def test_several_processes_build_at_once(spark_tree):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    jobs = [context.Process(target=_build, args=(spark_tree, queue)) for _ in range(3)]
    for job in jobs:
        job.start()
    results = [queue.get(timeout=60) for _ in jobs]
    for job in jobs:
        job.join()
        assert job.exitcode == 0
    assert sum(made for made, _ in results) >= 27
    _, shards = plan(spark_tree, KINDS)
    assert check_cache(spark_tree, shards, anew=True).ok
    assert not list((spark_tree / ".spark_cache").rglob("*.tmp"))


def test_bad_masks_are_named_and_the_rest_is_made(spark_tree):
    frames, shards = plan(spark_tree)
    with open(frames[1].mask, "wb") as file:
        file.write(b"\xff\xd8\xff")
    built = build_cache(spark_tree, shards)
    assert built.made == 8
    assert len(built.bad) == 1
    assert frames[1].mask in built.bad[0]
    cache = FrameCache(spark_tree, shards)
    assert cache.labels(frames[1].mask) is None
    assert cache.labels(frames[2].mask) is not None
    dataset = SparkDataset(
        str(spark_tree), "train", pipeline=[LoadSparkImage(), LoadSparkMask()], cache="labels"
    )
    with pytest.raises(UserError, match="truncated"):
        dataset[1]


def test_a_subset_uses_the_packs_of_the_whole(spark_tree):
    pipeline = [LoadSparkImage(), LoadSparkMask()]
    few = SparkDataset(str(spark_tree), "train", pipeline=pipeline, cache="labels", subset=2)
    assert len(few) == 2
    assert build_cache(spark_tree, plan(spark_tree)[1]).packs == 3


def test_packs_have_a_limit(spark_tree, monkeypatch):
    monkeypatch.setattr("spark_seg.datasets.cache.SHARD", 2)
    frames, shards = plan(spark_tree)
    assert [len(shard.names) for shard in shards] == [2, 1] * 3
    build_cache(spark_tree, shards)
    cache = FrameCache(spark_tree, shards)
    assert all(cache.labels(frame.mask) is not None for frame in frames)


def test_workers_open_the_packs_themselves(spark_tree):
    frames, shards = plan(spark_tree)
    build_cache(spark_tree, shards)
    cache = FrameCache(spark_tree, shards)
    cache.labels(frames[0].mask)
    data = pickle.dumps(cache)
    assert len(data) < 1000
    np.testing.assert_array_equal(
        pickle.loads(data).labels(frames[0].mask), read_mask(frames[0].mask)
    )


def test_forked_workers_share_what_frames_are_found_by(spark_tree, monkeypatch):
    """Opened before they are forked: ten million frames' keys would be 160 MB for each worker."""
    dataset = SparkDataset(data_root=str(spark_tree), cache="labels", pipeline=steps())

    def opened(path):
        raise AssertionError("a worker opens packs of its own")

    monkeypatch.setattr("spark_seg.datasets.cache.Pack", opened)
    monkeypatch.setattr("spark_seg.datasets.transforms.loading.read_mask", None)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=1, num_workers=2, multiprocessing_context="fork", collate_fn=list
    )
    assert sum(len(batch) for batch in loader) == len(dataset) > 2


def test_size_and_speed_of_a_frames_labels(make_spark_tree):
    """A 1024 px mask opens in under 0.2 ms and takes under 17 kB (1 GB for 60 000); see the message for the time."""
    root = make_spark_tree(size=1024, frames=1)
    frames, shards = plan(root)
    build_cache(root, shards)
    assert max(shard.path.stat().st_size for shard in shards) < 17_000
    cache, times = FrameCache(root, shards), []
    for _ in range(40):
        start = time.thread_time()
        cache.labels(frames[0].mask)
        times.append(time.thread_time() - start)
    assert min(times) < 0.2e-3, f"{1000 * min(times):.3f} ms"


# --------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cache": "label"}, "did you mean 'labels'"),
        ({"cache": "labels", "split": "test"}, "no masks"),
        ({"skip_bad_files": True, "split": "val"}, "for training"),
    ],
)
def test_impossible_options(spark_tree, options, words):
    with pytest.raises(UserError, match=words):
        SparkDataset(str(spark_tree), **{"split": "train", "pipeline": steps(), **options})


def test_too_small_pictures_are_refused(spark_tree):
    dataset = SparkDataset(
        str(spark_tree), "train", pipeline=steps(64, reduce=1.25), cache="labels+half"
    )
    with pytest.raises(UserError, match=r"32x32, are too small.*cache='labels'"):
        dataset[0]


def test_a_cache_folder_of_ones_own(spark_tree, tmp_path):
    folder = tmp_path / "elsewhere"
    SparkDataset(
        str(spark_tree),
        "train",
        pipeline=[LoadSparkImage(), LoadSparkMask()],
        cache="labels",
        cache_dir=str(folder),
    )
    assert len(list(folder.rglob("*.pack"))) == 3
    assert not (spark_tree / ".spark_cache").exists()


# --------------------------------------------------------------------- command


def test_the_command(spark_tree, capsys):
    root = str(spark_tree)
    assert main(["check", root]) == 1
    assert "6 packs missing" in capsys.readouterr().out
    assert main(["build", root, "--kinds", *KINDS]) == 0
    assert "54 records made" in capsys.readouterr().out
    assert main(["build", root, "--splits", "val"]) == 0
    assert (
        "0 records made, 0 kept from before, 3 of 3 packs were up to date"
        in capsys.readouterr().out
    )
    assert main(["check", root, "--anew", "--kinds", *KINDS]) == 0
    assert "54 records" in capsys.readouterr().out
    mask = list_frames(root, "val")[0].mask
    cv2.imwrite(mask, np.zeros((64, 64, 3), np.uint8))
    assert main(["check", root]) == 1
    assert "1 source files changed since: mask/VenusExpress/val" in capsys.readouterr().out
    other = spark_tree / ".spark_cache" / "of_somebody_else"
    other.mkdir()
    assert main(["remove", root]) == 0
    assert list((spark_tree / ".spark_cache").rglob("*")) == [other]
    with pytest.raises(UserError, match="did you mean '--workers'"):
        main(["build", root, "--worker", "2"])
    with pytest.raises(UserError, match="--workers 0"):
        main(["build", root, "--workers", "0"])


def test_a_bad_file_is_told_by_the_command(spark_tree, capsys):
    path = list_frames(str(spark_tree), "train")[0].mask
    with open(path, "wb"):
        pass
    assert main(["build", str(spark_tree)]) == 1
    assert f"1 cannot be read: {path}: the file is empty" in capsys.readouterr().out


def test_packs_name_their_frames(spark_tree):
    frames, shards = plan(spark_tree)
    build_cache(spark_tree, shards)
    names = [name for shard in shards for name in Pack(shard.path).names()]
    assert names == [relative(frame.mask, spark_tree) for frame in frames]
