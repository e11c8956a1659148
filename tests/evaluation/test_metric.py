"""The metric as mmengine's evaluator drives it."""

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.structures import PixelData

from spark_seg.errors import UserError
from spark_seg.evaluation.counts import ImageCounts, confusion
from spark_seg.evaluation.metric import SparkMetric
from spark_seg.evaluation.table import metrics_of


def pairs(count=6, size=(20, 30)):
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 3, size), rng.integers(0, 3, size)) for _ in range(count)]


def sample(index, pred, truth):
    from mmseg.structures import SegDataSample

    result = SegDataSample(
        metainfo={"sample_id": f"Soho/val/image_{index:05d}", "satellite": "Soho"}
    )
    result.pred_sem_seg = PixelData(data=torch.from_numpy(pred)[None])
    result.gt_sem_seg = PixelData(data=torch.from_numpy(truth)[None])
    return result


def evaluate(metric, images, order=None):
    evaluator = Evaluator([metric])
    for index in order if order is not None else range(len(images)):
        pred, truth = images[index]
        evaluator.process(data_samples=[sample(index, pred, truth)], data_batch=None)
    return evaluator.evaluate(len(images))


def test_registered_and_equal_to_the_pure_functions():
    from mmseg.registry import METRICS

    metric = METRICS.build({"type": "SparkMetric"})
    images = pairs()
    result = evaluate(metric, images)
    stack = np.stack([confusion(pred, truth) for pred, truth in images])
    assert result == metrics_of(metric.counts)
    assert metrics_of(stack).items() <= result.items()
    assert "mIoU/foreground" in result
    assert "spark/score" in result
    np.testing.assert_array_equal(metric.counts.confusion, stack)
    assert metric.counts.satellites.tolist() == ["Soho"] * 6


def test_the_order_of_the_images_does_not_matter():
    images = pairs()
    one, other = SparkMetric(), SparkMetric()
    assert evaluate(one, images) == evaluate(other, images, order=[3, 0, 5, 1, 4, 2])
    assert one.counts.ids.tolist() == other.counts.ids.tolist()
    np.testing.assert_array_equal(one.counts.confusion, other.counts.confusion)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("flat", [False, True])
def test_shapes_and_types_of_labels(dtype, flat):
    pred, truth = pairs(1)[0]
    fields = {"pred_sem_seg": pred, "gt_sem_seg": truth}
    given = {
        key: {"data": torch.from_numpy(a if flat else a[None]).to(dtype)}
        for key, a in fields.items()
    }
    metric = SparkMetric()
    metric.process(None, [{**given, "sample_id": "a", "satellite": "Soho"}])
    np.testing.assert_array_equal(metric.results[0][2]["confusion"], confusion(pred, truth))


def test_only_a_few_numbers_per_image_are_kept():
    """The promise of constant memory: what is kept must not hold on to the masks."""
    metric = SparkMetric()
    pred, truth = pairs(1, (64, 64))[0]
    metric.process(None, [sample(0, pred, truth).to_dict()])
    name, satellite, counts = metric.results[0]
    assert (name, satellite) == ("Soho/val/image_00000", "Soho")
    owners = [a if a.base is None else a.base for a in counts.values()]
    assert sum(owner.nbytes for owner in owners) < 1000


def test_writes_counts_that_give_the_same_scores(tmp_path):
    out = tmp_path / "new" / "folder"
    result = evaluate(SparkMetric(out=str(out)), pairs())
    counts = ImageCounts.load(out / "counts.npz")
    assert metrics_of(counts) == result
    assert [p.name for p in out.iterdir()] == ["counts.npz"]


def test_a_second_evaluation_starts_from_nothing():
    metric = SparkMetric()
    evaluate(metric, pairs())
    assert evaluate(metric, pairs(2))["images"] == 2


def test_different_sizes_name_the_sample():
    bad = {
        "pred_sem_seg": {"data": torch.zeros(1, 4, 4, dtype=torch.uint8)},
        "gt_sem_seg": {"data": torch.zeros(1, 4, 5, dtype=torch.uint8)},
        "sample_id": "Soho/val/image_00007",
    }
    with pytest.raises(UserError, match="Soho/val/image_00007"):
        SparkMetric().process(None, [bad])


def test_the_table_is_logged_on_request(caplog, capsys):
    evaluate(SparkMetric(table=False), pairs(1))
    assert "Precision" not in capsys.readouterr().out + caplog.text
