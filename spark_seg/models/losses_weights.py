"""Class weights computed from the training data."""

from typing import Any

import numpy as np

from spark_seg.errors import UserError, nearest

KINDS = ("median_frequency", "effective_number")


def check_weights(given: Any, classes: int) -> None:
    """Raises unless a config's `class_weights` can be made into one weight per class.

    Args:
        given: Numbers; the name of a kind; or `dict(type=<kind>, cap=..., beta=...)`.
        classes: How many there are.

    Raises:
        UserError: Unknown kind or option, wrong length, value out of range.
    """
    if isinstance(given, str | dict):
        class_weights(np.ones((1, classes), np.int64), given)
        return
    numbers = list(given)
    if len(numbers) != classes:
        raise UserError(
            f"class_weights has {len(numbers)} values, but num_classes is {classes}: give one per class"
        )
    if any(
        isinstance(w, bool) or not isinstance(w, int | float) or not 0 <= w < float("inf")
        for w in numbers
    ):
        raise UserError(f"class_weights={numbers}: give finite numbers from 0 up")  # fmt: skip
    if not any(numbers):
        raise UserError(f"class_weights={numbers}: not all may be 0")


def class_weights(counts: np.ndarray, kind: str | dict[str, Any]) -> list[float]:
    """Weights by how rare a class is, capped, with mean 1 over the classes that occur.

    - `median_frequency` (Eigen & Fergus 2015, arXiv:1411.4734): the median of the classes' frequencies over each class'
      own, a frequency being the class' share of the pixels of those frames in which it occurs.
    - `effective_number` (Cui et al. 2019, arXiv:1901.05555): `(1 - beta) / (1 - beta ** n)`, n the class' pixels
      counted in whole frames (their pixels would be too many for any beta to tell classes apart).

    Args:
        counts: Pixels by frame and class, int [frames, C].
        kind: The name, or a dict with it as `type` and `cap` (the largest weight over the smallest,
            default 10) or `beta` (default 0.999).

    Returns:
        C floats, 0 for a class that does not occur.

    Raises:
        UserError: Unknown kind or option, or a value out of range.
    """
    options = {"type": kind} if isinstance(kind, str) else dict(kind)
    name = options.pop("type", None)
    if name not in KINDS:
        raise UserError(
            f"class_weights: no {name!r}; give numbers, {' or '.join(KINDS)}{nearest(str(name), KINDS)}"
        )
    known = {"cap": 10.0} | ({"beta": 0.999} if name == "effective_number" else {})
    for key in options:
        if key not in known:
            raise UserError(f"class_weights: {name} takes no {key!r}{nearest(key, known)}")
    values: dict[str, Any] = {**known, **options}
    if not values["cap"] >= 1:
        raise UserError(
            f"class_weights: cap={values['cap']} is the largest weight over the smallest, 1 or more"
        )
    if name == "effective_number" and not 0 < values["beta"] < 1:
        raise UserError(f"class_weights: beta={values['beta']} must lie between 0 and 1")
    total = counts.sum(0).astype(np.float64)
    there = total > 0
    weights = np.zeros(counts.shape[1])
    if name == "median_frequency":
        where = ((counts > 0) * counts.sum(1, keepdims=True)).sum(
            0
        )  # pixels of the frames that have the class
        frequency = total[there] / where[there]
        weights[there] = np.median(frequency) / frequency
    else:
        frames = total[there] / max(1.0, float(counts.sum(1).mean()))
        weights[there] = (1 - values["beta"]) / -np.expm1(frames * np.log(values["beta"]))
    weights[there] = np.minimum(weights[there], values["cap"] * weights[there].min())
    return [float(w) for w in weights * there.sum() / weights.sum()]
