"""The cache's packs on node-local storage: taken along, so that no node decodes all masks again."""

import os
import shutil
from pathlib import Path

import pytest

from spark_seg.datasets import cache as cache_module
from spark_seg.datasets import cache_build
from spark_seg.datasets.cache import cache_folder, shards_of
from spark_seg.datasets.cache_build import build_cache
from spark_seg.datasets.cache_stamps import is_current, refresh_stamps
from spark_seg.datasets.layout import list_frames
from spark_seg.datasets.spark import SparkDataset
from spark_seg.datasets.transforms.loading import LoadSparkImage, LoadSparkMask
from spark_seg.engine import staging
from spark_seg.engine.staging import stage, stage_data

LABELS = {"train": ["labels"], "val": ["labels"]}


def build(root: Path, split: str = "train", kinds: tuple[str, ...] = ("labels",)) -> list:
    shards = shards_of(list_frames(root, split), root, cache_folder(root, None), kinds)
    build_cache(root, shards)
    return shards


def packs(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*.pack")}


def never(*_: object) -> None:
    raise AssertionError("the cache was there")


def test_nothing_is_made_again_on_the_node(
    spark_tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nor read: files that were touched at the source are known on the node by their stamps."""
    shards = build(spark_tree)
    frames = list_frames(spark_tree, "train")
    os.utime(frames[0].mask or "", ns=(1, 5))
    assert refresh_stamps(spark_tree, shards, 1) == 1
    root = Path(stage_data(str(spark_tree), tmp_path / "local", LABELS))
    assert "and 3 packs of its cache" in capsys.readouterr().out
    assert packs(root) == packs(spark_tree)
    monkeypatch.setattr(cache_build, "make_pack", never)
    monkeypatch.setattr("spark_seg.datasets.transforms.loading.read_mask", never)
    monkeypatch.setattr(cache_module, "digest_of", never)
    pipeline = [LoadSparkImage(), LoadSparkMask()]
    dataset = SparkDataset(str(root), "train", pipeline=pipeline, cache="labels")
    assert all(dataset[number]["gt_seg_map"].any() for number in range(len(frames)))


def test_a_copy_that_is_there_gets_the_packs_that_it_lacks(
    spark_tree: Path, tmp_path: Path
) -> None:
    """The originals are not copied again for a cache that was made later, nor is a pack that is there."""
    first = stage(spark_tree, tmp_path / "local", cached=LABELS)
    assert (first.copied, first.packs) == (True, 0)
    build(spark_tree)
    second = stage(spark_tree, tmp_path / "local", cached=LABELS)
    assert (second.root, second.copied, second.packs) == (first.root, False, 3)
    before = {path: path.stat().st_ino for path in first.root.rglob("*.pack")}
    build(spark_tree, "val")
    third = stage(spark_tree, tmp_path / "local", cached=LABELS)
    assert (third.copied, third.packs) == (False, 3)
    assert {path: path.stat().st_ino for path in before} == before
    assert not list(first.root.rglob("*.tmp"))
    fourth = stage(spark_tree, tmp_path / "local", cached=LABELS)
    assert (fourth.copied, fourth.packs) == (False, 0)
    # a copy that is damaged is made anew with them
    (first.root / "train.csv").unlink()
    fifth = stage(spark_tree, tmp_path / "local", cached=LABELS)
    assert (fifth.copied, fifth.packs) == (True, 6)
    assert packs(fifth.root) == packs(spark_tree)


def test_what_is_not_whole_or_not_asked_for_stays(
    spark_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = build(spark_tree, kinds=("labels", "half_raw"))
    data = shards[0].path.read_bytes()
    shards[0].path.write_bytes(data[:-30])
    shutil.copy(shards[2].path, shards[1].path)  # of other frames
    staged = stage(spark_tree, tmp_path / "local", cached={"train": ["labels"]})
    assert staged.packs == 1
    assert packs(staged.root) == {str(shards[2].path.relative_to(spark_tree))}
    assert stage(spark_tree, tmp_path / "other").packs == 0
    # of other rules
    monkeypatch.setitem(cache_module.RULES, "labels", "0")
    assert not is_current(shards[2], spark_tree, False)
    assert stage(spark_tree, tmp_path / "third", cached=LABELS).packs == 0


def test_a_config_takes_along_what_it_reads(spark_tree: Path, tmp_path: Path) -> None:
    from spark_seg.config import load_config

    for split in ("train", "val"):
        build(spark_tree, split, ("labels", "half", "half_raw"))
    roots = {}
    for number, changes in enumerate(
        ({}, {"cache": "labels+half"}, {"cache": None}, {"cache_dir": str(tmp_path / "own")})
    ):
        cfg = load_config("segformer_b0_spark", {"data_root": str(spark_tree), **changes})
        staging.use_staged(cfg, tmp_path / str(number))
        assert cfg.train_dataloader.dataset.data_root == cfg.data_root
        roots[number] = {tuple(name.split("/")[1:4:2]) for name in packs(Path(cfg.data_root))}
    labels = {("labels", "train"), ("labels", "val")}
    assert roots == {0: labels, 1: labels | {("half", "train")}, 2: set(), 3: set()}


def test_space_counts_the_packs_too(
    spark_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(staging, "_check_space", lambda to, size: asked.append(size))
    build(spark_tree)
    size = stage(spark_tree, tmp_path / "local", cached=LABELS).size
    more = sum(path.stat().st_size for path in spark_tree.rglob("*.pack"))
    assert asked == [size + more]
    stage(spark_tree, tmp_path / "local", cached=LABELS)
    assert asked == [size + more]
