"""Coarse to fine: from the craft's box to the square window of the frame that is looked at closely.

One rule for training and inference. A window is a square of whole source pixels. It is as large as the smallest crop
that holds the box and its margin, so that the crop is the frame's own pixels, one to one, and what is left of the
crop shows more of the surroundings. A box too large for the largest crop gets a window of its own size, which is shrunk
to that crop. A window lies inside the frame as far as it can; the rest of it is padding.

Boxes are (x0, y0, x1, y1) in source pixels, the ends exclusive.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from spark_seg.errors import UserError, nearest

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Window:
    """A square of the frame and the crop it becomes.

    Attributes:
        x, y: Its left and top pixel; negative where it begins outside of the frame.
        side: Width and height in source pixels.
        size: Width and height of the crop in pixels, at most `side` but for a whole frame smaller than it.
    """

    x: int
    y: int
    side: int
    size: int

    def inside(self, height: int, width: int) -> tuple[slice, slice]:
        """The part that lies in a frame of that size, as slices of it along y and x."""
        return (
            slice(max(self.y, 0), min(self.y + self.side, height)),
            slice(max(self.x, 0), min(self.x + self.side, width)),
        )

    def padding(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Pixels that it reaches beyond such a frame: left, right, top, bottom."""
        return (
            max(-self.x, 0),
            max(self.x + self.side - width, 0),
            max(-self.y, 0),
            max(self.y + self.side - height, 0),
        )


@dataclass(frozen=True)
class RoiRule:
    """How the craft is found and how its window is chosen.

    Attributes:
        coarse: Side of the first pass' picture in pixels.
        crops: Sides that a crop may have, in pixels, ascending; the first is the least, the last the largest.
        margin: On each side of the box, as a share of its longer side.
        least_margin: On each side of the box, in source pixels: the first pass sees no thin booms.
        threshold: Probability of craft from which a place of the first pass counts as part of it.
        sure: What a place's highest probability must reach for it to be believed.
        join: Parts that are at most twice this share of the frame apart are one place.
        fallback: Side in pixels of the second pass' picture of a whole frame.
        mix: Share of the training's loss that is of whole frames at `coarse`; the rest is of crops.
    """

    coarse: int
    crops: tuple[int, ...]
    margin: float = 0.15
    least_margin: int = 16
    threshold: float = 0.3
    sure: float = 0.6
    join: float = 0.05
    fallback: int = 512
    mix: float = 0.25


_OPTIONS = (
    "coarse",
    "crops",
    "margin",
    "least_margin",
    "threshold",
    "sure",
    "join",
    "fallback",
    "mix",
)
_STEP = 32  # what sides are rounded to, the network's coarsest stride


def make_rule(size: int, roi: Any) -> RoiRule:
    """From a config's `image_size`, the side of the largest crop, and its group `roi`.

    Args:
        size: In pixels.
        roi: `coarse`, `crops` and `fallback` as shares of `size` (made multiples of 32 pixels, 1.0 is `size` itself);
            the rest as in `RoiRule`.

    Raises:
        UserError: An unknown key (with the nearest one), or a value out of range.
    """
    if not isinstance(roi, Mapping):
        raise UserError(f"roi={roi!r}: give a group of keys, as configs/segformer_b2_spark_roi.py")
    for key in roi:
        if key not in _OPTIONS:
            raise UserError(f"roi takes no {key!r}{nearest(str(key), _OPTIONS)}")
    options = dict(roi)
    crops = options.get("crops", [1.0])
    crops = list(crops) if isinstance(crops, list | tuple) else [crops]
    if not crops or not all(_within(c, 0, 1) and c > 0 for c in crops) or max(crops) != 1:
        raise UserError(
            f"roi.crops={crops}: give shares of image_size above 0, the largest of them 1.0"
        )
    for key, low, high in (("coarse", 0.05, 2), ("fallback", 0.25, 8)):
        if not _within(options.get(key, 1.0), low, high):
            raise UserError(
                f"roi.{key}={options[key]!r}: give a share of image_size from {low} to {high}"
            )
    defaults = RoiRule(size, (size,))
    values = {
        key: options.get(key, getattr(defaults, key)) for key in _OPTIONS if key not in _SHARES
    }
    for key, value in values.items():
        most = {"margin": 2, "least_margin": 4096, "join": 0.5}.get(key, 1)
        if not _within(value, 0, most):
            raise UserError(f"roi.{key}={value!r}: give a number from 0 to {most}")
    if values["sure"] < values["threshold"]:
        raise UserError(
            f"roi.sure={values['sure']} is below roi.threshold={values['threshold']}: no place would be unsure"
        )
    return RoiRule(
        coarse=_pixels(options.get("coarse", 0.5), size),
        crops=tuple(sorted({_pixels(c, size) for c in crops})),
        fallback=_pixels(options.get("fallback", 1.0), size),
        **values,
    )


