"""The transforms: loading, geometry, colours."""

import time

import cv2
import numpy as np
import pytest

from spark_seg.datasets.transforms.geometry import (
    RandomWarp,
    ResizeFrame,
    frame_matrix,
)
from spark_seg.datasets.transforms.loading import LoadSparkImage, LoadSparkMask
from spark_seg.datasets.transforms.photometric import ColorJitter
from spark_seg.datasets.transforms.resampling import warp_image, warp_mask
from spark_seg.errors import UserError

STILL = {"hflip": 0.0, "vflip": 0.0, "rotation": 0.0, "scale": 0.0, "shift": 0.0}


def sample(height: int = 64, width: int = 64, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    img = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), (0, 0), 5)
    img = cv2.normalize(img, None, 0, 255, cv2.NORM_MINMAX)
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 3 :] = 1
    mask[height // 2 : -height // 4, : width // 2] = 2
    return {
        "img": img,
        "gt_seg_map": mask,
        "img_shape": (height, width),
        "ori_shape": (height, width),
    }


# ------------------------------------------------------------------- loading


def test_loading(spark_tree):
    paths = {
        "img_path": str(spark_tree / "images/Cheops/val/image_00001_img.jpg"),
        "seg_map_path": str(spark_tree / "mask/Cheops/val/image_00001_layer.jpg"),
        "seg_fields": [],
    }
    results = LoadSparkMask()(LoadSparkImage()(paths))
    assert results["img"].shape == (64, 64, 3)
    assert results["img_shape"] == results["ori_shape"] == (64, 64)
    assert results["gt_seg_map"].shape == (64, 64)
    assert results["gt_seg_map"].dtype == np.uint8
    assert set(np.unique(results["gt_seg_map"])) == {0, 1, 2}
    assert results["seg_fields"] == ["gt_seg_map"]


def test_image_and_mask_of_different_size(spark_tree):
    image = spark_tree / "images/Cheops/val/image_00001_img.jpg"
    mask = spark_tree / "mask/Cheops/val/image_00001_layer.jpg"
    cv2.imwrite(str(image), np.zeros((40, 50, 3), np.uint8))
    results = LoadSparkImage()({"img_path": str(image), "seg_map_path": str(mask)})
    results = ResizeFrame(64)(results)  # the original sizes count, not the present one
    with pytest.raises(UserError) as error:
        LoadSparkMask()(results)
    assert all(part in str(error.value) for part in (str(image), str(mask), "50x40", "64x64"))


# -------------------------------------------------------------------- resize


@pytest.mark.parametrize(
    ("size", "shape"), [(32, (32, 32)), ((24, 40), (24, 40)), (100, (100, 100))]
)
def test_resize_takes_the_whole_frame(size, shape):
    results = ResizeFrame(size)(sample(64, 80))
    assert results["img"].shape == (*shape, 3)
    assert results["img_shape"] == shape
    assert results["ori_shape"] == (64, 80)
    assert results["scale_factor"] == (shape[1] / 80, shape[0] / 64)
    assert results["gt_seg_map"].shape == (64, 80)  # evaluation compares at the mask's own size
    assert ResizeFrame(size, mask=True)(sample(64, 80))["gt_seg_map"].shape == shape


def test_shrinking_averages_and_the_same_size_is_untouched():
    img = sample()["img"]
    mean = img.reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(ResizeFrame(32)(sample())["img"] - mean).max() <= 0.5
    np.testing.assert_array_equal(ResizeFrame(64)(sample())["img"], img)


@pytest.mark.parametrize("size", [0, (32,), (32, -1), "64", 0.5])
def test_impossible_sizes(size):
    with pytest.raises(UserError, match="size="):
        ResizeFrame(size)


# ---------------------------------------------------------------------- warp


@pytest.mark.parametrize("size", [32, 48, (30, 50), 64, 100])
def test_without_limits_a_warp_is_a_resize(size):
    plain, warped = ResizeFrame(size, mask=True)(sample()), RandomWarp(size, **STILL)(sample())
    for key in ("img", "gt_seg_map", "img_shape"):
        np.testing.assert_array_equal(warped[key], plain[key])


@pytest.mark.parametrize(("hflip", "vflip"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_flips_alone_are_exact(hflip, vflip):
    plain = ResizeFrame(32, mask=True)(sample())
    warped = RandomWarp(32, **{**STILL, "hflip": hflip, "vflip": vflip})(sample())
    order = np.s_[:: -1 if vflip else 1, :: -1 if hflip else 1]
    for key in ("img", "gt_seg_map"):
        np.testing.assert_array_equal(warped[key], plain[key][order])
        assert warped[key].flags.c_contiguous


@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("size", [(32, 32), (64, 64), (96, 80), (21, 21)])
def test_the_warps_own_path_has_the_resizes_geometry(size, flips):
    """Pixel centres lie right: the matrix path gives the picture that resizing gives, to interpolation."""
    img, mask = sample(64, 64)["img"], sample(64, 64)["gt_seg_map"]
    matrix = frame_matrix((64, 64), size, 0.0, 1.0, np.zeros(2), flips)
    order = np.s_[:: -1 if flips[1] else 1, :: -1 if flips[0] else 1]
    plain = ResizeFrame(size, mask=True)({"img": img, "gt_seg_map": mask})
    inner = np.s_[2:-2, 2:-2]  # the border blends with the outside
    difference = warp_image(img, matrix, size).astype(int) - plain["img"][order].astype(int)
    shifted = np.roll(plain["img"][order], 1, axis=1).astype(int) - plain["img"][order].astype(int)
    # Half a pixel off would be a difference of half of what a whole pixel makes.
    assert np.abs(difference[inner]).mean() < 0.25 * np.abs(shifted[inner]).mean()
    wrong = warp_mask(mask, matrix, size) != plain["gt_seg_map"][order]
    assert wrong.mean() < 0.06  # halves may round to the other side


def test_matrix_moves_points_as_told():
    def move(matrix, x, y):
        return matrix @ (x, y, 1)

    centre = (31.5, 31.5)
    turned = frame_matrix((64, 64), (64, 64), 90.0, 1.0, np.zeros(2), (False, False))
    np.testing.assert_allclose(move(turned, *centre), centre)
    np.testing.assert_allclose(move(turned, 63, 31.5), (31.5, 0), atol=1e-9)  # right goes up
    grown = frame_matrix((64, 64), (128, 128), 0.0, 1.5, np.array([0.25, 0]), (False, False))
    np.testing.assert_allclose(move(grown, *centre), (63.5 + 32, 63.5))
    np.testing.assert_allclose(move(grown, 32.5, 31.5), (63.5 + 32 + 3, 63.5))
    mirrored = frame_matrix((64, 64), (128, 128), 0.0, 1.0, np.array([0.25, 0]), (True, False))
    np.testing.assert_allclose(move(mirrored, *centre), (63.5 - 32, 63.5))


def test_image_and_mask_move_together():
    """A bright square and its label stay on top of each other through everything."""
    np.random.seed(3)  # noqa: NPY002
    warp = RandomWarp(128, rotation=180, scale=0.3, shift=0.2)
    overlaps = []
    for _ in range(30):
        img, mask = np.zeros((256, 256, 3), np.uint8), np.zeros((256, 256), np.uint8)
        img[90:130, 100:180], mask[90:130, 100:180] = 255, 1
        out = warp({"img": img, "gt_seg_map": mask})
        bright, label = out["img"][..., 0] > 127, out["gt_seg_map"] == 1
        if label.sum() > 200:
            overlaps.append((bright & label).sum() / (bright | label).sum())
    assert len(overlaps) > 20
    assert min(overlaps) > 0.9


def test_no_class_is_invented_and_outside_is_ignored():
    np.random.seed(0)  # noqa: NPY002
    warp = RandomWarp(48, rotation=30, scale=0.5, shift=0.3)
    outside = 0
    for seed in range(20):
        results = sample(seed=seed)
        results["img"][:] = 200
        results["gt_seg_map"][results["gt_seg_map"] == 1] = 0  # a blend of 0 and 2 would be 1
        results = warp(results)
        mask, img = results["gt_seg_map"], results["img"]
        assert set(np.unique(mask)) <= {0, 2, 255}
        far_outside = cv2.erode((mask == 255).astype(np.uint8), np.ones((5, 5))) > 0
        assert not img[far_outside].any()
        inside = cv2.erode((mask != 255).astype(np.uint8), np.ones((5, 5)), borderValue=0) > 0
        assert (img[inside] == 200).all()
        outside += int(far_outside.sum())
    assert outside > 0


def test_crop_takes_a_window_of_the_frame():
    np.random.seed(0)  # noqa: NPY002
    whole = ResizeFrame(96, mask=True)(sample())
    places = set()
    for _ in range(20):
        results = RandomWarp(96, **STILL, crop=(40, 32))(sample())
        assert results["img"].shape == (40, 32, 3)
        assert results["img_shape"] == results["gt_seg_map"].shape == (40, 32)
        where = np.abs(cv2.matchTemplate(whole["img"], results["img"], cv2.TM_SQDIFF))
        top, left = np.unravel_index(where.argmin(), where.shape)
        np.testing.assert_array_equal(
            results["img"], whole["img"][top : top + 40, left : left + 32]
        )
        window = whole["gt_seg_map"][top : top + 40, left : left + 32]
        np.testing.assert_array_equal(results["gt_seg_map"], window)
        places.add((top, left))
    assert len(places) > 10
    turned = RandomWarp(96, rotation=20, crop=40)(sample())
    assert turned["img"].shape == (40, 40, 3)


def test_shrinking_does_not_alias():
    """Fine stripes turn to grey; without averaging first they would come back as coarse ones."""
    img = np.zeros((512, 512, 3), np.uint8)
    img[:, ::2] = 255
    matrix = frame_matrix((512, 512), (100, 100), 3.0, 0.9, np.zeros(2), (False, False))
    inner = np.s_[20:-20, 20:-20]
    assert warp_image(img, matrix, (100, 100))[inner].std() < 12
    assert cv2.warpAffine(img, matrix, (100, 100))[inner].std() > 40


def test_warp_works_without_a_mask():
    results = sample()
    del results["gt_seg_map"]
    assert RandomWarp(32)(results)["img"].shape == (32, 32, 3)


def test_limits_are_used():
    np.random.seed(0)  # noqa: NPY002
    seen = []

    def spy(source, size, angle, factor, shift, flips):
        seen.append((angle, factor, *shift, *flips))
        return frame_matrix(source, size, angle, factor, shift, flips)

    import spark_seg.datasets.transforms.geometry as geometry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry, "frame_matrix", spy)
        for _ in range(300):
            RandomWarp(8)(sample(8, 8))
    angle, factor, x, y, hflip, vflip = np.array(seen, float).T
    for values, low, high in ((angle, -30, 30), (factor, 0.8, 1.2), (x, -0.1, 0.1), (y, -0.1, 0.1)):
        span = high - low
        assert low <= values.min() < low + 0.05 * span
        assert high - 0.05 * span < values.max() <= high
    assert 0.4 < hflip.mean() < 0.6
    assert 0.4 < vflip.mean() < 0.6
    assert abs(np.corrcoef(hflip, vflip)[0, 1]) < 0.2


@pytest.mark.parametrize(
    "options",
    [
        {"hflip": 1.5},
        {"vflip": -0.1},
        {"rotation": 181},
        {"scale": 1.0},
        {"shift": 2},
        {"crop": 65},
        {"crop": (65, 10)},
    ],
)
def test_impossible_limits(options):
    with pytest.raises(UserError, match=next(iter(options))):
        RandomWarp(64, **options)


# ------------------------------------------------------------------ together


def build(*names_and_options):
    from mmengine.dataset import Compose
    from mmseg.registry import TRANSFORMS

    import spark_seg.datasets.spark  # noqa: F401 - lets mmseg import

    return Compose(
        [TRANSFORMS.build({"type": name, **options}) for name, options in names_and_options]
    )


KEYS = ("img_path", "sample_id", "satellite", "ori_shape", "img_shape")


def test_the_same_seed_gives_the_same_sample(spark_tree):
    pipeline = build(
        ("LoadSparkImage", {}),
        ("LoadSparkMask", {}),
        ("RandomWarp", {"size": 48}),
        ("ColorJitter", {}),
    )
    paths = {
        "img_path": str(spark_tree / "images/Cheops/val/image_00001_img.jpg"),
        "seg_map_path": str(spark_tree / "mask/Cheops/val/image_00001_layer.jpg"),
    }

    def draw(seed):
        np.random.seed(seed)  # noqa: NPY002
        return pipeline(dict(paths))

    for key in ("img", "gt_seg_map"):
        np.testing.assert_array_equal(draw(1)[key], draw(1)[key])
        assert (draw(1)[key] != draw(2)[key]).any()


def test_packed_samples(spark_tree):
    import mmseg.datasets.transforms  # noqa: F401
    import torch

    from spark_seg.datasets.spark import SparkDataset

    train = build(
        ("LoadSparkImage", {}),
        ("LoadSparkMask", {}),
        ("RandomWarp", {"size": 48}),
        ("ColorJitter", {}),
        ("PackSegInputs", {"meta_keys": KEYS}),
    )
    packed = train(SparkDataset(str(spark_tree), "train").get_data_info(4))
    assert packed["inputs"].shape == (3, 48, 48)
    assert packed["inputs"].dtype == torch.uint8
    truth = packed["data_samples"].gt_sem_seg.data
    assert truth.shape == (1, 48, 48)
    assert set(truth.unique().tolist()) <= {0, 1, 2, 255}
    assert packed["data_samples"].sample_id == "Cheops/train/image_00002"
    assert packed["data_samples"].satellite == "Cheops"
    assert packed["data_samples"].ori_shape == (64, 64)

    test = build(
        ("LoadSparkImage", {}),
        ("ResizeFrame", {"size": 32}),
        ("LoadSparkMask", {}),
        ("PackSegInputs", {"meta_keys": KEYS}),
    )
    packed = test(SparkDataset(str(spark_tree), "val").get_data_info(0))
    assert packed["inputs"].shape == (3, 32, 32)
    assert packed["data_samples"].gt_sem_seg.data.shape == (1, 64, 64)


def test_speed_of_the_training_pipeline(tmp_path):
    """A 1024 px frame of noise-free quality 95 to a 512 px sample; a loose bound, see the message for the time."""
    results = sample(1024, 1024)
    cv2.imwrite(str(tmp_path / "a.jpg"), cv2.GaussianBlur(results["img"], (0, 0), 2))
    palette = np.array([[0, 0, 0], [0, 0, 254], [254, 0, 0]], np.uint8)
    cv2.imwrite(str(tmp_path / "b.jpg"), palette[results["gt_seg_map"]])
    steps = [LoadSparkImage(), LoadSparkMask(), RandomWarp(512), ColorJitter()]
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        times = []
        for _ in range(12):
            start = time.thread_time()
            out = {"img_path": str(tmp_path / "a.jpg"), "seg_map_path": str(tmp_path / "b.jpg")}
            for step in steps:
                out = step(out)
            times.append(time.thread_time() - start)
    finally:
        cv2.setNumThreads(threads)
    assert min(times) < 0.03, f"{1000 * min(times):.1f} ms"


def test_scale_as_two_factors():
    from spark_seg.datasets.transforms.geometry import RandomWarp

    still = dict(hflip=0, vflip=0, rotation=0, shift=0)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    given = {"img": image, "gt_seg_map": np.zeros((64, 64), np.uint8), "seg_fields": ["gt_seg_map"]}
    out = RandomWarp(size=64, scale=(0.5, 0.5), **still).transform(dict(given))
    inside = out["gt_seg_map"] != 255
    assert abs(inside.mean() - 0.25) < 0.02, "half as large in each direction"
    for wrong in ((0.8, 0.7), (0, 1), (0.5,), (1, 5)):
        with pytest.raises(UserError, match="two factors"):
            RandomWarp(size=64, scale=wrong)
