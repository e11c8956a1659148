"""Test-time augmentation: the mean of the probabilities over flipped, turned and scaled views of a picture.

Each view goes through the network and back; its logits are resized to the picture's own size, made probabilities there,
and averaged. Views of one shape are one batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spark_seg.errors import UserError, nearest

VIEWS = (1, 2, 4, 8)


@dataclass(frozen=True)
class View:
    """A picture transposed (or not), then mirrored left and right, top and bottom (or not); one of the square's 8.

    Attributes:
        transpose, flip_x, flip_y: As said, in that order.
    """

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    def apply(self, x: Tensor) -> Tensor:
        """[..., H, W] -> [..., H, W], or [..., W, H] where it is transposed."""
        if self.transpose:
            x = x.transpose(-1, -2)
        axes = [axis for axis, flip in ((-1, self.flip_x), (-2, self.flip_y)) if flip]
        return x.flip(axes) if axes else x

    def undo(self, x: Tensor) -> Tensor:
        """The exact reverse of `apply`."""
        axes = [axis for axis, flip in ((-1, self.flip_x), (-2, self.flip_y)) if flip]
        x = x.flip(axes) if axes else x
        return x.transpose(-1, -2) if self.transpose else x


_ALL = (
    View(),
    View(flip_x=True),
    View(flip_y=True),
    View(flip_x=True, flip_y=True),  # turned by 180 degrees
    View(transpose=True),
    View(transpose=True, flip_x=True),  # by 90
    View(transpose=True, flip_y=True),  # by 270
    View(transpose=True, flip_x=True, flip_y=True),
)


@dataclass(frozen=True)
class Tta:
    """What to average over.

    Attributes:
        views: 1, 2 (mirrored left and right), 4 (also top and bottom, and both) or 8 (also transposed: all turns).
        scales: Factors of the network's input size, rounded to multiples of 32 pixels.
        at_once: Pictures of a forward pass, views counted.
    """

    views: int = 2
    scales: tuple[float, ...] = (1.0,)
    at_once: int = 16


def make_tta(value: Any) -> Tta | None:
    """From a config's `tta`: None, a number of views, or `dict(views=..., scales=..., at_once=...)`.

    Raises:
        UserError: An unknown option, or a value out of range.
    """
    if value is None or isinstance(value, Tta):
        return value
    options = dict(value) if isinstance(value, Mapping) else {"views": value}
    known = ("views", "scales", "at_once")
    for key in options:
        if key not in known:
            raise UserError(f"tta takes no {key!r}{nearest(str(key), known)}")
    views, scales = options.get("views", 2), options.get("scales", (1.0,))
    at_once = options.get("at_once", 16)
    if isinstance(views, bool) or views not in VIEWS:
        raise UserError(
            f"tta: views={views!r}; there are {', '.join(map(str, VIEWS))}, and tta=None"
        )
    scales = list(scales) if isinstance(scales, list | tuple) else [scales]
    if not scales or not all(
        isinstance(s, int | float) and not isinstance(s, bool) and 0.1 <= s <= 4 for s in scales
    ):
        raise UserError(f"tta: scales={scales}; give factors between 0.1 and 4")
    if isinstance(at_once, bool) or not isinstance(at_once, int) or at_once < 1:
        raise UserError(f"tta: at_once={at_once!r} must be a whole number from 1 on")
    if views == 1 and [float(s) for s in scales] == [1.0]:
        raise UserError("tta: one view at scale 1 is no augmentation: set tta=None")
    return Tta(views, tuple(float(s) for s in scales), at_once)


def mean_probabilities(
    forward: Callable[[Tensor], Tensor],
    inputs: Tensor,
    sizes: Sequence[tuple[int, int]],
    tta: Tta,
) -> list[Tensor]:
    """The mean over all views of each picture's probabilities.

    Args:
        forward: Normalised pictures [N, 3, h, w] to logits [N, C, h', w'] of any floating dtype.
        inputs: Normalised pictures [B, 3, h, w].
        sizes: (H, W) of each, at which probabilities are averaged.
        tta: What to average over.

    Returns:
        For each picture [C, H, W], fp32 (fp64 for fp64 logits), on the logits' device, summing to 1 over C.
    """
    sums: list[Tensor | None] = [None] * len(inputs)
    for logits, which in _batches(forward, inputs, tta):
        for image, index in zip(logits, which, strict=True):
            height, width = sizes[index]
            full = F.interpolate(
                image[None], size=(height, width), mode="bilinear", align_corners=False
            )[0]
            probs = full.softmax(0)
            total = sums[index]
            sums[index] = probs if total is None else total.add_(probs)
    count = tta.views * len(tta.scales)
    return [total.div_(count) for total in sums if total is not None]


def _batches(
    forward: Callable[[Tensor], Tensor], inputs: Tensor, tta: Tta
) -> Iterator[tuple[list[Tensor], list[int]]]:
    """Logits [C, h', w'] of every view, turned back, and the pictures they belong to."""
    for scale in tta.scales:
        scaled = _scaled(inputs, scale)
        by_shape: dict[torch.Size, list[tuple[View, int, Tensor]]] = {}
        for view in _ALL[: tta.views]:
            for index, picture in enumerate(view.apply(scaled)):
                by_shape.setdefault(picture.shape, []).append((view, index, picture))
        for group in by_shape.values():
            for start in range(0, len(group), tta.at_once):
                part = group[start : start + tta.at_once]
                logits = forward(torch.stack([picture for *_, picture in part]))
                if logits.dtype in (torch.float16, torch.bfloat16):
                    logits = logits.float()
                undone = [view.undo(image) for (view, *_), image in zip(part, logits, strict=True)]
                yield undone, [index for _, index, _ in part]


def _scaled(inputs: Tensor, scale: float) -> Tensor:
    height, width = inputs.shape[2:]
    size = [max(32, 32 * round(scale * side / 32)) for side in (height, width)]
    if scale == 1.0 or tuple(size) == (height, width):
        return inputs  # at scale 1 whatever size the pipeline gave
    return F.interpolate(
        inputs, size=size, mode="bilinear", align_corners=False, antialias=scale < 1
    )


def labels_from_probabilities(probs: Tensor) -> Tensor:
    """The most probable class, [C, H, W] -> uint8 [H, W]; the lowest class wins a tie."""
    best = probs[0].clone()
    labels = torch.zeros_like(best, dtype=torch.uint8)
    for index in range(1, len(probs)):
        labels.masked_fill_(probs[index] > best, index)
        torch.maximum(best, probs[index], out=best)
    return labels
