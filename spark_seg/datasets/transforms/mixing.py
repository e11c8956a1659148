"""Several frames in one sample: mosaic, and the craft of one frame on the background of another.

Both hold the warp that would else stand in their place in the pipeline, and resample every frame through it once,
straight into where it belongs.
"""

# ruff: noqa: NPY002 - mmengine seeds numpy's global generator, in every loader process

from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from spark_seg.datasets.others import others_of
from spark_seg.datasets.transforms.geometry import RandomWarp, is_craft
from spark_seg.datasets.transforms.pasting import erase_craft, paste_craft
from spark_seg.errors import UserError


class _Mixing(BaseTransform):
    """What holds a warp and now and then does more than it.

    Attributes:
        mixes: That samples need `others`.
        size, crop, focus: The warp's.
    """

    mixes = True

    def __init__(self, warp: Any, prob: float) -> None:
        if isinstance(prob, bool) or not isinstance(prob, int | float) or not 0 <= prob <= 1:
            raise UserError(f"prob={prob!r}: must lie between 0 and 1")
        self.warp = TRANSFORMS.build(warp) if isinstance(warp, dict) else warp
        if not isinstance(self.warp, RandomWarp | _Mixing):
            raise UserError(f"{type(self).__name__} holds a RandomWarp, not {warp!r}")
        self.prob = prob
        self.size: tuple[int, int] = self.warp.size
        self.crop: tuple[int, int] = self.warp.crop
        self.focus: float = self.warp.focus

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
        raise NotImplementedError


@TRANSFORMS.register_module()
class Mosaic(_Mixing):
    """Four frames, each in a quarter of the sample, about a random middle: many small craft, many backgrounds.

    Takes the place of the `RandomWarp` that it holds. A frame is shrunk so far that it covers its quarter, with its
    own draw of turns, flips, scale and so on; where it reaches beyond, the part with the craft is kept. The sample's
    own frame lies in any of the four. Bochkovskiy et al., arXiv:2004.10934.

    Args:
        warp: The `RandomWarp` (or `CopyPaste`), its config or itself.
        prob: Probability of a mosaic; else the warp alone.
        spread: How far from the middle of the sample the four may meet, as a share of its sides.
    """

    def __init__(self, warp: Any, prob: float = 0.5, spread: float = 0.15) -> None:
        super().__init__(warp, prob)
        if not 0 <= spread <= 0.4:
            raise UserError(f"spread={spread!r}: must lie between 0 and 0.4")
        self.spread = spread

    def cut(
        self,
        results: dict[str, Any],
        size: tuple[int, int],
        crop: tuple[int, int],
        focus: float = 0.0,
    ) -> None:
        if np.random.rand() >= self.prob:
            self.warp.cut(results, size, crop, focus)
            return
        others = others_of(results, "Mosaic")
        height, width = crop
        middle = np.random.uniform(0.5 - self.spread, 0.5 + self.spread, 2)
        y, x = max(1, round(middle[0] * height)), max(1, round(middle[1] * width))
        corners = [(0, 0, y, x), (0, x, y, width), (y, 0, height, x), (y, x, height, width)]
        img, mask = np.zeros((*crop, 3), np.uint8), np.empty(crop, np.uint8)
        for number, corner in enumerate(np.random.permutation(4)):
            top, left, low, right = corners[corner]
            part = results if number == 0 else others.draw()
            self._fill(part, size, crop, (low - top, right - left))
            img[top:low, left:right] = part["img"]
            mask[top:low, left:right] = part["gt_seg_map"]
        results["img"], results["gt_seg_map"], results["img_shape"] = img, mask, crop
        results.setdefault("applied", []).append("mosaic")

    def _fill(
        self,
        part: dict[str, Any],
        size: tuple[int, int],
        crop: tuple[int, int],
        space: tuple[int, int],
    ) -> None:
        """Warps a frame into `space`, shrunk as much as the window must be to cover it."""
        scale = max(space[0] / crop[0], space[1] / crop[1])
        small = tuple(max(space[k], round(size[k] * scale)) for k in (0, 1))
        self.warp.cut(part, (small[0], small[1]), space, focus=1.0)

    def __repr__(self) -> str:
        return f"Mosaic(warp={self.warp!r}, prob={self.prob}, spread={self.spread})"


@TRANSFORMS.register_module()
class CopyPaste(_Mixing):
    """The sample's craft on the background of another frame, whose own craft is taken out.

    Takes the place of the `RandomWarp` that it holds, which draws for both frames. The labels are the craft's, of the
    nearest pixel, on the background's; the picture agrees with them to a blend of one pixel along the outline. Where
    the other craft was, the sky or Earth around it is continued and labelled background. A craft that its frame's
    border cuts would show the cut and stays where it is; of backgrounds, those with large craft are passed over. After
    Ghiasi et al., arXiv:2012.07177, but for one craft in a frame, as SPARK has it.

    Args:
        warp: The `RandomWarp`, its config or itself.
        prob: Probability of another background.
        most: Largest share of the frame that the background's craft may cover, where a few draws find such a frame.
    """

    def __init__(self, warp: Any, prob: float = 0.5, most: float = 0.1) -> None:
        super().__init__(warp, prob)
        if not isinstance(self.warp, RandomWarp):
            raise UserError("CopyPaste holds a RandomWarp: let Mosaic hold the CopyPaste")
        if not 0 < most <= 1:
            raise UserError(f"most={most!r}: must lie above 0 and up to 1")
        self.most = most

    def cut(
        self,
        results: dict[str, Any],
        size: tuple[int, int],
        crop: tuple[int, int],
        focus: float = 0.0,
    ) -> None:
        wanted = np.random.rand() < self.prob
        if wanted:
            others = others_of(results, "CopyPaste")
            wanted = not touches_border(results["gt_seg_map"])
        if not wanted:
            self.warp.cut(results, size, crop, focus)
            return
        back = others.draw_with_little_craft(self.most)
        self.warp.cut(results, size, crop, focus)
        self.warp.cut(back, size, crop)
        behind, under = erase_craft(back["img"], back["gt_seg_map"])
        results["img"], results["gt_seg_map"] = paste_craft(
            results["img"], results["gt_seg_map"], behind, under
        )
        results.setdefault("applied", []).append("pasted")

    def __repr__(self) -> str:
        return f"CopyPaste(warp={self.warp!r}, prob={self.prob}, most={self.most})"


def touches_border(mask: np.ndarray) -> bool:
    """Whether craft lies on the outermost pixels of class indices uint8 `[H, W]`."""
    return any(bool(is_craft(line).any()) for line in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))
