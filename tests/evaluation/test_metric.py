"""The metric as mmengine's evaluator drives it."""

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.structures import PixelData

from spark_seg.errors import UserError
from spark_seg.evaluation.calibration import calibration_counts, expected_error
from spark_seg.evaluation.counts import confusion
from spark_seg.evaluation.frame import CountOptions, count_frame_on_device
from spark_seg.evaluation.metric import SUMS_FIELD, SparkMetric
from spark_seg.evaluation.store import ImageCounts
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


def with_logits(count=5, size=(20, 30), grid=(5, 6)):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(count, 3, *grid, generator=generator)
    return logits, [sample(i, *pair) for i, pair in enumerate(pairs(count, size))]


def test_logits_that_were_seen_are_calibrated():
    logits, samples = with_logits()
    metric = SparkMetric(bins=7)
    metric.observe_logits(logits, samples)
    metric.process(None, [one.to_dict() for one in samples])
    result = metric.evaluate(len(samples))
    assert metric.counts.calibrated
    for index, one in enumerate(samples):
        table, nll = calibration_counts(logits[index], one.gt_sem_seg.data[0], 7)
        np.testing.assert_array_equal(metric.counts.calibration[index], table)
        np.testing.assert_array_equal(metric.counts.nll[index], nll)
    sums = metric.counts.calibration.sum(0)
    assert result["ECE"] == pytest.approx(expected_error(sums[0]))
    assert result["NLL/foreground"] == pytest.approx(
        metric.counts.nll[:, 1].sum() / 2**24 / sums[1, :, 0].sum()
    )


def test_without_a_truth_or_without_calibration_logits_leave_no_trace():
    logits, samples = with_logits()
    SparkMetric(calibration=False).observe_logits(logits, samples)
    for one in samples:
        del one.gt_sem_seg
    SparkMetric().observe_logits(logits, samples)
    assert all(SUMS_FIELD not in one for one in samples)


def test_counting_where_the_labels_are_gives_the_same(monkeypatch):
    """The GPU's way, taken with tensors of the CPU."""

    def on_device(self, given):
        maps = (given[field]["data"][0] for field in ("pred_sem_seg", "gt_sem_seg"))
        return count_frame_on_device(*maps, self.options)

    images = pairs()
    images[2][1][3:5] = 255
    here, there = SparkMetric(), SparkMetric()
    wanted = evaluate(here, images)
    monkeypatch.setattr(SparkMetric, "_on_device", on_device)
    assert evaluate(there, images) == wanted
    for name in ImageCounts.names():
        np.testing.assert_array_equal(getattr(here.counts, name), getattr(there.counts, name))
    images[4][0][0, 0] = 3
    with pytest.raises(UserError, match=r"image_00004: 1 pixels .* no class"):
        evaluate(SparkMetric(), images)


def test_without_details_confusions_alone():
    metric = SparkMetric(details=False)
    result = evaluate(metric, pairs())
    assert not metric.counts.detailed
    assert "boundary_IoU/body" not in result
    assert result["spark/score"] == evaluate(SparkMetric(), pairs())["spark/score"]


def test_the_scores_parameters_come_from_the_config():
    from mmseg.registry import METRICS

    options = {"thresholds": [0.1, 0.3], "panel_share": 0.0, "empty_union": 1.0}
    metric = METRICS.build(
        {"type": "SparkMetric", "boundary_px": [2], "band_share": 0.1, **options}
    )
    result = evaluate(metric, pairs())
    assert result["spark/score"] == 0.5  # IoU of random labels lies between the two
    assert "boundary_F2px/body" in result
    assert "boundary_F1px/body" not in result
    assert metric.counts.options == CountOptions((2,), 0.1)
    with pytest.raises(UserError, match="thresholds"):
        METRICS.build({"type": "SparkMetric", "thresholds": []})


def _part(rank, folder):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    images, metric = pairs(7), SparkMetric(out=f"{folder}/two", table=False)
    for index in (*range(rank, 7, 2), *([0] if rank else [])):  # padded as a sampler does
        metric.process(None, [sample(index, *images[index]).to_dict()])
    metric.evaluate(7)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_count_what_one_counts(tmp_path):
    torch.multiprocessing.spawn(_part, (str(tmp_path),), nprocs=2)
    evaluate(SparkMetric(out=str(tmp_path / "one")), pairs(7))
    one, two = (ImageCounts.load(tmp_path / name / "counts.npz") for name in ("one", "two"))
    assert len(one) == 7
    for name in ImageCounts.names():
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
