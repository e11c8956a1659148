"""The SPARK challenge's score as it is believed to be (one participant's reimplementation).

Per image and at full resolution the IoU of the body and of the panel each earn the share of the
thresholds 0.50, 0.55 ... 0.95 that they reach (a threshold that is met exactly is reached). A
part's score is its mean over the images where it counts; the score is half body, half panel.

Corners, each a stated choice:
- The body counts in every image; an image without body earns 0 for it, whatever was predicted.
- The panel counts where its true area is at least 5 % of the true body's. Taken literally this
  counts it in an image with neither part (0 >= 0).
- An empty union (neither true nor predicted) earns `empty_union`, 0 by default, where it counts.
- Where no image counts, the part's score is 0; `spark/panel_images` says in how many the panel did.

Comparisons are between integers, so that no rounding decides who meets a threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from spark_seg.errors import UserError
from spark_seg.evaluation.counts import false_negatives, false_positives, true_positives
from spark_seg.labels import CLASSES

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
PANEL_SHARE = 0.05
_BODY, _PANEL = CLASSES.index("body"), CLASSES.index("panel")


@dataclass(frozen=True)
class ChallengeRule:
    """The score's parameters, so that a correction of what is believed is a matter of one value.

    Attributes:
        thresholds: IoU values to reach, each reached when met exactly.
        panel_share: Least true panel area, as a share of the true body area, at which the panel of
            an image counts.
        empty_union: What a part that counts earns where it is neither true nor predicted.

    Raises:
        UserError: No threshold, or a value outside 0..1 (panel_share: below 0).
    """

    thresholds: tuple[float, ...] = THRESHOLDS
    panel_share: float = PANEL_SHARE
    empty_union: float = 0.0

    def __post_init__(self) -> None:
        if not self.thresholds or not all(0 <= value <= 1 for value in self.thresholds):
            raise UserError(f"thresholds={list(self.thresholds)}: give IoU values from 0 to 1")
        if not self.panel_share >= 0:
            raise UserError(f"panel_share={self.panel_share}: give a share from 0 up")
        if not 0 <= self.empty_union <= 1:
            raise UserError(f"empty_union={self.empty_union}: give a value from 0 to 1")


BELIEVED = ChallengeRule()
"""The score as it is believed to be."""


def _exact(value: float) -> Fraction:
    """The decimal that was written: 0.55 is 11/20, not its nearest binary neighbour."""
    return Fraction(value).limit_denominator(1_000_000)


def part_credit(
    stack: np.ndarray, thresholds: Sequence[float] = THRESHOLDS, empty_union: float = 0.0
) -> np.ndarray:
    """The share of thresholds that each class's IoU reaches in each image.

    Args:
        stack: Counts [N, 3, 3] of single images.
        thresholds: IoU values, each reached when met exactly.
        empty_union: What a class earns where it is neither true nor predicted.

    Returns:
        float64 [N, 3] in 0..1, for background, body and panel.
    """
    if not thresholds:
        raise ValueError("the score needs at least one threshold")
    stack = np.asarray(stack, np.int64).reshape(-1, len(CLASSES), len(CLASSES))
    hit = true_positives(stack)
    union = hit + false_positives(stack) + false_negatives(stack)
    levels = [_exact(value) for value in thresholds]
    reached = sum(
        (hit * level.denominator >= level.numerator * union).astype(np.int64) for level in levels
    )
    return np.where(union > 0, reached / len(levels), float(empty_union))


def panel_counts(stack: np.ndarray, share: float = PANEL_SHARE) -> np.ndarray:
    """Where the panel counts: true panel area >= `share` of true body area; bool [N]."""
    area = np.asarray(stack, np.int64).reshape(-1, len(CLASSES), len(CLASSES)).sum(-1)
    limit = _exact(share)
    return area[:, _PANEL] * limit.denominator >= limit.numerator * area[:, _BODY]


def challenge_scores(
    stack: np.ndarray,
    thresholds: Sequence[float] = THRESHOLDS,
    panel_share: float = PANEL_SHARE,
    empty_union: float = 0.0,
) -> dict[str, float]:
    """The challenge's score over a split.

    Args:
        stack: Counts [N, 3, 3] of single images at full resolution; N may be 0.
        thresholds: IoU values to reach.
        panel_share: Least true panel area, as a share of the true body area, at which the panel of
            an image counts.
        empty_union: What a part that counts earns where it is neither true nor predicted.

    Returns:
        `spark/score`, `spark/body`, `spark/panel` in 0..1 and `spark/panel_images`, the number of
        images whose panel counts.
    """
    stack = np.asarray(stack, np.int64).reshape(-1, len(CLASSES), len(CLASSES))
    credit = part_credit(stack, thresholds, empty_union)
    counted = panel_counts(stack, panel_share)
    body = float(credit[:, _BODY].mean()) if len(stack) else 0.0
    panel = float(credit[counted, _PANEL].mean()) if counted.any() else 0.0
    return {
        "spark/score": 0.5 * body + 0.5 * panel,
        "spark/body": body,
        "spark/panel": panel,
        "spark/panel_images": int(counted.sum()),
    }


def threshold_curve(
    stack: np.ndarray, levels: Sequence[float], rule: ChallengeRule = BELIEVED
) -> dict[str, np.ndarray]:
    """How many images reach an IoU: what the score averages over its thresholds.

    Args:
        stack: Counts [N, 3, 3] of single images.
        levels: IoU values, L of them.
        rule: Which panels count, and what an empty union earns.

    Returns:
        float64 [L] under `body` and `panel`: the share of images in which the part counts that
        reach each level; 0 where no image counts.
    """
    stack = np.asarray(stack, np.int64).reshape(-1, len(CLASSES), len(CLASSES))
    rows = [
        challenge_scores(stack, [level], rule.panel_share, rule.empty_union) for level in levels
    ]
    return {part: np.array([row[f"spark/{part}"] for row in rows]) for part in ("body", "panel")}
