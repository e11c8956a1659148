"""Scores: worked by hand, against a transcription over pixel sets, and for absent classes."""

import math

import numpy as np
import pytest

from spark_seg.evaluation.counts import confusion, pooled
from spark_seg.evaluation.scores import dice, iou, precision, recall, scores

KEYS = {
    *("mIoU", "mIoU/foreground", "mDice", "mDice/foreground", "aAcc"),
    *(
        f"{kind}/{name}"
        for kind in ("IoU", "Dice", "Precision", "Recall")
        for name in ("background", "body", "panel")
    ),
}


def by_sets(pred, truth):
    """Every score from sets of pixel positions, without any matrix."""
    pixels = [(p, t) for p, t in zip(pred.ravel(), truth.ravel(), strict=True) if t != 255]
    result, overlaps, dices = {}, {}, {}
    for index, name in enumerate(("background", "body", "panel")):
        ours = {k for k, (p, _) in enumerate(pixels) if p == index}
        true = {k for k, (_, t) in enumerate(pixels) if t == index}
        if ours | true:
            overlaps[name] = len(ours & true) / len(ours | true)
            dices[name] = 2 * len(ours & true) / (len(ours) + len(true))
        result[f"IoU/{name}"] = overlaps.get(name, 0.0)
        result[f"Dice/{name}"] = dices.get(name, 0.0)
        result[f"Precision/{name}"] = len(ours & true) / len(ours) if ours else 0.0
        result[f"Recall/{name}"] = len(ours & true) / len(true) if true else 0.0
    for key, values in (("mIoU", overlaps), ("mDice", dices)):
        parts = [v for k, v in values.items() if k != "background"]
        result[key] = sum(values.values()) / len(values) if values else 0.0
        result[f"{key}/foreground"] = sum(parts) / len(parts) if parts else 0.0
    result["aAcc"] = sum(p == t for p, t in pixels) / len(pixels) if pixels else 0.0
    return result


def test_worked_by_hand():
    #               predicted  bg  body  panel
    matrix = np.array([[80, 5, 0], [2, 6, 2], [0, 1, 4]])
    result = scores(matrix)
    assert set(result) == KEYS
    assert result["IoU/background"] == pytest.approx(80 / 87)
    assert result["IoU/body"] == pytest.approx(6 / 16)
    assert result["IoU/panel"] == pytest.approx(4 / 7)
    assert result["mIoU"] == pytest.approx((80 / 87 + 6 / 16 + 4 / 7) / 3)
    assert result["mIoU/foreground"] == pytest.approx((6 / 16 + 4 / 7) / 2)
    assert result["Dice/body"] == pytest.approx(12 / 22)
    assert result["Precision/body"] == pytest.approx(6 / 12)
    assert result["Recall/body"] == pytest.approx(6 / 10)
    assert result["aAcc"] == pytest.approx(90 / 100)
    assert all(type(value) is float for value in result.values())


@pytest.mark.parametrize("seed", range(6))
def test_equals_scores_over_sets_of_pixels(seed):
    rng = np.random.default_rng(seed)
    classes = [[0, 1, 2], [0, 1], [0], [1, 2], [2], [0, 2]][seed]
    pred = rng.choice(classes, (23, 19))
    truth = rng.choice([*classes[:2], 255], (23, 19))
    assert scores(confusion(pred, truth)) == pytest.approx(by_sets(pred, truth))


def test_a_class_in_neither_mask_is_left_out_of_the_means():
    matrix = np.array([[90, 10, 0], [5, 15, 0], [0, 0, 0]])
    result = scores(matrix)
    assert result["IoU/panel"] == result["Dice/panel"] == 0.0
    assert result["Precision/panel"] == result["Recall/panel"] == 0.0
    assert result["mIoU/foreground"] == pytest.approx(15 / 30)
    assert result["mIoU"] == pytest.approx((90 / 105 + 15 / 30) / 2)
    assert result["mDice/foreground"] == pytest.approx(30 / 45)


def test_a_class_only_predicted_or_only_true_counts_as_zero():
    only_predicted = scores(np.array([[90, 0, 10], [0, 50, 0], [0, 0, 0]]))
    assert only_predicted["IoU/panel"] == only_predicted["Recall/panel"] == 0.0
    assert only_predicted["mIoU/foreground"] == pytest.approx(0.5)
    only_true = scores(np.array([[90, 0, 0], [0, 50, 0], [10, 0, 0]]))
    assert only_true["IoU/panel"] == only_true["Precision/panel"] == 0.0
    assert only_true["mIoU/foreground"] == pytest.approx(0.5)


def test_nothing_counted_is_zero_and_never_nan():
    result = scores(np.zeros((3, 3), np.int64))
    assert set(result) == KEYS
    assert all(value == 0.0 for value in result.values())
    background = scores(np.diag([100, 0, 0]))
    assert background["mIoU"] == background["aAcc"] == 1.0
    assert background["mIoU/foreground"] == 0.0
    assert not any(math.isnan(value) for value in background.values())


def test_pooled_is_not_the_mean_over_images():
    large = np.array([[0, 0, 0], [0, 900, 100], [0, 0, 0]])
    small = np.array([[0, 0, 0], [9, 1, 0], [0, 0, 0]])
    assert scores(pooled(np.stack([large, small])))["IoU/body"] == pytest.approx(901 / 1010)


def test_ratios_work_on_stacks():
    stack = np.random.default_rng(0).integers(0, 9, (5, 3, 3))
    for function in (iou, dice, precision, recall):
        together = function(stack)
        assert together.shape == (5, 3)
        for one, matrix in zip(together, stack, strict=True):
            np.testing.assert_array_equal(one, function(matrix))


def test_large_counts_stay_exact_enough():
    """20 000 frames of 1024 x 1024 hold 2e10 pixels, more than int32."""
    result = scores(np.diag([20_000 * 1024 * 1024, 1, 1]))
    assert result["mIoU"] == 1.0


def test_a_matrix_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        scores(np.zeros((2, 2)))
