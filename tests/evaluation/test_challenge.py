"""The challenge's score against a slow transcription written here from its description."""

from fractions import Fraction

import numpy as np
import pytest

from spark_seg.evaluation.challenge import challenge_scores, panel_counts, part_credit
from spark_seg.evaluation.counts import confusion


def transcription(images, thresholds=tuple(range(50, 100, 5)), percent=5):
    """Over (prediction, truth) pairs, pixel by pixel in whole numbers; thresholds in percent."""
    earned = {1: [], 2: []}
    for pred, truth in images:
        kept = [(int(p), int(t)) for p, t in zip(pred.flat, truth.flat, strict=True) if t != 255]
        area = {part: len([1 for _, t in kept if t == part]) for part in (1, 2)}
        for part in (1, 2):
            if part == 2 and 100 * area[2] < percent * area[1]:
                continue
            both = len([1 for p, t in kept if p == part and t == part])
            either = len([1 for p, t in kept if p == part or t == part])
            if either == 0:
                earned[part].append(Fraction(0))
                continue
            reached = [limit for limit in thresholds if 100 * both >= limit * either]
            earned[part].append(Fraction(len(reached), len(thresholds)))
    mean = {p: sum(v, Fraction(0)) / len(v) if v else Fraction(0) for p, v in earned.items()}
    return {
        "spark/score": float((mean[1] + mean[2]) / 2),
        "spark/body": float(mean[1]),
        "spark/panel": float(mean[2]),
        "spark/panel_images": len(earned[2]),
    }


def stack(images):
    return np.stack([confusion(pred, truth) for pred, truth in images])


def image(rng, size=(24, 20)):
    """Truth with parts of random areas, and a prediction right in a random share of pixels."""
    body, panel = rng.random() * 0.5, rng.random() ** 3 * 0.2
    truth = rng.choice([0, 1, 2], size, p=[1 - body - panel, body, panel]).astype(np.uint8)
    wrong = rng.random(size) < rng.random() * 0.5
    pred = np.where(wrong, rng.integers(0, 3, size), truth).astype(np.uint8)
    truth[rng.random(size) < 0.05] = 255
    return pred, truth


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_transcription_on_random_masks(seed):
    rng = np.random.default_rng(seed)
    images = [image(rng) for _ in range(20)]
    images += [(np.zeros((4, 4), int), np.zeros((4, 4), int))]
    assert challenge_scores(stack(images)) == pytest.approx(transcription(images))


def exact(hit, union, panel_too=True):
    """Counts in which body (and panel) have exactly this intersection and union."""
    matrix = np.zeros((3, 3), np.int64)
    matrix[0, 0] = 100
    matrix[1, 1], matrix[1, 0] = hit, union - hit
    if panel_too:
        matrix[2, 2], matrix[2, 0] = hit, union - hit
    return matrix


@pytest.mark.parametrize("percent", range(50, 100, 5))
def test_thresholds_are_inclusive_and_exact(percent):
    """At every level for many sizes: with floats 0.55 * 20, 0.7 * 10 and the like go astray."""
    passed = (percent - 50) // 5 + 1
    for scale in (1, 3, 7, 1001):
        met = challenge_scores(exact(percent * scale, 100 * scale)[None])
        assert met["spark/body"] == pytest.approx(passed / 10)
        assert met["spark/panel"] == pytest.approx(passed / 10)
    below = challenge_scores(exact(percent * 10**6 - 1, 100 * 10**6)[None])
    assert below["spark/body"] == pytest.approx((passed - 1) / 10)


@pytest.mark.parametrize("scale", [1, 3, 49, 12345])
def test_the_panel_counts_from_exactly_5_percent(scale):
    matrix = np.zeros((3, 3, 3), np.int64)
    matrix[:, 1, 1] = 20 * scale
    matrix[0, 2, 0], matrix[1, 2, 1], matrix[2, 2, 2] = scale - 1, scale, scale + 1
    assert panel_counts(matrix).tolist() == [False, True, True]


def test_an_image_without_body_earns_nothing_for_it():
    nothing = np.diag([100, 0, 0])
    only_panel = np.diag([100, 0, 10])
    false_alarm = np.array([[90, 10, 0], [0, 0, 0], [0, 0, 0]])
    for matrix in (nothing, only_panel, false_alarm):
        assert challenge_scores(matrix[None])["spark/body"] == 0.0
    perfect = np.diag([100, 10, 10])
    both = challenge_scores(np.stack([perfect, nothing]))
    assert both["spark/body"] == 0.5
    assert both["spark/panel"] == 0.5  # 0 >= 5 % of 0: it counts, and an empty union earns 0
    assert both["spark/panel_images"] == 2


def test_no_panel_that_counts_gives_0_and_says_so():
    result = challenge_scores(np.diag([100, 50, 0])[None])
    assert result == {
        "spark/score": 0.5,
        "spark/body": 1.0,
        "spark/panel": 0.0,
        "spark/panel_images": 0,
    }


def test_a_panel_that_does_not_count_does_not_hurt():
    good, tiny = np.diag([100, 40, 40]), np.diag([100, 40, 0])
    tiny = tiny + np.array([[0, 0, 0], [0, 0, 0], [1, 0, 0]])
    assert challenge_scores(np.stack([good, tiny]))["spark/panel"] == 1.0


def test_no_image_at_all():
    result = challenge_scores(np.zeros((0, 3, 3), np.int64))
    assert set(result.values()) == {0}


def test_parameters():
    matrix = exact(60, 100)[None]
    assert challenge_scores(matrix, thresholds=(0.6,))["spark/body"] == 1.0
    assert challenge_scores(matrix, thresholds=(0.61,))["spark/body"] == 0.0
    nothing = np.diag([100, 0, 0])[None]
    assert challenge_scores(nothing, empty_union=1.0)["spark/body"] == 1.0
    no_panel = np.diag([100, 30, 0])[None]
    counted = challenge_scores(no_panel, panel_share=0.0)
    assert (counted["spark/panel_images"], counted["spark/panel"]) == (1, 0.0)
    assert part_credit(matrix).tolist() == [[0.2, 0.3, 0.3]]
    with pytest.raises(ValueError, match="threshold"):
        part_credit(matrix, thresholds=())
