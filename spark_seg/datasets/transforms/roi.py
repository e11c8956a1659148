"""Samples for the two passes of `spark_seg.models.roi`: whole frames shrunk, and windows about the craft.

The windows are those of `spark_seg.windows`, in training as in inference.
"""

# ruff: noqa: NPY002 - mmengine seeds numpy's global generator, in every loader process

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.structures import PixelData
from mmseg.registry import TRANSFORMS

from spark_seg.datasets.transforms.geometry import (
    frame_matrix,
    resize_image,
    resize_mask,
    warp_image,
    warp_mask,
)
from spark_seg.datasets.transforms.packing import PackSparkInputs
from spark_seg.errors import UserError
from spark_seg.labels import IGNORE_INDEX
from spark_seg.windows import (
    Window,
    craft_box,
    fallback_window,
    make_rule,
    place_window,
    whole_frame,
)


def cut(array: np.ndarray, window: Window, outside: int) -> np.ndarray:
    """A window of an image [H, W, 3] or mask [H, W], uint8, at the crop's size; `outside` beyond the frame.

    At its own size pixels are copied. Images are shrunk by areas, masks by the nearest pixel.
    """
    height, width = array.shape[:2]
    part = array[window.inside(height, width)]
    left, right, top, bottom = window.padding(height, width)
    if left or right or top or bottom:
        value = [outside] * 3
        part = cv2.copyMakeBorder(part, top, bottom, left, right, cv2.BORDER_CONSTANT, value=value)
    resize = resize_image if array.ndim == 3 else resize_mask
    return resize(part, window.size, window.size)


@TRANSFORMS.register_module()
class ShrinkFrame(BaseTransform):
    """Shrinks the whole frame for the first pass, padded to a square, and keeps the frame itself for the second.

    Sets `img` (uint8 `[coarse, coarse, 3]`), `frame` (the picture as it was) and `img_shape`. The mask is left alone.
    `PackRoiInputs` packs both.

    Args:
        size: The config's `image_size`.
        roi: Its group `roi`; see `spark_seg.windows.make_rule`.
    """

    def __init__(self, size: int, roi: Mapping[str, Any]) -> None:
        self.rule = make_rule(size, roi)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        frame, coarse = results["img"], self.rule.coarse
        height, width = frame.shape[:2]
        results["frame"] = frame
        results["img"] = cut(frame, whole_frame(height, width, coarse), 0)
        results["img_shape"] = (coarse, coarse)
        return results

    def __repr__(self) -> str:
        return f"ShrinkFrame(coarse={self.rule.coarse})"


