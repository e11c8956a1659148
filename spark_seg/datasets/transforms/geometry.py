"""Where the pixels go: resizing the whole frame, and all of the augmentation's geometry in one
resampling.

Coordinates count from pixel centres: resizing maps x to (x + 0.5) * new / old - 0.5.
"""

# ruff: noqa: NPY002 - mmengine seeds numpy's global generator, in every loader process

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from spark_seg.datasets.decode import Undecoded
from spark_seg.errors import UserError
from spark_seg.labels import CLASSES, IGNORE_INDEX, histogram

Size = int | Sequence[int]


def height_width(size: Size, name: str) -> tuple[int, int]:
    """`(H, W)` of a side or a pair.

    Raises:
        UserError: It is neither, or not positive.
    """
    pair = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(pair) != 2 or not all(isinstance(v, int) and v > 0 for v in pair):
        raise UserError(f"{name}={size!r}: give a side in pixels or (height, width)")
    return pair


def resize_image(img: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes uint8 `[H, W, 3]`; averages areas where it shrinks, interpolates where it grows."""
    if img.shape[:2] == (height, width):
        return img
    shrinks = height <= img.shape[0] and width <= img.shape[1]
    kind = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(img, (width, height), interpolation=kind)


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes uint8 `[H, W]` class indices by the nearest pixel, so that no class is invented."""
    if mask.shape == (height, width):
        return mask
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


@TRANSFORMS.register_module()
class ResizeFrame(BaseTransform):
    """Resizes the whole frame, whatever its aspect.

    Sets `img`, `img_shape` `(H, W)` and `scale_factor` `(w, h)`.

    Args:
        size: The new side in pixels, or `(height, width)`.
        mask: Also resize the mask. Evaluation does not: labels are compared at the mask's own size.
    """

    def __init__(self, size: Size, mask: bool = False) -> None:
        self.height, self.width = height_width(size, "size")
        self.mask = mask

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        h, w = results["img"].shape[:2]
        results["img"] = resize_image(results["img"], self.height, self.width)
        results["img_shape"] = (self.height, self.width)
        results["scale_factor"] = (self.width / w, self.height / h)
        if self.mask and "gt_seg_map" in results:
            results["gt_seg_map"] = resize_mask(results["gt_seg_map"], self.height, self.width)
        return results

    def __repr__(self) -> str:
        return f"ResizeFrame(size=({self.height}, {self.width}), mask={self.mask})"


@TRANSFORMS.register_module()
class RandomWarp(BaseTransform):
    """Resize, scale, rotation, shift, flips and crop in one resampling of the frame.

    The frame is resized to `size`, then scaled and rotated about its centre, shifted and flipped;
    of the result a window of `crop` is kept. What lies outside of the source frame is black in the
    image and ignored in the mask. Shrinking by two and more averages whole blocks of pixels first,
    so that stars and thin booms do not flicker. With nothing drawn but flips it equals
    `ResizeFrame` exactly. Draws from numpy's global generator.

    Args:
        size: The frame's new side in pixels, or `(height, width)`.
        hflip: Probability of mirroring left and right.
        vflip: Probability of mirroring top and bottom.
        rotation: Largest angle in degrees, drawn evenly from both sides of zero.
        scale: Largest relative change of size: 0.2 draws a factor from 0.8 to 1.2.
        shift: Largest shift as a share of the new width and height.
        crop: Side or `(height, width)` of the window, at a random place, in pixels or, as a
            float up to 1, as a share of `size`; None keeps the whole frame.
        focus: Probability that the window is placed to hold a pixel of the craft, drawn evenly
            from all of them, instead of anywhere. The craft covers a tenth of the frame, so that
            most windows would miss it.
        cat_max_ratio: As of mmsegmentation's `RandomCrop`: a window in which one class has this share of the
            labelled pixels or more is drawn again, up to ten times. Background has over 0.75 of nearly every frame
            of SPARK; 1.0 never draws again.
    """

    def __init__(
        self,
        size: Size,
        hflip: float = 0.5,
        vflip: float = 0.5,
        rotation: float = 30.0,
        scale: float = 0.2,
        shift: float = 0.1,
        crop: Size | float | None = None,
        focus: float = 0.0,
        cat_max_ratio: float = 1.0,
    ) -> None:
        self.size = height_width(size, "size")
        if crop is None:
            self.crop = self.size
        elif isinstance(crop, float):
            if not 0 < crop <= 1:
                raise UserError(f"crop={crop!r}: as a share it must lie between 0 and 1")
            self.crop = (max(1, round(crop * self.size[0])), max(1, round(crop * self.size[1])))
        else:
            self.crop = height_width(crop, "crop")
        if self.crop[0] > self.size[0] or self.crop[1] > self.size[1]:
            raise UserError(f"crop={crop!r} is larger than the frame's size={size!r}")
        for name, value, top in (
            ("hflip", hflip, 1),
            ("vflip", vflip, 1),
            ("shift", shift, 1),
            ("focus", focus, 1),
            ("cat_max_ratio", cat_max_ratio, 1),
        ):
            if not 0 <= value <= top:
                raise UserError(f"{name}={value!r}: must lie between 0 and {top}")
        if not 0 <= rotation <= 180:
            raise UserError(f"rotation={rotation!r}: must lie between 0 and 180 degrees")
        if not 0 <= scale < 1:
            raise UserError(f"scale={scale!r}: must lie between 0 and below 1")
        self.hflip, self.vflip = hflip, vflip
        self.rotation, self.scale, self.shift = rotation, scale, shift
        if focus and crop is None:
            raise UserError(f"focus={focus!r} places a window: give crop too")
        if cat_max_ratio < 1 and crop is None:
            raise UserError(f"cat_max_ratio={cat_max_ratio!r} places a window: give crop too")
        self.focus, self.cat_max_ratio = focus, cat_max_ratio

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        angle = np.random.uniform(-self.rotation, self.rotation)
        factor = 1 + np.random.uniform(-self.scale, self.scale)
        shift = np.random.uniform(-self.shift, self.shift, 2)
        flips = (np.random.rand() < self.hflip, np.random.rand() < self.vflip)
        place = self._anywhere()
        img, mask = results["img"], results.get("gt_seg_map")
        moved = angle != 0 or factor != 1 or bool(shift.any())

        def matrix_of(source: np.ndarray | Undecoded) -> np.ndarray:
            return frame_matrix(source.shape[:2], self.size, angle, factor, shift, flips)

        if np.random.rand() < self.focus and mask is not None:
            place = self._window_on_craft(mask, matrix_of(mask), place)
        matrix = matrix_of(img)
        if mask is not None:
            # a mask may be larger than a picture that was shrunk
            on_mask = matrix if mask.shape == tuple(img.shape[:2]) else matrix_of(mask)
            tries = 10 if self.cat_max_ratio < 1 else 0
            window = self._cut_mask(mask, on_mask, flips, place, moved)
            while tries and not self._is_mixed(window):
                tries, place = tries - 1, self._anywhere()
                window = self._cut_mask(mask, on_mask, flips, place, moved)
            results["gt_seg_map"] = window
        results["img"] = self._cut_image(img, matrix, flips, place, moved)
        results["img_shape"] = self.crop
        return results

    def _anywhere(self) -> tuple[int, int]:
        top, left = (np.random.randint(self.size[k] - self.crop[k] + 1) for k in (0, 1))
        return top, left

    def _is_mixed(self, window: np.ndarray) -> bool:
        counts = histogram(window)[: len(CLASSES)]
        present = counts[counts > 0]
        return len(present) > 1 and present.max() / present.sum() < self.cat_max_ratio

    def _cut_mask(
        self,
        mask: np.ndarray,
        matrix: np.ndarray,
        flips: tuple[bool, bool],
        place: tuple[int, int],
        moved: bool,
    ) -> np.ndarray:
        if moved:
            return warp_mask(mask, shifted(matrix, place), self.crop)
        return self._window(resize_mask(mask, *self.size), flips, place)

    def _cut_image(
        self,
        img: np.ndarray | Undecoded,
        matrix: np.ndarray,
        flips: tuple[bool, bool],
        place: tuple[int, int],
        moved: bool,
    ) -> np.ndarray:
        if isinstance(img, Undecoded):
            self._check_half(img)
            reduce = img.reduction(1 / min(shrinking(matrix)))
            img = img.pixels(reduce, alpha=moved)
            # a pixel of the reduced picture is a block of the whole one
            matrix = scaled_source(matrix, (reduce, reduce))
        if moved:
            return warp_image(img, shifted(matrix, place), self.crop)
        return self._window(resize_image(img, *self.size), flips, place)

    def _check_half(self, img: Undecoded) -> None:
        """Refuses a cache that holds less than the training wants."""
        if any(
            side > img.enlarge * whole / img.least and img.least > 1
            for side, whole in zip(self.size, img.shape, strict=False)
        ):
            height, width = (-(-side // img.least) for side in img.shape[:2])
            raise UserError(
                f"the cache's pictures at half size, {width}x{height}, are too small for size={self.size}: set "
                "cache='labels'"
            )

    def _window(
        self, frame: np.ndarray, flips: tuple[bool, bool], place: tuple[int, int]
    ) -> np.ndarray:
        top, left = place
        order = np.s_[:: -1 if flips[1] else 1, :: -1 if flips[0] else 1]
        return np.ascontiguousarray(
            frame[order][top : top + self.crop[0], left : left + self.crop[1]]
        )

    def _window_on_craft(
        self, mask: np.ndarray, matrix: np.ndarray, place: tuple[int, int]
    ) -> tuple[int, int]:
        """Top and left of a window that holds a random pixel of the craft; `place` without any."""
        craft = np.flatnonzero((mask == 1) | (mask == 2))
        if not len(craft):
            return place
        y, x = divmod(int(craft[np.random.randint(len(craft))]), mask.shape[1])
        found = matrix @ (x, y, 1.0)
        within = np.random.rand(2)
        # (x, y) of the pixel in the frame, less where in the window it shall lie
        left, top = (
            int(
                np.clip(
                    found[k] - within[k] * self.crop[1 - k], 0, self.size[1 - k] - self.crop[1 - k]
                )
            )
            for k in (0, 1)
        )
        return top, left

    def __repr__(self) -> str:
        return (
            f"RandomWarp(size={self.size}, hflip={self.hflip}, vflip={self.vflip}, "
            f"rotation={self.rotation}, scale={self.scale}, shift={self.shift}, crop={self.crop}, "
            f"focus={self.focus}, cat_max_ratio={self.cat_max_ratio})"
        )


def frame_matrix(
    source: tuple[int, int],
    size: tuple[int, int],
    angle: float,
    factor: float,
    shift: np.ndarray,
    flips: tuple[bool, bool],
) -> np.ndarray:
    """The affine map float64 `[2, 3]` from source pixels to output pixels (x, y).

    Args:
        source: `(H, W)` of the source.
        size: `(H, W)` of the output.
        angle: Degrees, counter-clockwise as seen.
        factor: Scale about the centre.
        shift: `(x, y)` as shares of the output's width and height.
        flips: Mirror left and right, top and bottom, after everything else.
    """
    height, width = size
    theta = np.deg2rad(angle)
    cos, sin = factor * np.cos(theta), factor * np.sin(theta)
    linear = np.array([[cos, sin], [-sin, cos]])
    move = np.asarray(shift) * (width, height)
    for axis, flip in enumerate(flips):
        if flip:
            linear[axis] *= -1
            move[axis] *= -1
    linear = linear * (width / source[1], height / source[0])
    centre_in = np.array([source[1], source[0]]) / 2
    centre_out = np.array([width, height]) / 2
    # Continuous coordinates u = x + 0.5: out = linear (u - centre_in) + centre_out + move
    offset = centre_out + move - linear @ centre_in + linear @ (0.5, 0.5) - 0.5
    return np.column_stack([linear, offset])


def shifted(matrix: np.ndarray, place: tuple[int, int]) -> np.ndarray:
    """The map `[2, 3]` into a window whose top left pixel is `(top, left)` of the old output."""
    return matrix - np.array([[0, 0, place[1]], [0, 0, place[0]]])


def scaled_source(matrix: np.ndarray, scale: Sequence[float]) -> np.ndarray:
    """The map `[2, 3]` from a source that was shrunk by `(x, y)`; pixels are counted from their centres."""
    factors = np.asarray(scale, np.float64)
    centre = matrix[:, :2] @ (0.5 * factors - 0.5)
    return np.column_stack([matrix[:, :2] * factors, matrix[:, 2] + centre])


def shrinking(matrix: np.ndarray) -> tuple[float, float]:
    """How many source pixels along (x, y) make one pixel's step in the output."""
    return 1 / float(np.hypot(*matrix[:, 0])), 1 / float(np.hypot(*matrix[:, 1]))


def warp_image(img: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resamples uint8 `[H, W, 3 or 4]` by `matrix` into `[*size, 3]`; black outside."""
    h, w = img.shape[:2]
    block_x, block_y = (int(s + 1e-6) for s in shrinking(matrix))
    if block_x >= 2 or block_y >= 2:
        small = -(-w // max(block_x, 1)), -(-h // max(block_y, 1))
        img = cv2.resize(img, small, interpolation=cv2.INTER_AREA)
        h, w, scale = small[1], small[0], (w / small[0], h / small[1])
        matrix = scaled_source(matrix, scale)
    # OpenCV warps four channels in half the time of three, to the same values
    if img.shape[2] == 3 and 4 * size[0] * size[1] >= h * w:
        img = cv2.cvtColor(img, cv2.COLOR_BGR2BGRA)
    out = cv2.warpAffine(img, matrix, size[::-1], flags=cv2.INTER_LINEAR)
    return out if out.shape[2] == 3 else cv2.cvtColor(out, cv2.COLOR_BGRA2BGR)


def warp_mask(mask: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resamples uint8 `[H, W]` class indices by the nearest pixel; ignored outside of the
    source."""
    return cv2.warpAffine(
        mask,
        matrix,
        size[::-1],
        flags=cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=IGNORE_INDEX,
    )