_SHARES = ("coarse", "crops", "fallback")


def _within(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _pixels(share: float, size: int) -> int:
    return size if share == 1 else max(_STEP, _STEP * round(share * size / _STEP))


def whole_frame(height: int, width: int, size: int) -> Window:
    """The window of all of a frame, padded to a square of its longer side; enlarged where that is under `size`."""
    side = max(height, width)
    return Window(_start(width, side, 0), _start(height, side, 0), side, size)


def place_window(
    box: Box, height: int, width: int, rule: RoiRule, crops: Sequence[int] | None = None
) -> Window:
    """The window of a box.

    Args:
        box: Of the craft.
        height: Of the frame.
        width: Likewise.
        rule: For margins and crops.
        crops: Instead of the rule's.
    """
    crops = rule.crops if crops is None else crops
    x0, y0, x1, y1 = box
    longer = max(x1 - x0, y1 - y0)
    wanted = math.ceil(longer + 2 * max(rule.margin * longer, rule.least_margin) - 1e-6)
    wanted = min(wanted, max(height, width))
    size = next((s for s in crops if s >= wanted), crops[-1])
    side = max(size, wanted)
    middle = (x0 + x1) / 2, (y0 + y1) / 2
    return Window(_start(width, side, middle[0]), _start(height, side, middle[1]), side, size)


def fallback_window(height: int, width: int, size: int) -> Window:
    """The window of a whole frame in the second pass: padded where it is smaller than `size`, never enlarged."""
    side = max(height, width, size)
    return Window(_start(width, side, 0), _start(height, side, 0), side, size)


def _start(length: int, side: int, middle: float) -> int:
    """Where a window begins along an axis: about `middle`, in the frame; about the frame where it is the longer one."""
    if side >= length:
        return (length - side) // 2
    return min(max(math.floor(middle - side / 2 + 0.5), 0), length - side)


def craft_box(mask: np.ndarray) -> Box | None:
    """The box of all that is body or panel in class indices uint8 [H, W]; None without any."""
    craft = cv2.inRange(mask, 1, 2)  # neither background nor ignored
    x, y, w, h = cv2.boundingRect(craft)
    return (x, y, x + w, y + h) if w else None


@dataclass(frozen=True)
class Place:
    """Where the first pass sees the craft.

    Attributes:
        box: Its box; None where the whole frame must be looked at.
        reason: `found`; or why there is no box: `nothing` (no probability reaches the threshold), `unsure` (no place
            is believed), `two places`.
    """

    box: Box | None
    reason: str


def find_place(craft: np.ndarray, height: int, width: int, rule: RoiRule) -> Place:
    """Looks for the craft in the first pass' probabilities.

    Cells of at least `rule.threshold` that touch, or nearly do (`rule.join`), are one place. A place is believed if its
    highest probability reaches `rule.sure`; places that are not are left out beside one that is.

    Args:
        craft: float32 [n, n]: the probability of not being background, over the frame padded to a square.
        height: Of the frame in source pixels.
        width: Likewise.
        rule: As said.

    Returns:
        The place; its box covers the cells whole.
    """
    cells = craft.shape[0]
    window = whole_frame(height, width, cells)
    step = window.side / cells
    edge = (np.arange(cells) + 0.5) * step
    shown = ((edge + window.y >= 0) & (edge + window.y < height))[:, None] & (
        (edge + window.x >= 0) & (edge + window.x < width)
    )
    # NaN of a diverged network is under every threshold
    mask = ((craft >= rule.threshold) & shown).astype(np.uint8)
    if not mask.any():
        return Place(None, "nothing")
    reach = 2 * round(rule.join * cells) + 1
    joined = cv2.dilate(mask, np.ones((reach, reach), np.uint8))
    count, labels = cv2.connectedComponents(joined, connectivity=8)
    labels = labels * mask
    believed = [k for k in range(1, count) if craft[labels == k].max() >= rule.sure]
    if len(believed) != 1:
        return Place(None, "two places" if believed else "unsure")
    x, y, w, h = cv2.boundingRect((labels == believed[0]).astype(np.uint8))
    return Place(
        (
            max(window.x + x * step, 0),
            max(window.y + y * step, 0),
            min(window.x + (x + w) * step, width),
            min(window.y + (y + h) * step, height),
        ),
        "found",
    )
