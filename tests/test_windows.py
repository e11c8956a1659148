"""From the craft's box to the window that is looked at: the rule, its ends, and what counts as one place."""

from typing import Any

import numpy as np
import pytest

from spark_seg.errors import UserError
from spark_seg.windows import (
    Box,
    RoiRule,
    Window,
    craft_box,
    fallback_window,
    find_place,
    make_rule,
    place_window,
    whole_frame,
)

RULE = RoiRule(coarse=256, crops=(256, 384, 512), margin=0.1, least_margin=16)


def test_shares_become_pixels() -> None:
    rule = make_rule(512, {"coarse": 0.5, "crops": [1.0, 0.5, 0.75], "fallback": 2.0, "margin": 0})
    assert (rule.coarse, rule.crops, rule.fallback) == (256, (256, 384, 512), 1024)
    assert rule.margin == 0
    assert make_rule(500, {"crops": [0.5, 1]}).crops == (256, 500), "1.0 is the size itself"
    assert make_rule(64, {"crops": [0.5, 0.6, 1.0]}).crops == (32, 64), "equal ones are one"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"corse": 0.5}, "roi takes no 'corse'; did you mean 'coarse'"),
        ({"coarse": 0}, "roi.coarse=0: give a share of image_size from 0.05 to 2"),
        ({"coarse": "256"}, "roi.coarse='256'"),
        ({"crops": []}, "roi.crops="),
        ({"crops": [0.5]}, "the largest of them 1.0"),
        ({"crops": [0.5, 1.5]}, "the largest of them 1.0"),
        ({"fallback": 9}, "roi.fallback=9"),
        ({"margin": -0.1}, "roi.margin=-0.1: give a number from 0 to 2"),
        ({"mix": 1.2}, "roi.mix=1.2: give a number from 0 to 1"),
        ({"mix": True}, "roi.mix=True"),
        ({"sure": float("nan")}, "roi.sure=nan"),
        ({"threshold": 0.7}, "roi.sure=0.6 is below roi.threshold=0.7"),
        (0.5, "give a group of keys"),
    ],
)
def test_bad_values_in_one_line(given: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        make_rule(512, given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("box", "window"),
    [
        # 200 px and 20 on each side: 240; the rest of the crop of 256 is surroundings, its middle the box's
        ((400, 500, 600, 560), Window(372, 402, 256, 256)),
        # the longer side counts, whichever it is
        ((400, 500, 460, 700), Window(302, 472, 256, 256)),
        # 30 px: the least margin, the least crop
        ((0, 0, 30, 30), Window(0, 0, 256, 256)),
        # at the border: moved into the frame
        ((900, 900, 1024, 1024), Window(768, 768, 256, 256)),
        # 250 and 25: 300
        ((300, 300, 550, 550), Window(233, 233, 384, 384)),
        # 600 and 60: 720 is above the largest crop, and is shrunk to it
        ((100, 100, 700, 700), Window(40, 40, 720, 512)),
        # all of the frame
        ((0, 0, 1024, 1000), Window(0, 0, 1024, 512)),
    ],
)
def test_windows_of_boxes(box: Box, window: Window) -> None:
    assert place_window(box, 1024, 1024, RULE) == window


@pytest.mark.parametrize("size", [(1024, 1024), (768, 1280), (200, 130), (300, 900), (33, 33)])
def test_any_window_holds_its_box_and_stays_inside(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    height, width = size
    for _ in range(300):
        x0, x1 = sorted(rng.integers(0, width + 1, 2).tolist())
        y0, y1 = sorted(rng.integers(0, height + 1, 2).tolist())
        window = place_window((x0, y0, x1 + 1e-9, y1), height, width, RULE)
        assert window.size in RULE.crops
        assert window.size <= window.side
        assert window.side == window.size or window.size == RULE.crops[-1], (
            "only the largest shrinks"
        )
        assert window.side <= max(height, width, window.size)
        assert window.x <= x0
        assert x1 <= window.x + window.side
        assert window.y <= y0
        assert y1 <= window.y + window.side
        for start, length in ((window.x, width), (window.y, height)):
            if window.side <= length:
                assert 0 <= start <= length - window.side
            else:
                assert start == (length - window.side) // 2, "padded alike on both sides"
        left, right, top, bottom = window.padding(height, width)
        rows, columns = window.inside(height, width)
        assert top + (rows.stop - rows.start) + bottom == window.side
        assert left + (columns.stop - columns.start) + right == window.side


def test_whole_frames() -> None:
    assert whole_frame(768, 1024, 256) == Window(0, -128, 1024, 256)
    assert fallback_window(768, 1024, 512) == Window(0, -128, 1024, 512)
    assert fallback_window(300, 200, 512) == Window(-156, -106, 512, 512), "never enlarged"


def test_craft_box() -> None:
    mask = np.zeros((20, 30), np.uint8)
    assert craft_box(mask) is None
    mask[:, 0] = 255
    assert craft_box(mask) is None, "ignored pixels are no craft"
    mask[4, 7], mask[9, 20] = 1, 2
    assert craft_box(mask) == (7, 4, 21, 10)


def cells(*places: tuple[int, int, int, int, float], n: int = 64) -> np.ndarray:
    """Probabilities [n, n]: rectangles (x, y, w, h, p) on 0.01."""
    craft = np.full((n, n), 0.01, np.float32)
    for x, y, w, h, p in places:
        craft[y : y + h, x : x + w] = p
    return craft


def test_finds_a_box_in_the_frames_pixels() -> None:
    place = find_place(cells((10, 20, 5, 3, 0.9)), 1024, 1024, RULE)
    assert (place.box, place.reason) == ((160, 320, 240, 368), "found")
    # a wider frame lies in the middle of the square
    place = find_place(cells((10, 20, 5, 3, 0.9)), 768, 1024, RULE)
    assert place.box == (160, 192, 240, 240)
    # cells that reach beyond the frame are cut
    place = find_place(cells((0, 0, 64, 64, 0.9)), 500, 1024, RULE)
    assert place.box == (0, 0, 1024, 500)


def test_what_lies_in_the_padding_is_not_seen() -> None:
    place = find_place(cells((10, 2, 5, 3, 0.99), (30, 30, 4, 4, 0.9)), 512, 1024, RULE)
    assert place.reason == "found"
    assert place.box == (480, 224, 544, 288)


def test_weak_parts_belong_to_a_sure_place() -> None:
    place = find_place(cells((10, 20, 5, 3, 0.9), (15, 20, 6, 2, 0.4)), 1024, 1024, RULE)
    assert place.box == (160, 320, 336, 368)


def test_near_parts_are_one_place_and_far_ones_two() -> None:
    near = find_place(cells((10, 20, 5, 3, 0.9), (20, 20, 5, 3, 0.9)), 1024, 1024, RULE)
    assert near.box == (160, 320, 400, 368)
    far = find_place(cells((10, 20, 5, 3, 0.9), (40, 20, 5, 3, 0.9)), 1024, 1024, RULE)
    assert (far.box, far.reason) == (None, "two places")


def test_a_weak_second_place_is_left_out() -> None:
    place = find_place(cells((10, 20, 5, 3, 0.9), (40, 50, 2, 2, 0.5)), 1024, 1024, RULE)
    assert place.box == (160, 320, 240, 368)


@pytest.mark.parametrize(
    ("craft", "reason"),
    [
        (cells(), "nothing"),
        (cells((10, 10, 5, 5, 0.5)), "unsure"),
        (np.full((64, 64), np.nan, np.float32), "nothing"),
    ],
)
def test_reasons_to_look_at_the_whole_frame(craft: np.ndarray, reason: str) -> None:
    place = find_place(craft, 1024, 1024, RULE)
    assert (place.box, place.reason) == (None, reason)
