"""Calibration against a slow transcription, and what exactness promises."""

import math

import numpy as np
import pytest
import torch

from spark_seg.evaluation.calibration import (
    BINS,
    REGIONS,
    UNIT,
    calibration_counts,
    empty_sums,
    expected_error,
    reliability,
    sample_truth,
)


def slow(logits, truth, bins):
    """One pixel at a time, in double precision: pixels, right ones, confidence; nats."""
    _, h, w = logits.shape
    height, width = truth.shape
    p = torch.softmax(logits.double(), 0).numpy()
    sums, nll = np.zeros((3, bins, 3)), np.zeros(3)
    for y in range(h):
        for x in range(w):
            true = int(truth[(2 * y + 1) * height // (2 * h), (2 * x + 1) * width // (2 * w)])
            if true == 255:
                continue
            found = int(p[:, y, x].argmax())
            confidence = float(p[found, y, x])
            level = min(max(math.ceil(confidence * bins) - 1, 0), bins - 1)
            for region, inside in enumerate((True, true > 0, found > 0)):
                if inside:
                    sums[region, level] += 1, found == true, confidence
                    nll[region] -= math.log(p[true, y, x])
    return sums, nll


def draw(seed, size, grid, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 3, size, generator=generator)
    truth[: size[0] // 5] = 255
    return torch.randn(3, *grid, generator=generator) * scale, truth


@pytest.mark.parametrize(
    ("size", "grid"),
    [((64, 64), (16, 16)), ((60, 70), (13, 17)), ((9, 9), (9, 9)), ((5, 5), (8, 8))],
)
@pytest.mark.parametrize("bins", [15, 1, 40])
def test_equals_the_slow_transcription(size, grid, bins):
    logits, truth = draw(0, size, grid)
    sums, nll = (a.numpy() for a in calibration_counts(logits, truth, bins))
    assert sums.dtype == nll.dtype == np.int64
    wanted, nats = slow(logits, truth, bins)
    np.testing.assert_array_equal(sums[..., :2], wanted[..., :2])
    np.testing.assert_allclose(sums[..., 2] / UNIT, wanted[..., 2], atol=1e-5)
    np.testing.assert_allclose(nll / UNIT, nats, rtol=1e-5)
    error = (abs(wanted[..., 1] - wanted[..., 2])).sum(-1) / wanted[..., 0].sum(-1)
    np.testing.assert_allclose(expected_error(sums), error, atol=1e-6)


def test_the_truth_is_sampled_at_the_pixels_nearest_to_the_centres():
    truth = torch.arange(64).reshape(8, 8)
    assert sample_truth(truth, (2, 4)).tolist() == [[17, 19, 21, 23], [49, 51, 53, 55]]
    assert sample_truth(truth, (8, 8)).equal(truth)
    assert sample_truth(truth, (3, 3))[0].tolist() == [9, 12, 14]


def test_the_order_of_the_pixels_does_not_matter():
    """Integers: shuffled pixels give the very same sums, which floats would not."""
    logits, truth = draw(1, (32, 32), (32, 32))
    order = torch.randperm(32 * 32, generator=torch.Generator().manual_seed(2))
    shuffled = logits.reshape(3, -1)[:, order].reshape(3, 32, 32)
    one = calibration_counts(logits, truth)
    other = calibration_counts(shuffled, truth.reshape(-1)[order].reshape(32, 32))
    assert all(a.equal(b) for a, b in zip(one, other, strict=True))


def test_bins_are_closed_above():
    """Three equal logits have confidence 1/3, which ends the fifth of fifteen bins."""
    sums, nll = calibration_counts(torch.zeros(3, 2, 2), torch.zeros(2, 2))
    assert sums[0, :, 0].nonzero().tolist() == [[4]]
    assert nll[0] / UNIT == pytest.approx(4 * math.log(3), abs=1e-6)
    sure = torch.tensor([100.0, 0, 0]).reshape(3, 1, 1)
    assert calibration_counts(sure, torch.zeros(1, 1))[0][0, -1].tolist() == [1, 1, UNIT]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_a_diverged_model_has_finite_numbers(value):
    logits = torch.full((3, 4, 4), value)
    logits[0, 0] = 1.0
    sums, nll = calibration_counts(logits, torch.ones(8, 8))
    assert int(sums[0, :, 0].sum()) == 16
    assert (nll >= 0).all()
    assert np.isfinite(expected_error(sums.numpy())).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    logits, truth = draw(3, (16, 16), (16, 16))
    logits = logits.to(dtype)
    assert calibration_counts(logits, truth)[0].equal(calibration_counts(logits.float(), truth)[0])


def test_the_logits_are_left_alone():
    logits, truth = draw(4, (8, 8), (8, 8))
    before = logits.clone()
    calibration_counts(logits, truth)
    assert logits.equal(before)


def test_a_calibrated_model_has_a_small_error_where_that_is_promised():
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(3, 400, 400, generator=generator) * 2
    logits[0] += 2
    p = torch.softmax(logits, 0).reshape(3, -1).T
    truth = torch.multinomial(p, 1, generator=generator).reshape(400, 400)
    error = dict(
        zip(REGIONS, expected_error(calibration_counts(logits, truth)[0].numpy()), strict=True)
    )
    assert error["all"] < 0.01
    assert error["predicted"] < 0.01
    assert error["foreground"] > 0.05  # why `predicted` is there


def test_nothing_counted_is_0_and_never_nan():
    sums, nll = calibration_counts(torch.zeros(3, 2, 2), torch.full((4, 4), 255))
    assert not sums.any()
    assert not nll.any()
    assert expected_error(sums.numpy()).tolist() == [0.0] * 3
    blank, _ = empty_sums(2)
    assert blank.shape == (2, 3, BINS, 3)
    curve = reliability(blank.sum(0)[0])
    assert all(np.isfinite(values).all() for values in curve.values())


def test_reliability_by_hand():
    sums = np.zeros((4, 3), np.int64)
    sums[3] = 10, 9, int(8.5 * UNIT)
    sums[1] = 30, 12, 12 * UNIT
    curve = reliability(sums)
    assert curve["low"].tolist() == [0, 0.25, 0.5, 0.75]
    assert curve["share"].tolist() == [0, 0.75, 0, 0.25]
    assert curve["accuracy"].tolist() == [0, 0.4, 0, 0.9]
    assert curve["confidence"].tolist() == [0.125, 0.4, 0.625, 0.85]
    assert expected_error(sums) == pytest.approx(0.25 * 0.05)
