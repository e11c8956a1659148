"""Where the pixels go: resizing the whole frame, and all of the augmentation's geometry in one
resampling.

Coordinates count from pixel centres: resizing maps x to (x + 0.5) * new / old - 0.5.
"""

# ruff: noqa: NPY002 - mmengine seeds numpy's global generator, in every loader process

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from spark_seg.datasets.decode import Undecoded
from spark_seg.datasets.transforms.resampling import (
    quarter_turns,
    scaled_source,
    shifted,
    shrinking,
    warp_image,
    warp_mask,
)
from spark_seg.errors import UserError
from spark_seg.labels import CLASSES, histogram

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


class Drawn(NamedTuple):
    """Where one sample's frame goes: see `frame_matrix`.

    Attributes:
        angle, factor, shift, flips: As there.
        quarters: Quarter turns counter-clockwise, 0 to 3, of the frame before everything else.
    """

    angle: float
    factor: float
    shift: np.ndarray
    flips: tuple[bool, bool]
    quarters: int = 0

    @property
    def moved(self) -> bool:
        """Whether pixels lie elsewhere than resizing, turning by quarters and flipping puts them."""
        return self.angle != 0 or self.factor != 1 or bool(self.shift.any())

    def matrix(self, source: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """The map `[2, 3]` from a source of `(H, W)` to an output of `(H, W)`."""
        turned = source[::-1] if self.quarters % 2 else source
        matrix = frame_matrix(turned, size, self.angle, self.factor, self.shift, self.flips)
        return matrix @ quarter_turns(source, self.quarters) if self.quarters else matrix


@TRANSFORMS.register_module()
class RandomWarp(BaseTransform):
    """Resize, turns, scale, rotation, shift, flips and crop in one resampling of the frame.

    The frame is turned by quarters and resized to `size`, then scaled and rotated about its centre, shifted and
    flipped; of the result a window of `crop` is kept. What lies outside of the source frame is black in the
    image and ignored in the mask. Shrinking by two and more averages whole blocks of pixels first,
    so that stars and thin booms do not flicker. With nothing drawn but flips and quarter turns it equals
    `ResizeFrame` exactly, flipped and turned. Draws from numpy's global generator.

    Args:
        size: The frame's new side in pixels, or `(height, width)`.
        hflip: Probability of mirroring left and right.
        vflip: Probability of mirroring top and bottom.
        rotation: Largest angle in degrees, drawn evenly from both sides of zero.
        scale: Largest relative change of size: 0.2 draws a factor from 0.8 to 1.2; or the two factors themselves.
        shift: Largest shift as a share of the new width and height.
        crop: Side or `(height, width)` of the window, at a random place, in pixels or, as a
            float up to 1, as a share of `size`; None keeps the whole frame.
        focus: Probability that the window is placed to hold a pixel of the craft, drawn evenly
            from all of them, instead of anywhere. The craft covers a tenth of the frame, so that
            most windows would miss it.
        cat_max_ratio: As of mmsegmentation's `RandomCrop`: a window in which one class has this share of the
            labelled pixels or more is drawn again, up to ten times. Background has over 0.75 of nearly every frame
            of SPARK; 1.0 never draws again.
        turns: Probability of turning the frame by a quarter, a half or three quarters, drawn evenly: 0.75 makes all
            four ways alike. Space knows no up. Drawn only where above 0.
        least: A window with a smaller share of craft among its labelled pixels is likewise drawn again: of those that
            `focus` places, or with `focus=0` of all. 0.0 never.
    """

    def __init__(
        self,
        size: Size,
        hflip: float = 0.5,
        vflip: float = 0.5,
        rotation: float = 30.0,
        scale: float | Sequence[float] = 0.2,
        shift: float = 0.1,
        crop: Size | float | None = None,
        focus: float = 0.0,
        cat_max_ratio: float = 1.0,
        turns: float = 0.0,
        least: float = 0.0,
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
            ("turns", turns, 1),
            ("least", least, 1),
        ):
            if not 0 <= value <= top:
                raise UserError(f"{name}={value!r}: must lie between 0 and {top}")
        if not 0 <= rotation <= 180:
            raise UserError(f"rotation={rotation!r}: must lie between 0 and 180 degrees")
        self.change = _changes_of_size(scale)
        self.hflip, self.vflip = hflip, vflip
        self.rotation, self.scale, self.shift = rotation, scale, shift
        for name, value in (("focus", focus), ("least", least), ("cat_max_ratio", cat_max_ratio)):
            if value != (name == "cat_max_ratio") and crop is None:
                raise UserError(f"{name}={value!r} places a window: give crop too")
        self.focus, self.cat_max_ratio = focus, cat_max_ratio
        self.turns, self.least = turns, least

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        self.cut(results, self.size, self.crop, self.focus)
        return results

    def cut(
        self,
        results: dict[str, Any],
        size: tuple[int, int],
        crop: tuple[int, int],
        focus: float = 0.0,
    ) -> None:
        """As the transform, in place, with a size, a window and a focus of the caller's.

        Args:
            results: With `img` (uint8 `[H, W, 3]` or `Undecoded`) and, where there is one, `gt_seg_map`.
            size: `(H, W)` of the whole frame.
            crop: `(H, W)` of the window, no larger.
            focus: See the class.
        """
        angle = np.random.uniform(-self.rotation, self.rotation)
        factor = 1 + np.random.uniform(*self.change)
        shift = np.random.uniform(-self.shift, self.shift, 2)
        flips = (np.random.rand() < self.hflip, np.random.rand() < self.vflip)
        place = _anywhere(size, crop)
        quarters = 0
        if self.turns and np.random.rand() < self.turns:
            quarters = np.random.randint(1, 4)
        drawn = Drawn(angle, factor, shift, flips, quarters)
        img, mask = results["img"], results.get("gt_seg_map")
        focused = np.random.rand() < focus and mask is not None
        if mask is not None:
            if focused:
                place = _window_on_craft(mask, drawn, size, crop) or place
            # of the windows that are placed on the craft, where any are; else of all
            least = self.least if focused or not self.focus else 0.0
            tries = 10 if self.cat_max_ratio < 1 or least > 0 else 0
            window = _cut_mask(mask, drawn, size, crop, place)
            while tries and not self._is_mixed(window, least):
                tries, place = tries - 1, _anywhere(size, crop)
                if focused:
                    place = _window_on_craft(mask, drawn, size, crop) or place
                window = _cut_mask(mask, drawn, size, crop, place)
            results["gt_seg_map"] = window
        results["img"] = _cut_image(img, drawn, size, crop, place)
        results["img_shape"] = crop

    def _is_mixed(self, window: np.ndarray, least: float) -> bool:
        counts = histogram(window)[: len(CLASSES)]
        total = max(counts.sum(), 1)
        if counts[1:].sum() < least * total:
            return False
        return self.cat_max_ratio == 1 or bool(
            (counts > 0).sum() > 1 and counts.max() / total < self.cat_max_ratio
        )

    def __repr__(self) -> str:
        return (
            f"RandomWarp(size={self.size}, hflip={self.hflip}, vflip={self.vflip}, "
            f"rotation={self.rotation}, scale={self.scale}, shift={self.shift}, crop={self.crop}, "
            f"focus={self.focus}, cat_max_ratio={self.cat_max_ratio}, turns={self.turns}, "
            f"least={self.least})"
        )


def _changes_of_size(scale: float | Sequence[float]) -> tuple[float, float]:
    """The least and the largest relative change of size that `RandomWarp`'s `scale` stands for."""
    if isinstance(scale, Sequence):
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 4:
            raise UserError(
                f"scale={scale!r}: as two factors they must rise and lie between 0 and 4"
            )
        return scale[0] - 1, scale[1] - 1
    if not 0 <= scale < 1:
        raise UserError(f"scale={scale!r}: must lie between 0 and below 1")
    return -scale, scale


def _anywhere(size: tuple[int, int], crop: tuple[int, int]) -> tuple[int, int]:
    top, left = (np.random.randint(size[k] - crop[k] + 1) for k in (0, 1))
    return top, left


def _window_on_craft(
    mask: np.ndarray, drawn: Drawn, size: tuple[int, int], crop: tuple[int, int]
) -> tuple[int, int] | None:
    """Top and left of a window that holds a random pixel of the craft; None without any."""
    craft = np.flatnonzero(is_craft(mask))
    if not len(craft):
        return None
    y, x = divmod(int(craft[np.random.randint(len(craft))]), mask.shape[1])
    found = drawn.matrix(mask.shape, size) @ (x, y, 1.0)
    within = np.random.rand(2)
    # (x, y) of the pixel in the frame, less where in the window it shall lie
    left, top = (
        int(np.clip(found[k] - within[k] * crop[1 - k], 0, size[1 - k] - crop[1 - k]))
        for k in (0, 1)
    )
    return top, left


def _cut_mask(
    mask: np.ndarray,
    drawn: Drawn,
    size: tuple[int, int],
    crop: tuple[int, int],
    place: tuple[int, int],
) -> np.ndarray:
    if drawn.moved:
        return warp_mask(mask, shifted(drawn.matrix(mask.shape, size), place), crop)
    turned = size[::-1] if drawn.quarters % 2 else size
    return _window(resize_mask(mask, *turned), drawn, crop, place)


def _cut_image(
    img: np.ndarray | Undecoded,
    drawn: Drawn,
    size: tuple[int, int],
    crop: tuple[int, int],
    place: tuple[int, int],
) -> np.ndarray:
    matrix = drawn.matrix(img.shape[:2], size)
    if isinstance(img, Undecoded):
        _check_half(img, size)
        reduce = img.reduction(1 / min(shrinking(matrix)))
        img = img.pixels(reduce, alpha=drawn.moved)
        # a pixel of the reduced picture is a block of the whole one
        matrix = scaled_source(matrix, (reduce, reduce))
    if drawn.moved:
        return warp_image(img, shifted(matrix, place), crop)
    turned = size[::-1] if drawn.quarters % 2 else size
    return _window(resize_image(img, *turned), drawn, crop, place)


def _window(
    frame: np.ndarray, drawn: Drawn, crop: tuple[int, int], place: tuple[int, int]
) -> np.ndarray:
    top, left = place
    order = np.s_[:: -1 if drawn.flips[1] else 1, :: -1 if drawn.flips[0] else 1]
    frame = np.rot90(frame, drawn.quarters)[order]
    return np.ascontiguousarray(frame[top : top + crop[0], left : left + crop[1]])


def _check_half(img: Undecoded, size: tuple[int, int]) -> None:
    """Refuses a cache that holds less than the training wants."""
    if any(
        side > img.enlarge * whole / img.least and img.least > 1
        for side, whole in zip(size, img.shape, strict=False)
    ):
        height, width = (-(-side // img.least) for side in img.shape[:2])
        raise UserError(
            f"the cache's pictures at half size, {width}x{height}, are too small for size={size}: set "
            "cache='labels'"
        )


def is_craft(mask: np.ndarray) -> np.ndarray:
    """bool `[H, W]`: body or panel, of class indices uint8 `[H, W]`."""
    return mask - np.uint8(1) < 2  # 0 and 255 come out above


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
    theta = math.radians(angle)
    cos, sin = float(factor) * math.cos(theta), float(factor) * math.sin(theta)
    # numbers by hand: numpy takes a microsecond for each step, and every sample needs two such maps
    across, down = width / source[1], height / source[0]
    rows = []
    for axis, (x, y, side) in enumerate(((cos, sin, width), (-sin, cos, height))):
        sign = -1.0 if flips[axis] else 1.0
        x, y = sign * x * across, sign * y * down
        # Continuous coordinates u = x + 0.5: out = linear (u - centre_in) + centre_out + move
        centre_in = x * (source[1] / 2 - 0.5) + y * (source[0] / 2 - 0.5)
        rows.append((x, y, side / 2 + sign * float(shift[axis]) * side - centre_in - 0.5))
    return np.array(rows)
