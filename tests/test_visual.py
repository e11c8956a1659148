"""Overlays and sheets: right colours in the right places, pictures whole on disk."""

import cv2
import numpy as np
import pytest

from spark_seg.errors import UserError
from spark_seg.visual import (
    ERROR_COLOURS,
    PART_COLOURS,
    OverlayRow,
    contact_sheet,
    error_overlay,
    overlay,
    overlay_sheet,
    save_overlay_sheet,
    save_png,
)


def scene(size=(60, 80)):
    image = np.full((*size, 3), 100, np.uint8)
    labels = np.zeros(size, np.uint8)
    labels[10:30, 10:30], labels[10:30, 40:60] = 1, 2
    return image, labels


def test_parts_are_tinted_with_a_thin_contour():
    image, labels = scene()
    before = image.copy()
    shown = overlay(image, labels, alpha=0.5)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(shown[labels == 0], image[labels == 0])
    for part, left in ((1, 10), (2, 40)):
        colour = np.array(PART_COLOURS[part])
        inside = shown[20, left + 10].astype(int)
        assert np.abs(inside - (100 + colour) / 2).max() <= 1
        assert tuple(shown[20, left]) == PART_COLOURS[part]
        assert tuple(shown[20, left + 1]) != PART_COLOURS[part]
    blue, _, red = shown[20, 20].astype(int)
    assert red > blue
    blue, _, red = shown[20, 50].astype(int)
    assert blue > red


def test_alpha_and_contour_can_be_switched_off():
    image, labels = scene()
    np.testing.assert_array_equal(overlay(image, labels, alpha=0, contour=False), image)
    only_contour = overlay(image, labels, alpha=0)
    assert tuple(only_contour[20, 10]) == PART_COLOURS[1]
    np.testing.assert_array_equal(only_contour[20, 20], image[20, 20])


def test_the_frames_border_is_no_contour_and_lines_of_one_pixel_are_seen():
    image, labels = scene()
    labels[:] = 0
    labels[:, 70:] = 1
    labels[50, :60] = 2
    shown = overlay(image, labels)
    assert tuple(shown[30, 79]) != PART_COLOURS[1]
    assert tuple(shown[30, 70]) == PART_COLOURS[1]
    assert tuple(shown[50, 30]) == PART_COLOURS[2]


def test_ignored_pixels_stay_as_they_are():
    image, labels = scene()
    labels[:] = 255
    np.testing.assert_array_equal(overlay(image, labels), image)


def test_errors_by_kind():
    image, truth = scene()
    pred = truth.copy()
    pred[10:30, 10:20] = 0
    pred[40:50, 10:20] = 1
    pred[10:30, 40:50] = 1
    truth[0:5, 0:5] = 255
    pred[0:5, 0:5] = 2
    shown = error_overlay(image, pred, truth)
    assert tuple(shown[20, 15]) == ERROR_COLOURS["missed"]
    assert tuple(shown[45, 15]) == ERROR_COLOURS["false alarm"]
    assert tuple(shown[20, 45]) == ERROR_COLOURS["wrong part"]
    assert tuple(shown[2, 2]) == tuple(shown[20, 55]) == (60, 60, 60)


def test_sizes_must_agree():
    image, labels = scene()
    for call in (
        lambda: overlay(image, labels[1:]),
        lambda: error_overlay(image, labels[1:], labels),
        lambda: error_overlay(image, labels, labels[1:]),
    ):
        with pytest.raises(ValueError, match="differ in size"):
            call()


def test_contact_sheet_places_tiles_row_by_row():
    colours = [(0, 0, 200), (0, 200, 0), (200, 0, 0), (0, 200, 200), (200, 200, 0)]
    tiles = [np.full((30, 30, 3), colour, np.uint8) for colour in colours]
    sheet = contact_sheet(tiles, 2, (30, 30), gap=4)
    assert sheet.shape == (4 + 3 * 34, 4 + 2 * 34, 3)
    for index, colour in enumerate(colours):
        y, x = 4 + index // 2 * 34, 4 + index % 2 * 34
        assert (sheet[y : y + 30, x : x + 30] == colour).all()


def test_tiles_of_other_proportions_are_fitted_whole():
    tile = np.full((100, 50, 3), 200, np.uint8)
    sheet = contact_sheet([tile], 1, (40, 40), gap=0)
    inside = (sheet == 200).all(-1)
    assert inside[:, 10:30].all()
    assert not inside[:, :10].any()
    assert not inside[:, 30:].any()


def test_captions_are_written_within_their_tile():
    tiles = [np.zeros((50, 120, 3), np.uint8)] * 2
    bare = contact_sheet(tiles, 2, (120, 50), ["", ""], header="all of it")
    text = contact_sheet(tiles, 2, (120, 50), ["XMM Newton/val/image_00001 " * 4, ""], "all of it")
    changed = (bare != text).any(-1)
    assert changed.any()
    rows, columns = np.nonzero(changed)
    assert columns.max() < 6 + 120
    assert rows.min() >= 28 + 50


def test_wrong_use_is_refused():
    tile = np.zeros((5, 5, 3), np.uint8)
    with pytest.raises(ValueError, match="needs a tile"):
        contact_sheet([], 3)
    with pytest.raises(ValueError, match="captions"):
        contact_sheet([tile], 1, captions=["a", "b"])


def test_a_sheet_has_the_columns_that_there_is_something_for():
    image, labels = scene()
    size = (80, 60)

    def columns(*rows, **options):
        return (overlay_sheet(rows, size, **options).shape[1] - 6) // 86

    assert columns(("a", image)) == 1
    assert columns(("a", image, None, labels)) == 2
    assert columns(("a", image, labels, labels)) == 3
    assert columns(OverlayRow("a", image, labels, labels, "IoU 1"), errors=True) == 4
    assert columns(OverlayRow("a", image, labels), ("b", image), errors=True) == 2


def test_the_sheet_shows_truth_and_prediction_in_that_order():
    image, labels = scene()
    sheet = overlay_sheet([("a", image, labels, np.zeros_like(labels))], (80, 60), header="x")
    top = 6 + 22
    cells = [sheet[top : top + 60, 6 + 86 * k : 86 + 86 * k] for k in range(3)]
    np.testing.assert_array_equal(cells[0], image)
    np.testing.assert_array_equal(cells[1], overlay(image, labels))
    np.testing.assert_array_equal(cells[2], image)


def test_the_sheet_is_written_whole(tmp_path):
    image, labels = scene()
    path = tmp_path / "sheet.png"
    save_overlay_sheet(path, [("a", image, labels, labels)], (80, 60), errors=True)
    expected = overlay_sheet([("a", image, labels, labels)], (80, 60), errors=True)
    np.testing.assert_array_equal(cv2.imread(str(path)), expected)
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save_png(tmp_path / "file" / "a.png", np.zeros((4, 4, 3), np.uint8))
