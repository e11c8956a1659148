"""The submission as the test loop's evaluator."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator

from spark_seg.submission.check import check_zip
from spark_seg.submission.metric import SubmissionMetric, spread
from spark_seg.submission.writer import SubmissionWriter
from spark_seg.visual import overlay

SIZE = (24, 32)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    paths = [str(folder / f"test_{index:05d}_img.png") for index in range(5)]
    for index, path in enumerate(paths):
        cv2.imwrite(path, np.full((*SIZE, 3), 40 * index, np.uint8))
    return paths


def prediction(path):
    labels = np.zeros(SIZE, np.int64)
    labels[5:15, 5:15] = 1
    labels[8:10, 5:25] = 2
    return {"img_path": path, "pred_sem_seg": {"data": torch.from_numpy(labels)[None]}}


def run(metric, paths):
    evaluator = Evaluator([metric])
    for path in paths:
        evaluator.process(data_samples=[prediction(path)], data_batch=None)
    return evaluator.evaluate(len(paths))


def test_registered_and_writes_a_zip_that_passes(tmp_path, images):
    from mmseg.registry import METRICS

    out = tmp_path / "out"
    metric = METRICS.build(
        {"type": "SubmissionMetric", "writer": {"out_dir": str(out), "names": images}}
    )
    assert run(metric, images) == {"submission/images": 5}
    assert metric.writer.report.ok
    assert check_zip(out / "submission.zip", str(tmp_path / "images")).ok
    assert [p.name for p in out.iterdir()] == ["submission.zip"]


def test_goes_on_with_the_rest(tmp_path, images):
    run_one = SubmissionWriter(tmp_path / "out", images, fingerprint="a")
    metric = SubmissionMetric(run_one)
    metric.process(None, [prediction(path) for path in images[:3]])
    metric.background.wait()
    writer = SubmissionWriter(tmp_path / "out", images, fingerprint="a")
    assert writer.pending == images[3:]
    assert run(SubmissionMetric(writer), writer.pending) == {"submission/images": 5}


def test_overlays_are_spread_over_all_images(tmp_path, images):
    writer = SubmissionWriter(tmp_path / "out", images)
    run(SubmissionMetric(writer, overlays=2), images)
    written = sorted((tmp_path / "out" / "overlays").iterdir())
    assert [p.name for p in written] == ["test_00001_img.png", "test_00003_img.png"]
    labels = prediction(images[1])["pred_sem_seg"]["data"][0].numpy().astype(np.uint8)
    expected = overlay(cv2.imread(images[1]), labels)
    np.testing.assert_array_equal(cv2.imread(str(written[0])), expected)


@pytest.mark.parametrize(("count", "total"), [(0, 5), (1, 5), (3, 4000), (7, 5), (5, 5)])
def test_spread(count, total):
    chosen = spread(count, total)
    assert len(set(chosen)) == len(chosen) == min(count, total)
    assert all(0 <= index < total for index in chosen)
    gaps = np.diff([-1, *chosen, total])
    if len(chosen) > 1:
        assert gaps[1:-1].max() - gaps[1:-1].min() <= 1
