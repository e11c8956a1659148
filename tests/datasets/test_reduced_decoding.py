"""Geometry first, then as much decoding as it needs; and the warp's short cuts."""

import cv2
import numpy as np
import pytest

from spark_seg.datasets.decode import Undecoded
from spark_seg.datasets.spark import SparkDataset
from spark_seg.datasets.transforms.geometry import (
    RandomWarp,
    frame_matrix,
)
from spark_seg.datasets.transforms.loading import LoadSparkImage, LoadSparkMask
from spark_seg.datasets.transforms.photometric import ColorJitter
from spark_seg.datasets.transforms.resampling import scaled_source, warp_image
from spark_seg.errors import UserError

JPEG = [
    cv2.IMWRITE_JPEG_QUALITY,
    95,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
]
STILL = {"hflip": 0.0, "vflip": 0.0, "rotation": 0.0, "scale": 0.0, "shift": 0.0}


def smooth(side=256):
    """Without steps: blurred before it is rounded to 8 bits."""
    noise = np.random.default_rng(0).random((side, side, 3)).astype(np.float32)
    img = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 8), None, 0, 255, cv2.NORM_MINMAX)
    return np.rint(img).astype(np.uint8)


@pytest.fixture
def paths(tmp_path):
    img, mask = smooth(), np.zeros((256, 256, 3), np.uint8)
    mask[60:140, 80:200] = (0, 0, 255)
    cv2.imwrite(str(tmp_path / "a.jpg"), img, JPEG)
    cv2.imwrite(str(tmp_path / "b.png"), mask)
    return {"img_path": str(tmp_path / "a.jpg"), "seg_map_path": str(tmp_path / "b.png")}


def run(paths, warp, seed=0, **options):
    np.random.seed(seed)  # noqa: NPY002
    return warp(LoadSparkMask()(LoadSparkImage(**options)(dict(paths))))


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("ipp", [True, False])
def test_four_channels_are_warped_as_three(channels, ipp):
    img = smooth()
    matrix = frame_matrix((256, 256), (200, 180), 17.0, 1.1, np.array([0.1, 0.05]), (True, False))
    used = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(ipp)
    try:
        expected = cv2.warpAffine(img, matrix, (180, 200), flags=cv2.INTER_LINEAR)
        given = img if channels == 3 else cv2.cvtColor(img, cv2.COLOR_BGR2BGRA)
        np.testing.assert_array_equal(warp_image(given, matrix, (200, 180)), expected)
    finally:
        cv2.ipp.setUseIPP(used)


@pytest.mark.parametrize("reduce", [1.0, 1.25])
def test_what_is_decoded_small_lies_where_it_lay(paths, reduce):
    """A half-pixel's slip would be larger than the difference seen."""
    for seed in range(6):
        whole = run(paths, RandomWarp(128), seed)
        small = run(paths, RandomWarp(128), seed, reduce=reduce)
        np.testing.assert_array_equal(small["gt_seg_map"], whole["gt_seg_map"])
        assert small["img_shape"] == (128, 128)
        assert small["ori_shape"] == (256, 256)
        inner = cv2.erode((whole["gt_seg_map"] != 255).astype(np.uint8), np.ones((7, 7))) > 0
        off = np.abs(small["img"].astype(int) - whole["img"])[inner].mean()
        slip = np.abs(np.roll(whole["img"], 1, 1).astype(int) - whole["img"])[inner].mean() / 2
        assert off < 0.5 * slip


def test_detail_is_kept_where_it_shows(paths, monkeypatch):
    """At scale 1 and with reduce=1.0 nothing is reduced: the very sample of the whole picture."""
    taken = []
    pixels = Undecoded.pixels

    def spy(self, reduce=1, alpha=False):
        taken.append(reduce)
        return pixels(self, reduce, alpha)

    monkeypatch.setattr(Undecoded, "pixels", spy)
    still = {**STILL, "rotation": 10.0}
    for size, enlarge, reduce in (
        (256, 1.0, 1),
        (129, 1.0, 1),
        (129, 1.25, 2),
        (128, 1.0, 2),
        (60, 1.0, 4),
    ):
        small = run(paths, RandomWarp(size, **still), reduce=enlarge)
        assert taken.pop() == reduce
        if reduce == 1:
            whole = run(paths, RandomWarp(size, **still))
            np.testing.assert_array_equal(small["img"], whole["img"])


