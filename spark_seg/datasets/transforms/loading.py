"""Files into a sample: the image, and its mask as class indices."""

from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from spark_seg.datasets.decode import Undecoded, allowed_enlargement, open_image
from spark_seg.datasets.io import read_image
from spark_seg.datasets.memory import reuse_memory
from spark_seg.errors import UserError
from spark_seg.labels import read_mask


@TRANSFORMS.register_module()
class LoadSparkImage(BaseTransform):
    """Reads `img_path`.

    Sets `img` (uint8 `[H, W, 3]`, BGR), `img_shape` and `ori_shape` (both `(H, W)`).

    Args:
        shrink: Averages blocks of so many pixels a side right after decoding. For training on images much smaller
            than the frames; a mask must be shrunk alike.
        keep: Keeps every image in memory, in each worker, so that a file is decoded once. For small data sets.
        reduce: Leaves the decoding to the `RandomWarp` that must follow: once it has drawn how large the picture
            will be, a JPEG is decoded at 1/2, 1/4 or 1/8 where the result is then enlarged by no more than `reduce`.
            1.0 keeps all detail that the sample can show; 1.25 decodes a 1024 px frame at 1/2 for 512 px whatever
            scale from 0.8 to 1.25 is drawn, a little softer above 1. Also lets a cache of pictures at half size
            (`SparkDataset`'s `cache`) take the place of the files, whatever the scale. None: the whole picture,
            at once.

    Raises:
        UserError: The file is empty, truncated or cannot be decoded; `reduce` goes with `shrink` or `keep`.
    """

    def __init__(self, shrink: int = 1, keep: bool = False, reduce: float | None = None) -> None:
        self.shrink, self.keep = _whole(shrink), keep
        self.reduce = allowed_enlargement(reduce)
        if reduce is not None and (shrink > 1 or keep):
            raise UserError("LoadSparkImage: give reduce, or shrink and keep, not both")
        self._kept: dict[str, tuple[np.ndarray, tuple[int, int]]] = {}

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        reuse_memory()
        path = results["img_path"]
        if self.reduce is not None:
            return self._open(results, self.reduce)
        if path in self._kept:
            img, size = self._kept[path]
        else:
            img = read_image(path)
            size = img.shape[:2]
            if self.shrink > 1:
                img = cv2.resize(img, _shrunk(size, self.shrink), interpolation=cv2.INTER_AREA)
            if self.keep:
                self._kept[path] = img, size
        results["img"] = img
        results["img_shape"], results["ori_shape"] = img.shape[:2], size
        return results

    def _open(self, results: dict[str, Any], enlarge: float) -> dict[str, Any]:
        cache, path = results.get("cache"), results["img_path"]
        img: Undecoded | None = None if cache is None else cache.half(path, enlarge)
        if img is None:
            img = open_image(path, enlarge)
        results["img"] = img
        results["img_shape"] = results["ori_shape"] = (img.height, img.width)
        return results


@TRANSFORMS.register_module()
class LoadSparkMask(BaseTransform):
    """Reads `seg_map_path` in any of the codings of `spark_seg.labels`; comes after
    `LoadSparkImage`. Where the data set has a cache of labels, it takes them from there.

    Sets `gt_seg_map` (uint8 `[H, W]`, class indices) and adds it to `seg_fields`.

    Args:
        shrink: As of `LoadSparkImage`; the nearest pixel is taken, so no class is invented.
        keep: As of `LoadSparkImage`.

    Raises:
        UserError: The file is no mask, or has another size than the image.
    """

    def __init__(self, shrink: int = 1, keep: bool = False) -> None:
        self.shrink, self.keep = _whole(shrink), keep
        self._kept: dict[str, np.ndarray] = {}

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        path = results["seg_map_path"]
        mask = self._kept.get(path)
        if mask is None:
            cache = results.get("cache")
            mask = None if cache is None else cache.labels(path)
            if mask is None:
                mask = read_mask(path)
            if mask.shape != tuple(results["ori_shape"]):
                (ih, iw), (mh, mw) = results["ori_shape"], mask.shape
                raise UserError(
                    f"{results['img_path']} has {iw}x{ih} pixels but its mask "
                    f"{path} {mw}x{mh}: replace the wrong one "
                    "(tools/check_dataset.py lists all such pairs)"
                )
            if self.shrink > 1:
                size = _shrunk(mask.shape, self.shrink)
                mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)
            if self.keep:
                self._kept[path] = mask
        results["gt_seg_map"] = mask
        results.setdefault("seg_fields", []).append("gt_seg_map")
        return results


def _whole(shrink: int) -> int:
    if not isinstance(shrink, int) or shrink < 1:
        raise UserError(f"shrink={shrink!r}: must be a whole number from 1 on")
    return shrink


def _shrunk(size: tuple[int, ...], shrink: int) -> tuple[int, int]:
    """(W, H) after shrinking (H, W), at least one pixel."""
    return max(1, size[1] // shrink), max(1, size[0] // shrink)
