"""Rendered frames: the craft, their labels, the statistics of the real set, speed."""

import time

import cv2
import numpy as np
import pytest

from spark_seg.datasets.demo.craft import craft
from spark_seg.datasets.demo.geometry import BODY, PANEL, Builder, frame
from spark_seg.datasets.demo.materials import INDEX
from spark_seg.datasets.demo.raster import place, zbuffer
from spark_seg.datasets.demo.render import Rendered, box_of, draw_craft, render
from spark_seg.datasets.demo.scene import Pose, random_rotation
from spark_seg.datasets.demo.shade import Light
from spark_seg.datasets.layout import SATELLITES

FACING = np.diag([1.0, -1.0, -1.0]).astype(np.float32)  # the craft's +z towards the camera
SMALL = 128


def light(sun: tuple[float, float, float] = (0, 0, -1), ambient: float = 0.01) -> Light:
    zero = np.zeros(3, np.float32)
    return Light(np.array(sun, np.float32), 1.0, zero, zero, ambient)


def draw(mesh, rotation=FACING, lamp=None, size=128, distance=10.0, focal=4.0):  # type: ignore[no-untyped-def]
    image = np.full((size, size, 3), 90, np.uint8)
    pose = Pose(rotation, distance, focal, (0.5, 0.5))
    return image, draw_craft(image, mesh, pose, lamp or light())


def plate(**options):  # type: ignore[no-untyped-def]
    b = Builder()
    b.panel(
        (0, 0, 0),
        (1.0, 1.0),
        frame((0, 0, 0)),
        INDEX["cells_blue"],
        INDEX["white"],
        INDEX["metal"],
        **options,
    )
    return b.mesh()


@pytest.fixture(scope="module")
def frames() -> list[Rendered]:
    return [render(0, "train", i, SMALL) for i in range(260)]


@pytest.mark.parametrize("name", SATELLITES)
def test_every_craft_shows_body_and_panel_from_somewhere(name: str) -> None:
    mesh = craft(name)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(12):
        _, labels = draw(mesh, random_rotation(rng), distance=4 * mesh.radius, focal=1.8)
        seen |= set(np.unique(labels).tolist())
    assert seen == {0, BODY, PANEL}


def test_craft_are_of_different_shapes() -> None:
    shapes = {
        (len(craft(n).verts), len(craft(n).faces), round(craft(n).radius, 2)) for n in SATELLITES
    }
    assert len(shapes) == len(SATELLITES)


def test_cell_side_is_panel_and_its_back_is_body() -> None:
    _, front = draw(plate())
    _, back = draw(plate(), np.eye(3, dtype=np.float32))
    assert set(np.unique(front)) == {0, PANEL}
    assert set(np.unique(back)) == {0, BODY}
    # One metre at ten metres with a focal length of 4 frames: 0.4 of the frame.
    assert (front == PANEL).mean() == pytest.approx(0.16, rel=0.06)


def test_border_of_a_panel_is_body() -> None:
    _, labels = draw(plate(border=0.1))
    assert (labels == PANEL).sum() / (labels > 0).sum() == pytest.approx(0.64, rel=0.08)


def test_nearer_parts_hide_farther_ones_even_where_they_cross() -> None:
    b = Builder()
    # Two plates that cross along the x axis like an X: no order of drawing is right, only depth is.
    for tilt, label in ((0.5, BODY), (-0.5, PANEL)):
        points = [[-1, -1, -tilt], [1, -1, -tilt], [1, 1, tilt], [-1, 1, tilt]]
        b.poly(points, INDEX["white"], label, inside=(0, 0, -9))
    _, labels = draw(b.mesh(), focal=3.0)
    rows = np.flatnonzero((labels > 0).any(1))
    upper, lower = rows[len(rows) // 4], rows[3 * len(rows) // 4]
    # +y is up in the picture; there the first plate is the nearer one.
    assert (labels[upper][labels[upper] > 0] == BODY).all()
    assert (labels[lower][labels[lower] > 0] == PANEL).all()


def test_unlit_parts_are_dark_and_labelled() -> None:
    lit, labels = draw(plate(), np.eye(3, dtype=np.float32), light((0, 0, -1)))
    unlit, same = draw(plate(), np.eye(3, dtype=np.float32), light((0, 0, 1)))
    np.testing.assert_array_equal(labels, same)
    assert lit[labels > 0].mean() > 180
    assert unlit[labels > 0].mean() < 40


def test_parts_cast_shadows() -> None:
    b = Builder()
    b.box((0, 0, 0), (2, 2, 0.1), INDEX["white"])
    b.box((0, 0, 1.0), (0.5, 0.5, 0.1), INDEX["white"])
    slanted = np.array([1.0, 0.0, -1.0]) / np.sqrt(2)  # from the right, towards the viewer
    image, labels = draw(b.mesh(), lamp=light(tuple(slanted)), focal=3.0)
    row = image[64, :, 1].astype(int)
    covered = np.flatnonzero(labels[64])
    dark = [x for x in covered if row[x] < 60]
    assert dark, "no shadow"
    assert max(dark) < 64, "the shadow falls away from the sun"


def test_booms_are_drawn_however_thin() -> None:
    b = Builder()
    b.rod((-1, -0.3, 0), (1, 0.3, 0), 0.0005, INDEX["metal"])
    b.box((0, 0, 0), (0.2, 0.2, 0.2), INDEX["white"])
    _, labels = draw(b.mesh(), size=256, focal=4.0)
    width = (labels > 0).sum(0)
    box = box_of(labels)
    assert box is not None
    assert box[2] - box[0] > 190
    assert np.median(width[box[0] : box[0] + 60]) in (1, 2)
    assert (width[box[0] : box[2]] > 0).mean() > 0.97


def test_depth_is_that_of_the_plane() -> None:
    soup = place(plate(), FACING, 10.0, 0.01)
    face, near = zbuffer(soup, (64, 64), 200.0, (32.0, 32.0))
    assert near[32, 32] == pytest.approx(1 / 10.0, rel=0.01)
    assert face[0, 0] == -1


def test_edges_are_antialiased_but_labels_are_not() -> None:
    turned = FACING @ np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]], np.float32)
    dark = light((0, 0, 1), ambient=0.0)
    image, labels = draw(plate(), turned.astype(np.float32), dark)
    grey = image[..., 1]
    between = (grey > 5) & (grey < 85)  # neither the black plate nor the background of 90
    perimeter = 4 * 0.4 * 128
    assert 0.3 * perimeter < between.sum() < 3 * perimeter
    assert set(np.unique(labels)) == {0, PANEL}