@TRANSFORMS.register_module()
class RandomRoi(BaseTransform):
    """From one frame a training sample for each pass: a crop about the craft, and the whole frame shrunk.

    The crop's window is that of the craft's true box by the rule of inference, with one size of crop (`size`), so that
    crops make batches. Each sample is then turned, scaled, shifted and flipped about its window's middle, all in one
    resampling of the frame's own pixels, with draws of its own; with nothing drawn it is the window as inference cuts
    it. What lies outside of the frame is black in the image and ignored in the mask. A frame without a craft, and any
    other with the probability `whole`, gives its whole frame instead of a window, as inference falls back to. Draws
    from numpy's global generator.

    Sets `img` and `gt_seg_map` (the crop, `[size, size]`), `img_shape`, and with `mix` above 0 `coarse_img` and
    `coarse_seg_map` (`[coarse, coarse]`).

    Args:
        size: The config's `image_size`: the crop's side in pixels.
        roi: Its group `roi`; see `spark_seg.windows.make_rule`.
        hflip: Probability of mirroring left and right.
        vflip: Probability of mirroring top and bottom.
        rotation: Largest angle in degrees.
        scale: Largest relative change of size: 0.2 draws a factor from 0.8 to 1.2.
        shift: Largest shift as a share of the sample's side. Stands for the errors of the first pass' boxes too.
        whole: See above.
    """

    def __init__(
        self,
        size: int,
        roi: Mapping[str, Any],
        hflip: float = 0.5,
        vflip: float = 0.5,
        rotation: float = 30.0,
        scale: float = 0.2,
        shift: float = 0.1,
        whole: float = 0.1,
    ) -> None:
        self.rule, self.size = make_rule(size, roi), size
        for name, value, top in (
            ("hflip", hflip, 1),
            ("vflip", vflip, 1),
            ("rotation", rotation, 180),
            ("shift", shift, 1),
            ("whole", whole, 1),
        ):
            if not 0 <= value <= top:
                raise UserError(f"{name}={value!r}: must lie between 0 and {top}")
        if not 0 <= scale < 1:
            raise UserError(f"scale={scale!r}: must lie between 0 and below 1")
        self.hflip, self.vflip, self.whole = hflip, vflip, whole
        self.rotation, self.scale, self.shift = rotation, scale, shift

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        img, mask = results["img"], results["gt_seg_map"]
        height, width = img.shape[:2]
        box = craft_box(mask)
        window = fallback_window(height, width, self.size)
        if box is not None and np.random.rand() >= self.whole:
            window = place_window(box, height, width, self.rule, [self.size])
        results["img"], results["gt_seg_map"] = self._draw(img, mask, window)
        results["img_shape"] = (self.size, self.size)
        if self.rule.mix:
            window = whole_frame(height, width, self.rule.coarse)
            results["coarse_img"], results["coarse_seg_map"] = self._draw(img, mask, window)
        return results

    def _draw(
        self, img: np.ndarray, mask: np.ndarray, window: Window
    ) -> tuple[np.ndarray, np.ndarray]:
        """A window of both, augmented."""
        angle = np.random.uniform(-self.rotation, self.rotation)
        factor = 1 + np.random.uniform(-self.scale, self.scale)
        shift = np.random.uniform(-self.shift, self.shift, 2)
        flips = (np.random.rand() < self.hflip, np.random.rand() < self.vflip)
        if not angle and factor == 1 and not shift.any():
            order = np.s_[:: -1 if flips[1] else 1, :: -1 if flips[0] else 1]
            parts = cut(img, window, 0), cut(mask, window, IGNORE_INDEX)
            return np.ascontiguousarray(parts[0][order]), np.ascontiguousarray(parts[1][order])
        square = window.size, window.size
        matrix = frame_matrix((window.side, window.side), square, angle, factor, shift, flips)
        matrix[:, 2] -= matrix[:, :2] @ (window.x, window.y)
        return warp_image(img, matrix, square), warp_mask(mask, matrix, square)

    def __repr__(self) -> str:
        return (
            f"RandomRoi(size={self.size}, rule={self.rule}, hflip={self.hflip}, vflip={self.vflip}, "
            f"rotation={self.rotation}, scale={self.scale}, shift={self.shift}, whole={self.whole})"
        )


@TRANSFORMS.register_module()
class PackRoiInputs(PackSparkInputs):
    """`PackSparkInputs`, and what the other pass needs.

    After `ShrinkFrame` the data sample gets `frame` (`image`: uint8 `[3, H, W]`, BGR, the frame's own pixels); after
    `RandomRoi` `coarse` (`image`: uint8 `[3, n, n]`; `labels`: uint8 `[1, n, n]`).
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        packed = super().transform(results)
        sample = packed["data_samples"]
        if "frame" in results:
            sample.frame = PixelData(image=_planes(results["frame"]))
        if "coarse_img" in results:
            labels = torch.from_numpy(np.ascontiguousarray(results["coarse_seg_map"]))[None]
            sample.coarse = PixelData(image=_planes(results["coarse_img"]), labels=labels)
        return packed


def _planes(img: np.ndarray) -> torch.Tensor:
    planes = np.empty((3, *img.shape[:2]), np.uint8)
    cv2.split(img, [planes[0], planes[1], planes[2]])
    return torch.from_numpy(planes)
