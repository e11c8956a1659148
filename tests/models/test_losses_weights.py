"""Class weights from the data, by hand."""

import math

import numpy as np
import pytest

from spark_seg.errors import UserError
from spark_seg.models.losses_weights import check_weights, class_weights

# two frames of 100 pixels; class 2 is in the second alone
COUNTS = np.array([[90, 10, 0], [80, 15, 5]])


def test_median_frequency() -> None:
    frequency = [170 / 200, 25 / 200, 5 / 100]
    raw = [(25 / 200) / f for f in frequency]
    wanted = [w * 3 / sum(raw) for w in raw]
    assert class_weights(COUNTS, {"type": "median_frequency", "cap": 100}) == pytest.approx(wanted)


def test_effective_number() -> None:
    beta = 0.9
    raw = [(1 - beta) / (1 - beta ** (n / 100)) for n in (170, 25, 5)]
    wanted = [w * 3 / sum(raw) for w in raw]
    got = class_weights(COUNTS, {"type": "effective_number", "beta": beta, "cap": 100})
    assert got == pytest.approx(wanted)
    # ever larger beta tends to the inverse frequency
    got = class_weights(COUNTS, {"type": "effective_number", "beta": 1 - 1e-9, "cap": 100})
    assert got[2] / got[1] == pytest.approx(5, rel=1e-6)
    assert all(map(math.isfinite, got))


def test_cap_and_absent_class() -> None:
    plain = class_weights(COUNTS, {"type": "median_frequency", "cap": 100})
    assert max(plain) / min(plain) == pytest.approx(17)
    capped = class_weights(COUNTS, {"type": "median_frequency", "cap": 5})
    # by hand: 0.147, 1 and 2.5, of which the last two become five times the first
    assert capped == pytest.approx([3 / 11, 15 / 11, 15 / 11])
    default = class_weights(COUNTS, "median_frequency")
    assert max(default) / min(default) == pytest.approx(10), "a cap that can act on three classes"
    assert np.mean(default) == pytest.approx(1)
    got = class_weights(np.array([[50, 50, 0]]), "median_frequency")
    assert got == pytest.approx([1, 1, 0])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("median", "did you mean 'median_frequency'"),
        ({"type": "median_frequency", "beta": 0.9}, "takes no 'beta'"),
        ({"type": "effective_number", "beta": 1}, "beta=1 must lie"),
        ({"type": "effective_number", "cap": 0}, "cap=0 is the largest weight over the smallest"),
        ([1, 2], "2 values, but num_classes is 3"),
        ([0, 0, 0], "not all may be 0"),
        ([1, -1, 1], "finite numbers from 0"),
    ],
)
def test_wrong_values(given: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_weights(given, 3)


def test_right_values() -> None:
    check_weights([1, 2.5, 0], 3)
    check_weights("effective_number", 3)
