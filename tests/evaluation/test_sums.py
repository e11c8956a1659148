"""Every score over sums: pooled, per image, never a NaN; against loops over the images."""

import numpy as np
import pytest
from hard_masks import adversarial, blobs
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, precision_score, recall_score

from spark_seg.evaluation.challenge import ChallengeRule, challenge_scores, threshold_curve
from spark_seg.evaluation.frame import count_frame
from spark_seg.evaluation.store import ImageCounts
from spark_seg.evaluation.sums import Sums, image_values
from spark_seg.evaluation.table import metrics_of, table_lines
from spark_seg.labels import CLASSES

PAIRS = [blobs(np.random.default_rng(seed), ignored=seed % 3 == 0) for seed in range(10)]
SKLEARN = {
    "IoU": jaccard_score,
    "Dice": f1_score,
    "Precision": precision_score,
    "Recall": recall_score,
}


def collect(pairs):
    return ImageCounts.collect(
        [(f"{i:03d}", "", count_frame(pred, truth)) for i, (pred, truth) in enumerate(pairs)]
    )


def test_pooled_and_per_image_scores_are_those_of_sklearn():
    metrics = metrics_of(collect(PAIRS))
    flat = [(truth[truth != 255], pred[truth != 255]) for pred, truth in PAIRS]
    truth, pred = (np.concatenate(side) for side in zip(*flat, strict=True))
    assert metrics["aAcc"] == pytest.approx(accuracy_score(truth, pred))
    for kind, function in SKLEARN.items():
        options = {"labels": [0, 1, 2], "average": None, "zero_division": 0}
        wanted = function(truth, pred, **options)
        single = np.array([function(t, p, **options) for t, p in flat])
        there = np.array([[(t == c).any() or (p == c).any() for c in range(3)] for t, p in flat])
        for c, name in enumerate(CLASSES):
            assert metrics[f"{kind}/{name}"] == pytest.approx(wanted[c])
            assert metrics[f"per_image/{kind}/{name}"] == pytest.approx(
                single[there[:, c], c].mean()
            )
    means = [s[t].mean() for s, t in zip(single_iou(flat), there, strict=True)]
    assert metrics["per_image/mIoU"] == pytest.approx(np.mean(means))


def single_iou(flat):
    options = {"labels": [0, 1, 2], "average": None, "zero_division": 0}
    return [jaccard_score(t, p, **options) for t, p in flat]


def test_boundaries_and_boxes_by_loops():
    counts = collect(PAIRS)
    metrics = metrics_of(counts)
    for part, name in enumerate(("body", "panel", "craft")):
        both, either = counts.boundary_overlap[:, part].sum(0)
        assert metrics[f"boundary_IoU/{name}"] == pytest.approx(both / either)
        single = [a / b for a, b in counts.boundary_overlap[:, part] if b]
        assert metrics[f"per_image/boundary_IoU/{name}"] == pytest.approx(np.mean(single))
        for t, radius in enumerate((1, 2, 3)):
            (true, found), (hit, right) = (
                counts.boundary_pixels[:, part].sum(0),
                counts.boundary_matched[:, part, t].sum(0),
            )
            recall, precision = hit / true, right / found
            wanted = 2 * recall * precision / (recall + precision)
            assert metrics[f"boundary_F{radius}px/{name}"] == pytest.approx(wanted)
    overlaps = []
    for pred, truth in PAIRS:
        boxes = []
        for labels in (truth, pred):
            rows, cols = np.nonzero((labels > 0) & (truth != 255))
            mask = np.zeros(truth.shape, bool)
            if len(rows):
                mask[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1] = True
            boxes.append(mask)
        if (boxes[0] | boxes[1]).any():
            overlaps.append((boxes[0] & boxes[1]).sum() / (boxes[0] | boxes[1]).sum())
    assert metrics["box_IoU"] == pytest.approx(np.mean(overlaps))


def test_the_challenges_score_is_the_same_by_both_ways():
    counts = collect(PAIRS)
    rule = ChallengeRule((0.3, 0.55, 0.9), 0.2, 0.5)
    wanted = challenge_scores(counts.confusion, rule.thresholds, rule.panel_share, rule.empty_union)
    found = metrics_of(counts, rule)
    assert {key: found[key] for key in wanted} == pytest.approx(wanted)
    assert found["spark/score"] != metrics_of(counts)["spark/score"]


def test_the_curve_of_thresholds_averages_to_the_score():
    counts = collect(PAIRS)
    curve = threshold_curve(counts.confusion, ChallengeRule().thresholds)
    metrics = metrics_of(counts)
    assert curve["body"].mean() == pytest.approx(metrics["spark/body"])
    assert curve["panel"].mean() == pytest.approx(metrics["spark/panel"])
    assert (np.diff(curve["body"]) <= 0).all()


@pytest.mark.parametrize(
    "pairs",
    [[c[1:]] for c in adversarial()] + [[c[1:] for c in adversarial()]],
)
def test_never_a_nan_and_always_0_to_1(pairs):
    counts = collect(pairs)
    metrics = metrics_of(counts)
    for key, value in metrics.items():
        assert np.isfinite(value), key
        assert 0 <= value <= max(1, len(counts)), key
    assert "nan" not in "\n".join(table_lines(counts))
    for key, (value, counted) in image_values(counts).items():
        assert np.isfinite(value).all(), key
        assert not value[~counted].any() or key.startswith("spark"), key


def test_no_image_has_scores_too():
    metrics = metrics_of(ImageCounts.collect([]))
    assert metrics["images"] == 0
    assert set(metrics.values()) == {0}


def test_absent_classes_are_left_out_of_means_over_images():
    body = np.zeros((8, 8), np.uint8)
    body[2:5, 2:5] = 1
    both = body.copy()
    both[5, 5] = 2
    empty = np.zeros((8, 8), np.uint8)
    metrics = metrics_of(collect([(body, body), (both, both), (empty, empty)]))
    assert metrics["per_image/IoU/panel"] == 1.0
    assert metrics["per_image/mIoU/foreground"] == 1.0
    assert metrics["per_image/boundary_IoU/panel"] == 1.0
    assert metrics["box_IoU"] == 1.0
    imagined = metrics_of(collect([(body, body), (both, body)]))
    assert imagined["per_image/IoU/panel"] == 0.0
    assert metrics_of(collect([(body, empty)]))["box_IoU"] == 0.0
    assert metrics_of(collect([(empty, body)]))["box_IoU"] == 0.0


def test_sums_over_some_images_are_the_scores_of_those():
    counts = collect(PAIRS)
    sums = Sums(counts)
    which = np.array([1, 4, 5])
    found = sums.scores(sums.total(which))
    wanted = metrics_of(counts.take(which))
    assert all(value == wanted[key] for key, value in found.items())
    weights = np.zeros((2, len(counts)))
    weights[0, which] = weights[1] = 1
    weights[1, 0] = 2
    flat = sums.scores(sums.unflat(weights @ sums.flat()))
    assert {key: value[0] for key, value in flat.items()} == pytest.approx(
        {key: float(value) for key, value in found.items()}
    )
