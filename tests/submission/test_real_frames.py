"""The whole chain on real SPARK frames, where there are some."""

import os
from pathlib import Path

import numpy as np
import pytest

SAMPLES = os.environ.get("SPARK_SAMPLES", "")
pytestmark = pytest.mark.skipif(not SAMPLES, reason="SPARK_SAMPLES names no folder of real frames")


def test_a_zip_over_the_real_test_frames_passes(tmp_path):
    from spark_seg.datasets.layout import list_test_images
    from spark_seg.submission.check import check_zip, image_size
    from spark_seg.submission.writer import SubmissionWriter

    folder = str(Path(SAMPLES) / "stream-1-test")
    images = [frame.image for frame in list_test_images(None, folder)]
    assert len(images) == 20
    writer = SubmissionWriter(tmp_path, images)
    for image in writer.pending:
        labels = np.zeros(image_size(image), np.uint8)
        labels[200:400, 300:500], labels[250:300, 500:800] = 1, 2
        writer.add(image, labels)
    report = check_zip(writer.finish(), folder)
    assert report.problems == []
    assert report.sizes == {(1024, 1024): 20}


def test_real_masks_scored_from_a_zip_equal_counting_them_directly(tmp_path):
    from spark_seg.datasets.layout import find_root, list_frames
    from spark_seg.evaluation.counts import confusion
    from spark_seg.labels import read_mask
    from spark_seg.submission.score import score_zip
    from spark_seg.submission.writer import SubmissionWriter

    frames = list_frames(find_root(SAMPLES), "val")
    masks = {Path(frame.image).name: read_mask(frame.mask) for frame in frames}
    writer = SubmissionWriter(tmp_path, sorted(masks), dtype="uint8")
    moved = {name: np.roll(mask, 3, 0) for name, mask in masks.items()}
    for name in writer.pending:
        writer.add(name, moved[name])
    counts = score_zip(writer.finish(), Path(SAMPLES) / "mask")
    assert len(counts) == len(frames) == 10
    expected = np.stack([confusion(moved[name], masks[name]) for name in sorted(masks)])
    np.testing.assert_array_equal(counts.confusion, expected)
