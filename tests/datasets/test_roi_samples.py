"""Samples of the two passes: by inference's rule in training too, exact where nothing is drawn, never stretched."""

# ruff: noqa: NPY002 - the transforms draw from numpy's global generator

from typing import Any

import cv2
import numpy as np
import pytest
import torch

import spark_seg.register  # noqa: F401
from spark_seg.config import load_config
from spark_seg.datasets.transforms.roi import PackRoiInputs, RandomRoi, ShrinkFrame, cut
from spark_seg.errors import UserError
from spark_seg.windows import Window, craft_box, make_rule, place_window

ROI = {"coarse": 0.5, "crops": [0.5, 1.0], "margin": 0.1, "least_margin": 4, "mix": 0.25}
STILL: dict[str, Any] = {"hflip": 0, "vflip": 0, "rotation": 0, "scale": 0, "shift": 0, "whole": 0}


def frame(
    height: int = 300, width: int = 300, at: tuple[int, int, int, int] = (40, 50, 60, 30)
) -> Any:
    """A picture whose colours are places and classes, and its mask."""
    rng = np.random.default_rng(0)
    img = rng.integers(0, 255, (height, width, 3), np.uint8)
    mask = np.zeros((height, width), np.uint8)
    x, y, w, h = at
    mask[y : y + h, x : x + w] = 1
    mask[y : y + h, x : x + w // 2] = 2
    return {"img": img, "gt_seg_map": mask, "img_path": "a.jpg", "ori_shape": (height, width)}


@pytest.mark.parametrize(
    ("height", "width", "at"),
    [
        (300, 300, (40, 50, 60, 30)),
        (300, 200, (150, 250, 40, 50)),
        (300, 300, (20, 30, 220, 100)),  # larger than the crop: shrunk
        (90, 70, (10, 10, 20, 20)),  # a frame smaller than the crop: padded
        (150, 90, (10, 10, 20, 20)),
    ],
)
def test_with_nothing_drawn_the_crop_is_inferences(
    height: int, width: int, at: tuple[int, int, int, int]
) -> None:
    given = frame(height, width, at)
    img, mask = given["img"].copy(), given["gt_seg_map"].copy()
    out = RandomRoi(128, ROI, **STILL).transform(given)
    box = craft_box(mask)
    assert box is not None
    window = place_window(box, height, width, make_rule(128, ROI), [128])
    assert np.array_equal(out["img"], cut(img, window, 0))
    assert np.array_equal(out["gt_seg_map"], cut(mask, window, 255))
    assert out["img"].shape == (128, 128, 3)
    assert {1, 2} <= set(np.unique(out["gt_seg_map"])) <= {0, 1, 2, 255}
    # by hand: the frame in a sea of padding
    sea = np.zeros((height + 1000, width + 1000, 3), np.uint8)
    sea[500:-500, 500:-500] = img
    part = sea[500 + window.y :, 500 + window.x :][: window.side, : window.side]
    if window.side != 128:
        part = cv2.resize(part, (128, 128), interpolation=cv2.INTER_AREA)
    assert np.array_equal(out["img"], part)
    # and the other pass' sample is what ShrinkFrame gives inference
    shrunk = ShrinkFrame(128, ROI).transform({"img": img})
    assert np.array_equal(out["coarse_img"], shrunk["img"])
    assert shrunk["frame"] is img
    assert shrunk["img"].shape == (64, 64, 3)
    assert out["coarse_seg_map"].shape == (64, 64)


def test_never_stretched() -> None:
    img = np.zeros((100, 400, 3), np.uint8)
    cv2.circle(img, (200, 50), 40, (255, 255, 255), -1)
    small = cut(img, Window(0, -150, 400, 64), 0)
    _, _, w, h = cv2.boundingRect((small[..., 0] > 127).astype(np.uint8))
    assert abs(w - h) <= 1
    assert not small[:20].any()
    assert not small[-20:].any()


def inner_part(mask: np.ndarray, reach: int) -> np.ndarray:
    """A mask without its rim, and without the picture's."""
    kernel = np.ones((reach, reach), np.uint8)
    return (
        cv2.erode(mask.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    )


def test_augmented_samples_stay_on_the_frames_pixels() -> None:
    """The mask follows the picture, whatever is drawn; what lies outside is black and ignored."""
    given = frame(300, 300, (100, 120, 90, 50))
    colours = np.array([[50, 50, 50], [100, 100, 100], [200, 200, 200]], np.uint8)
    given["img"] = colours[given["gt_seg_map"]]
    img, mask = given["img"], given["gt_seg_map"]
    transform = RandomRoi(128, ROI, rotation=180, scale=0.3, shift=0.3)
    np.random.seed(0)
    seen = set()
    for _ in range(20):
        out = transform.transform({**given, "img": img, "gt_seg_map": mask})
        for picture, labels in (
            (out["img"], out["gt_seg_map"]),
            (out["coarse_img"], out["coarse_seg_map"]),
        ):
            seen |= set(np.unique(labels).tolist())
            assert not picture[inner_part(labels == 255, 5)].any()
            for value, colour in ((0, 50), (1, 100), (2, 200)):
                inner = inner_part(labels == value, 7)
                assert np.abs(picture[inner].astype(int) - colour).max(initial=0) <= 1
    assert seen == {0, 1, 2, 255}


def test_the_craft_keeps_its_scale_in_crops_and_loses_it_in_frames() -> None:
    given = frame(512, 512, (200, 200, 60, 40))
    img, mask = given["img"], given["gt_seg_map"]
    np.random.seed(1)
    transform = RandomRoi(128, ROI, rotation=180, scale=0.2, shift=0, whole=0)
    for _ in range(10):
        out = transform.transform({**given, "img": img, "gt_seg_map": mask})
        area = ((out["gt_seg_map"] > 0) & (out["gt_seg_map"] < 255)).sum()
        assert 0.8**2 * 2400 * 0.9 < area < 1.2**2 * 2400 * 1.1
        area = ((out["coarse_seg_map"] > 0) & (out["coarse_seg_map"] < 255)).sum()
        assert area < 2 * 2400 / 64


def test_without_a_craft_and_as_whole_the_frame_is_shrunk() -> None:
    given = frame(300, 300)
    img, mask = given["img"], given["gt_seg_map"]
    whole = RandomRoi(128, ROI, **{**STILL, "whole": 1}).transform({**given})
    assert np.array_equal(whole["img"], cut(img, Window(0, 0, 300, 128), 0))
    empty = RandomRoi(128, ROI, **STILL).transform({**given, "gt_seg_map": 0 * mask, "img": img})
    assert np.array_equal(empty["img"], whole["img"])


def test_packs_both() -> None:
    out = RandomRoi(128, ROI, **STILL).transform(frame())
    packed = PackRoiInputs().transform(out)
    sample = packed["data_samples"]
    assert packed["inputs"].shape == (3, 128, 128)
    assert sample.gt_sem_seg.data.shape == (1, 128, 128)
    assert torch.equal(sample.coarse.image, torch.from_numpy(out["coarse_img"].transpose(2, 0, 1)))
    assert torch.equal(sample.coarse.labels[0], torch.from_numpy(out["coarse_seg_map"]))
    given = frame(200, 300)
    packed = PackRoiInputs().transform(ShrinkFrame(128, ROI).transform({**given}))
    assert packed["inputs"].shape == (3, 64, 64)
    frame_of = packed["data_samples"].frame.image
    assert torch.equal(frame_of, torch.from_numpy(given["img"].transpose(2, 0, 1)))
    assert packed["data_samples"].gt_sem_seg.data.shape == (1, 200, 300), "the mask keeps its size"


def test_without_a_mix_no_coarse_sample_is_made() -> None:
    out = RandomRoi(128, {**ROI, "mix": 0}, **STILL).transform(frame())
    assert "coarse_img" not in out
    assert "coarse" not in PackRoiInputs().transform(out)["data_samples"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hflip": 2}, "hflip=2"),
        ({"whole": -1}, "whole=-1"),
        ({"rotation": 200}, "rotation=200"),
        ({"scale": 1}, "scale=1"),
    ],
)
def test_mistakes(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        RandomRoi(128, ROI, **options)


def test_faults_and_holes_reach_both_pictures() -> None:
    from mmseg.registry import TRANSFORMS

    faults = dict(strength=5, prob=1.0, kinds=["underexposure"])
    options = {"pretrained": None, "camera_faults": faults, "coarse_dropout": 0.3}
    steps = load_config("segformer_b0_spark_roi.py", options).train_dataloader.dataset.pipeline
    kinds = [step["type"] for step in steps]
    assert kinds[-4:] == ["CameraFaults", "CoarseDropout", "RandomRoi", "PackRoiInputs"]
    out = frame()
    out["img"][:] = 200
    for at in (-4, -2):
        out = TRANSFORMS.build(steps[at])(out)
    assert out["applied"][0].startswith("underexposure")
    assert out["img"].max() == out["coarse_img"].max() < 200
