"""Bad files: an error, or replaced, counted and named."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from torch.utils.data import DataLoader

from spark_seg.datasets.bad_files import ATTEMPTS, BadFilesHook
from spark_seg.datasets.layout import list_frames
from spark_seg.datasets.sampling import ResumableSampler
from spark_seg.datasets.spark import SparkDataset
from spark_seg.datasets.transforms.geometry import RandomWarp
from spark_seg.datasets.transforms.loading import LoadSparkImage, LoadSparkMask
from spark_seg.errors import UserError


def keep(results):
    return results["sample_id"], results["img"], results["gt_seg_map"]


def build(root, **options):
    steps = [LoadSparkImage(reduce=1.0), LoadSparkMask(), RandomWarp(32), keep]
    return SparkDataset(str(root), "train", pipeline=steps, **options)


def damage(root, *numbers):
    frames = list_frames(root, "train")
    for number in numbers:
        with open(frames[number].image, "r+b") as file:
            file.truncate(100)
    return [frames[number].id for number in numbers]


def epoch(dataset, workers):
    sampler = ResumableSampler(dataset, shuffle=True, seed=3)
    loader = DataLoader(
        dataset, 2, sampler=sampler, num_workers=workers, collate_fn=lambda samples: samples
    )
    return [sample for batch in loader for sample in batch]


@pytest.mark.parametrize("cache", [None, "labels"])
def test_samples_depend_on_seed_and_index_alone(spark_tree, cache):
    """The same epoch with 0, 1 and 3 workers, bad files and all."""
    damage(spark_tree, 2, 7)
    epochs = []
    for workers in (0, 1, 3):
        dataset = build(spark_tree, skip_bad_files=True, cache=cache)
        epochs.append(epoch(dataset, workers))
        assert len(dataset.skipped()) == 2
    for other in epochs[1:]:
        for (name, img, mask), (name2, img2, mask2) in zip(epochs[0], other, strict=True):
            assert name == name2
            np.testing.assert_array_equal(img, img2)
            np.testing.assert_array_equal(mask, mask2)
    assert len(epochs[0]) == 9


def test_a_bad_file_is_an_error_unless_allowed(spark_tree):
    damage(spark_tree, 2)
    with pytest.raises(UserError, match=r"image_00003_img\.jpg: the file is truncated"):
        epoch(build(spark_tree), 0)


def test_bad_files_are_counted_in_all_workers_and_named(spark_tree, caplog):
    bad = damage(spark_tree, 2, 7)
    dataset = build(spark_tree, skip_bad_files=True)
    assert dataset.skipped() == []
    names = [name for name, *_ in epoch(dataset, 2)]
    assert not set(bad) & set(names)
    assert dataset.skipped() == bad
    logger = logging.getLogger("bad files")
    runner = SimpleNamespace(train_dataloader=DataLoader(dataset), logger=logger)
    BadFilesHook().after_train_epoch(runner)
    assert f"2 of 9 frames could not be read and were replaced: {', '.join(bad)}" in caplog.text


def test_nothing_is_said_where_all_is_well(spark_tree, caplog):
    dataset = build(spark_tree, skip_bad_files=True)
    epoch(dataset, 0)
    runner = SimpleNamespace(train_dataloader=DataLoader(dataset), logger=logging.getLogger("x"))
    BadFilesHook().after_train_epoch(runner)
    assert not caplog.text


def test_only_bad_files_end_the_run(spark_tree):
    damage(spark_tree, *range(9))
    dataset = build(spark_tree, skip_bad_files=True)
    with pytest.raises(UserError, match="truncated"):
        dataset[0]
    assert 1 <= len(dataset.skipped()) <= ATTEMPTS
