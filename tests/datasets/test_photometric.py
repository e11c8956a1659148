"""The colour transform."""

import cv2
import numpy as np
import pytest

from spark_seg.datasets.transforms.photometric import ColorJitter
from spark_seg.errors import UserError


def picture() -> np.ndarray:
    rng = np.random.default_rng(0)
    img = cv2.GaussianBlur(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), (0, 0), 5)
    return cv2.normalize(img, None, 0, 255, cv2.NORM_MINMAX)


def test_nothing_drawn_nothing_changed():
    img = picture()
    results = ColorJitter(0, 0, 0, 0)({"img": img})
    assert results["img"] is img


def test_brightness_multiplies(monkeypatch):
    monkeypatch.setattr(np.random, "uniform", lambda low, high: high)
    img = picture()
    out = ColorJitter(0.2, 0, 0, 0)({"img": img.copy()})["img"]
    assert np.abs(out - np.minimum(img * 1.2, 255)).max() <= 0.5 + 1e-6


def test_contrast_keeps_the_mean_grey(monkeypatch):
    monkeypatch.setattr(np.random, "uniform", lambda low, high: low)
    img = picture()
    out = ColorJitter(0, 0.5, 0, 0)({"img": img.copy()})["img"]
    grey = cv2.cvtColor(img, cv2.COLOR_BGR2GRAY).mean()
    assert abs(cv2.cvtColor(out, cv2.COLOR_BGR2GRAY).mean() - grey) < 1
    assert abs(out.std() / img.std() - 0.5) < 0.02


def test_saturation_and_hue(monkeypatch):
    monkeypatch.setattr(np.random, "uniform", lambda low, high: high)
    img = np.full((4, 4, 3), (60, 80, 200), np.uint8)  # a red
    vivid = ColorJitter(0, 0, 0.3, 0)({"img": img})["img"][0, 0].astype(int)
    assert vivid.max() == 200
    assert vivid.min() < 20
    turned = ColorJitter(0, 0, 0, 1 / 3)({"img": img})["img"][0, 0]
    assert turned.argmax() == 1  # red turns green
    assert turned.max() == 200
    grey = np.full((4, 4, 3), 90, np.uint8)
    np.testing.assert_array_equal(ColorJitter(0, 0, 0.3, 0.5)({"img": grey})["img"], grey)


def test_colours_vary_within_bounds():
    np.random.seed(0)  # noqa: NPY002
    img = np.full((8, 8, 3), 100, np.uint8)
    means = [ColorJitter(contrast=0)({"img": img})["img"].mean() for _ in range(200)]
    assert 79.5 <= min(means) < 82
    assert 118 < max(means) <= 120.5


@pytest.mark.parametrize(
    "options", [{"brightness": -0.1}, {"contrast": 1.1}, {"saturation": 2}, {"hue": 0.6}]
)
def test_impossible_jitter(options):
    with pytest.raises(UserError, match=next(iter(options))):
        ColorJitter(**options)


# ------------------------------------------------------------------------ YIQ


def test_one_matrix_makes_brightness_and_contrast_alike(monkeypatch):
    """Without saturation and hue both spaces do the same, to a level of rounding."""
    img = picture()
    for edge in (0, 1):
        monkeypatch.setattr(np.random, "uniform", lambda low, high, edge=edge: (low, high)[edge])
        hsv, yiq = (
            ColorJitter(0.3, 0.4, 0, 0, space=s)({"img": img})["img"] for s in ("hsv", "yiq")
        )
        assert np.abs(hsv.astype(int) - yiq).max() <= 1


def test_saturation_and_hue_in_yiq(monkeypatch):
    monkeypatch.setattr(np.random, "uniform", lambda low, high: high)
    img = np.full((4, 4, 3), (60, 80, 200), np.uint8)  # a red
    grey = cv2.cvtColor(img, cv2.COLOR_BGR2GRAY)[0, 0]
    vivid = ColorJitter(0, 0, 0.3, 0, space="yiq")({"img": img})["img"]
    np.testing.assert_allclose(vivid[0, 0], grey + 1.3 * (img[0, 0].astype(float) - grey), atol=1.5)
    turned = ColorJitter(0, 0, 0, 1 / 3, space="yiq")({"img": img})["img"]
    assert turned[0, 0].argmax() == 1  # red turns green
    for out in (vivid, turned):
        assert abs(int(cv2.cvtColor(out, cv2.COLOR_BGR2GRAY)[0, 0]) - int(grey)) <= 1
    once_round = ColorJitter(0, 0, 0, 0.5, space="yiq")
    # opposite colours clip; a pale one comes back
    pale = np.full((4, 4, 3), (110, 120, 140), np.uint8)
    half = once_round({"img": once_round({"img": pale})["img"]})["img"]
    assert np.abs(half.astype(int) - pale).max() <= 1
    neutral = np.full((4, 4, 3), 90, np.uint8)
    np.testing.assert_array_equal(
        ColorJitter(0, 0, 0.3, 0.5, space="yiq")({"img": neutral})["img"], neutral
    )


def test_both_spaces_draw_the_same_numbers():
    after = []
    for space in ("hsv", "yiq"):
        np.random.seed(4)  # noqa: NPY002
        ColorJitter(space=space)({"img": picture()})
        after.append(np.random.rand())  # noqa: NPY002
    assert after[0] == after[1]
    with pytest.raises(UserError, match="did you mean 'yiq'"):
        ColorJitter(space="yqi")


def test_hsv_by_channels_is_hsv_by_one_table(monkeypatch):
    """The separate planes give what one table over all three channels gave."""
    img, steps = picture(), np.arange(256)
    monkeypatch.setattr(np.random, "uniform", lambda low, high: high)
    out = ColorJitter(0, 0, 0.3, 0.1)({"img": img})["img"]
    table = np.stack(
        [(steps + round(0.1 * 256)) % 256, np.minimum(np.rint(steps * 1.3), 255), steps], axis=1
    )
    hsv = cv2.LUT(
        cv2.cvtColor(img, cv2.COLOR_BGR2HSV_FULL), table.astype(np.uint8).reshape(256, 1, 3)
    )
    np.testing.assert_array_equal(out, cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR_FULL))