def test_geometry_does_not_depend_on_the_size() -> None:
    for index in (1, 4, 9):
        small, large = render(3, "val", index, 128), render(3, "val", index, 512)
        assert small.background == large.background
        ratio = np.array(large.box) / 4 - np.array(small.box)
        assert np.abs(ratio).max() <= 2.5, (small.box, large.box)
        shrunk = cv2.resize(large.labels, (128, 128), interpolation=cv2.INTER_NEAREST)
        assert (shrunk == small.labels).mean() > 0.98


@pytest.mark.parametrize("size", [32, 33, 100, 257])
def test_any_size(size: int) -> None:
    for index in range(4):
        r = render(1, "test", index, size)
        assert r.image.shape == (size, size, 3)
        assert r.labels.shape == (size, size)
        assert r.box == box_of(r.labels)


def test_the_same_frame_twice_and_others_differ() -> None:
    a, b = render(2, "train", 7, 96), render(2, "train", 7, 96)
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.labels, b.labels)
    for other in (render(3, "train", 7, 96), render(2, "val", 7, 96), render(2, "train", 17, 96)):
        assert other.satellite == a.satellite
        assert (other.image != a.image).any()


def test_statistics_follow_the_real_set(frames: list[Rendered]) -> None:
    """The real set's box: mean 11 %, median 9 %, 5th percentile 3 %, 0.29 to 75.5 % of a frame.

    Body 3.60 % and panel 1.24 % of the pixels, about 18 % of frames without a panel.
    """
    area = np.array([(f.box[2] - f.box[0] + 1) * (f.box[3] - f.box[1] + 1) for f in frames])
    area = area / SMALL**2
    assert 0.09 <= area.mean() <= 0.135
    assert 0.07 <= np.median(area) <= 0.11
    assert 0.015 <= np.quantile(area, 0.05) <= 0.045
    assert area.min() >= 0.001
    assert area.max() <= 0.80
    body = np.mean([(f.labels == BODY).mean() for f in frames])
    panel = np.mean([(f.labels == PANEL).mean() for f in frames])
    assert 0.028 <= body <= 0.045
    assert 0.009 <= panel <= 0.018
    bare = np.mean([not (f.labels == PANEL).any() for f in frames])
    assert 0.12 <= bare <= 0.24
    last = SMALL - 1
    cut = np.mean([f.box[0] == 0 or f.box[1] == 0 or last in f.box[2:] for f in frames])
    assert 0.10 <= cut <= 0.30


def test_backgrounds_follow_the_real_set(frames: list[Rendered]) -> None:
    kinds = [f.background for f in frames]
    assert all(kinds.count(k) / len(kinds) > 0.15 for k in ("stars", "limb", "earth"))
    floors, noise = [], []
    for f in (render(0, "train", i, 512) for i, k in enumerate(kinds[:40]) if k == "stars"):
        tiles = (
            f.image[..., 1].reshape(16, 32, 16, 32).swapaxes(1, 2).reshape(256, -1).astype(float)
        )
        spread = tiles.std(1)
        calm = spread <= np.quantile(spread, 0.5)  # without the craft, bright stars, the Milky Way
        floors.append(tiles[calm].mean())
        noise.append(spread[calm].mean())
    assert 33 <= np.mean(floors) <= 39
    assert 2.0 <= np.mean(noise) <= 4.0


def test_speed() -> None:
    """Loose, for busy machines: over 8 frames a second on an idle core, with both JPEGs."""
    for index in range(10):
        render(0, "train", index, 64)  # craft and textures are made once per process
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        start = time.process_time()
        for index in range(10):
            r = render(0, "train", index, 1024)
            cv2.imencode(".jpg", r.image, [cv2.IMWRITE_JPEG_QUALITY, 95])
            cv2.imencode(".jpg", cv2.merge([r.labels] * 3), [cv2.IMWRITE_JPEG_QUALITY, 95])
        spent = time.process_time() - start
    finally:
        cv2.setNumThreads(threads)
    assert 10 / spent > 2.0
