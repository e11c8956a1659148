"""Files into a sample: the image, and its mask as class indices."""

from typing import Any

from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from spark_seg.datasets.io import read_image
from spark_seg.datasets.memory import reuse_memory
from spark_seg.errors import UserError
from spark_seg.labels import read_mask


@TRANSFORMS.register_module()
class LoadSparkImage(BaseTransform):
    """Reads `img_path`.

    Sets `img` (uint8 `[H, W, 3]`, BGR), `img_shape` and `ori_shape` (both `(H, W)`).

    Raises:
        UserError: The file is empty, truncated or cannot be decoded.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        reuse_memory()
        results["img"] = read_image(results["img_path"])
        results["img_shape"] = results["ori_shape"] = results["img"].shape[:2]
        return results


@TRANSFORMS.register_module()
class LoadSparkMask(BaseTransform):
    """Reads `seg_map_path` in any of the codings of `spark_seg.labels`; comes after
    `LoadSparkImage`.

    Sets `gt_seg_map` (uint8 `[H, W]`, class indices) and adds it to `seg_fields`.

    Raises:
        UserError: The file is no mask, or has another size than the image.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        mask = read_mask(results["seg_map_path"])
        if mask.shape != tuple(results["ori_shape"]):
            (ih, iw), (mh, mw) = results["ori_shape"], mask.shape
            raise UserError(
                f"{results['img_path']} has {iw}x{ih} pixels but its mask "
                f"{results['seg_map_path']} {mw}x{mh}: replace the wrong one "
                "(tools/check_dataset.py lists all such pairs)"
            )
        results["gt_seg_map"] = mask
        results.setdefault("seg_fields", []).append("gt_seg_map")
        return results
