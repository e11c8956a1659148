"""Rectangles of a sample blacked out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmseg.datasets.transforms import RandomCutOut
from mmseg.registry import TRANSFORMS

from spark_seg.errors import UserError
from spark_seg.labels import IGNORE_INDEX

_SIZES = 8  # sides to draw from, for either direction


@TRANSFORMS.register_module()
class CoarseDropout(RandomCutOut):
    """mmseg's `RandomCutOut` with sides from a range, and on a copy: pictures may be shared with a cache.

    DeVries and Taylor, arXiv:1708.04552, with several holes. Labels below a hole stay, so that what is hidden must be
    told from what is around it, as with unlit parts of a craft.

    Args:
        prob: Probability that a sample has holes.
        holes: How many at most; from one on, drawn evenly.
        size: Least and largest side as shares of the sample's.
        ignore: Labels below holes are ignored instead.
    """

    def __init__(
        self,
        prob: float = 0.3,
        holes: int = 8,
        size: Sequence[float] = (0.03, 0.12),
        ignore: bool = False,
    ) -> None:
        if isinstance(prob, bool) or not isinstance(prob, int | float) or not 0 <= prob <= 1:
            raise UserError(f"prob={prob!r}: must lie between 0 and 1")
        if isinstance(holes, bool) or not isinstance(holes, int) or holes < 1:
            raise UserError(f"holes={holes!r}: give a whole number from 1 on")
        if len(size) != 2 or not 0 < size[0] <= size[1] <= 1:
            raise UserError(
                f"size={size!r}: give the least and the largest share, above 0, up to 1"
            )
        sides = np.linspace(size[0], size[1], _SIZES)
        super().__init__(
            prob,
            (1, holes) if holes > 1 else 1,
            cutout_ratio=[(float(w), float(h)) for w in sides for h in sides],
            seg_fill_in=IGNORE_INDEX if ignore else None,
        )

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        results["img"] = results["img"].copy()
        if self.seg_fill_in is not None:
            results["gt_seg_map"] = results["gt_seg_map"].copy()
        return super().transform(results)