def test_without_limits_it_is_the_reduced_picture(paths):
    small = run(paths, RandomWarp(128, **STILL), reduce=1.0)
    expected = cv2.imread(paths["img_path"], cv2.IMREAD_REDUCED_COLOR_2)
    np.testing.assert_array_equal(small["img"], expected)


def test_a_smaller_source_keeps_the_geometry():
    matrix = frame_matrix((64, 96), (50, 40), 25.0, 0.9, np.array([0.1, 0]), (False, True))
    small = scaled_source(matrix, (4, 2))
    # the middle of the block of 4 x 2 pixels that begins at (8, 6)
    np.testing.assert_allclose(small @ (2, 3, 1), matrix @ (9.5, 6.5, 1))
    np.testing.assert_allclose(
        small, frame_matrix((32, 24), (50, 40), 25.0, 0.9, np.array([0.1, 0]), (False, True))
    )


def test_masks_larger_than_their_pictures(paths):
    """A picture shrunk by itself, its mask whole: each is warped by its own matrix."""
    small = run(paths, RandomWarp(128), 3)
    np.random.seed(3)  # noqa: NPY002
    results = LoadSparkMask()(LoadSparkImage()(dict(paths)))
    results["img"] = cv2.resize(results["img"], (128, 128), interpolation=cv2.INTER_AREA)
    other = RandomWarp(128)(results)
    np.testing.assert_array_equal(other["gt_seg_map"], small["gt_seg_map"])
    assert np.abs(other["img"].astype(int) - small["img"])[20:-20, 20:-20].mean() < 4


def test_windows_with_enough_of_two_classes(paths):
    """A quarter of the frame is craft; without drawing again most windows see background alone."""

    def worst(ratio):
        warp = RandomWarp(256, **STILL, crop=64, cat_max_ratio=ratio)
        shares = []
        for seed in range(40):
            mask = run(paths, warp, seed)["gt_seg_map"]
            shares.append(np.bincount(mask.ravel(), minlength=3).max() / mask.size)
        return np.mean(np.array(shares) >= 0.75)

    assert worst(0.75) < 0.35 < 0.6 < worst(1.0)
    np.testing.assert_array_equal(
        run(paths, RandomWarp(256, crop=64), 5)["img"],
        run(paths, RandomWarp(256, crop=64, cat_max_ratio=1.0), 5)["img"],
    )
    with pytest.raises(UserError, match="give crop too"):
        RandomWarp(64, cat_max_ratio=0.75)


def test_pictures_that_are_no_jpegs(tmp_path, paths):
    img = smooth()
    cv2.imwrite(str(tmp_path / "c.png"), img)
    paths = {**paths, "img_path": str(tmp_path / "c.png")}
    whole, small = run(paths, RandomWarp(128)), run(paths, RandomWarp(128), reduce=1.25)
    assert np.abs(whole["img"].astype(int) - small["img"])[20:-20, 20:-20].mean() < 3


@pytest.mark.parametrize("options", [{"shrink": 2}, {"keep": True}])
def test_reduce_excludes_its_older_brothers(options):
    with pytest.raises(UserError, match="not both"):
        LoadSparkImage(reduce=1.0, **options)


@pytest.mark.parametrize("reduce", [0, True, "1", 5])
def test_impossible_enlargements(reduce):
    with pytest.raises(UserError, match="reduce="):
        LoadSparkImage(reduce=reduce)


@pytest.mark.parametrize(
    "after", [[ColorJitter()], [LoadSparkMask()], [ColorJitter(), RandomWarp(8)]]
)
def test_the_warp_must_come_next(spark_tree, after):
    with pytest.raises(UserError, match="RandomWarp must come next"):
        SparkDataset(str(spark_tree), "train", pipeline=[LoadSparkImage(reduce=1.0), *after])
