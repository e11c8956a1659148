"""The pictures of a report: which images, what part of them, and that they survive the disk."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from spark_seg.errors import UserError
from spark_seg.evaluation.report.pictures import (
    SIDE,
    TILES,
    Picture,
    choose,
    load_pictures,
    render,
    save_pictures,
    window,
)


def test_choice() -> None:
    ids = [f"i{n}" for n in range(10)]
    order = np.array([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    found = choose(ids, order, 2)
    of = {
        name: [key for key, sets in found.items() if name in sets]
        for name in ("worst", "median", "spread")
    }
    assert of["worst"] == ["i3", "i1"]
    assert of["median"] == ["i5", "i9"]
    assert sorted(of["spread"]) == ["i2", "i7"]
    assert choose(ids, order, 0) == {}
    everything = choose(ids, order, 50)
    assert list(everything) == [ids[n] for n in order]
    assert all(sets == ("worst", "median", "spread") for sets in everything.values())


def test_window_holds_the_true_craft_and_stays_in_the_frame() -> None:
    truth = np.zeros((200, 300), np.uint8)
    prediction = np.zeros_like(truth)
    assert window(truth, prediction) == (0, 0, 300, 200)
    prediction[10:20, 10:40] = 1
    x0, y0, x1, y1 = window(truth, prediction)
    assert (x0, y0) == (1, 0)
    assert (x1 - x0, y1 - y0) == (48, 48)
    truth[150:200, 280:300] = 2
    truth[0, 0] = 255
    x0, y0, x1, y1 = window(truth, prediction)
    assert (x1, y1) == (300, 200)
    assert (x1 - x0, y1 - y0) == (65, 65)
    truth[:] = 1
    assert window(truth, prediction) == (0, 0, 300, 200)


def test_render_shows_each_error_in_its_colour() -> None:
    image = np.full((400, 400, 3), 90, np.uint8)
    truth = np.zeros((400, 400), np.uint8)
    truth[100:200, 100:200] = 1
    truth[100:200, 200:300] = 2
    prediction = truth.copy()
    prediction[100:200, 100:150] = 0  # missed
    prediction[100:200, 250:300] = 1  # wrong part
    prediction[380:400, 0:20] = 2  # false alarm far off
    area, tiles = render(image, truth, prediction)
    assert area == (70, 20, 330, 280)
    shown = {
        n: cv2.imdecode(np.frombuffer(t, np.uint8), 1) for n, t in zip(TILES, tiles, strict=True)
    }
    assert {tile.shape for tile in shown.values()} == {(SIDE, SIDE, 3)}

    def at(tile: str, x: int, y: int) -> np.ndarray:
        scale = SIDE / 260
        return shown[tile][round((y - 20) * scale), round((x - 70) * scale)].astype(int)

    np.testing.assert_allclose(at("errors", 125, 150), (0, 94, 213), atol=12)
    np.testing.assert_allclose(at("errors", 275, 150), (66, 228, 240), atol=12)
    assert np.ptp(at("errors", 175, 150)) < 8  # right: grey
    assert at("truth", 125, 150)[2] > at("truth", 125, 150)[0]  # body reddish
    assert at("truth", 275, 150)[0] > at("truth", 275, 150)[2]  # panel bluish
    np.testing.assert_allclose(shown["frame"][-6, 6].astype(int), (233, 180, 86), atol=12)


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (1024, 1024), (7, 2)])
def test_render_of_any_size(shape: tuple[int, int]) -> None:
    image, labels = np.zeros((*shape, 3), np.uint8), np.ones(shape, np.uint8)
    _, tiles = render(image, labels, 2 * labels)
    assert all(tile[:3] == b"\xff\xd8\xff" for tile in tiles)


def test_save_and_load(tmp_path: Path) -> None:
    one = Picture(
        "XMM Newton/val/ü",
        ("worst",),
        (0, 1, 2, 3),
        (4, 5),
        tuple(bytes([n]) * 9 for n in range(5)),
    )
    save_pictures(tmp_path / "p.npz", [one], {"split": "val"})
    assert load_pictures(tmp_path / "p.npz") == ([one], {"split": "val"})
    save_pictures(tmp_path / "p.npz", [])
    assert load_pictures(tmp_path / "p.npz") == ([], {})
    (tmp_path / "p.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"p\.npz"):
        load_pictures(tmp_path / "p.npz")
