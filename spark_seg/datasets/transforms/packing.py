"""A sample into the tensors that a model's data preprocessor takes."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.structures import PixelData
from mmseg.registry import TRANSFORMS
from mmseg.structures import SegDataSample


@TRANSFORMS.register_module()
class PackSparkInputs(BaseTransform):
    """mmseg's `PackSegInputs` with the labels left in 8 bits.

    Labels in int64 are eight times as many bytes to write, to hand from the worker to the main process and to copy
    to the device. `SparkDataPreProcessor` widens them there; mmseg's `SegDataPreProcessor` does not, and a loss would
    refuse them.

    Makes `inputs` (uint8 tensor `[3, H, W]`, BGR) and `data_samples` (`gt_sem_seg` uint8 `[1, H, W]` where the sample
    has labels).

    Args:
        meta_keys: What of the sample goes along in the data sample.
    """

    def __init__(
        self, meta_keys: Sequence[str] = ("img_path", "seg_map_path", "ori_shape", "img_shape")
    ) -> None:
        self.meta_keys = tuple(meta_keys)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        img = results["img"]
        planes = np.empty((3, *img.shape[:2]), np.uint8)
        cv2.split(img, [planes[0], planes[1], planes[2]])  # a seventh of transposing's time
        sample = SegDataSample()
        # `set_metainfo` copies deeply, a twentieth of a sample's time: names and shapes need no copy
        for key in self.meta_keys:
            if key in results:
                sample.set_field(results[key], key, field_type="metainfo")
        if "gt_seg_map" in results:
            labels = np.ascontiguousarray(results["gt_seg_map"])
            if not labels.flags.writeable:
                labels = labels.copy()
            sample.gt_sem_seg = PixelData(data=torch.from_numpy(labels)[None])
        return {"inputs": torch.from_numpy(planes), "data_samples": sample}

    def __repr__(self) -> str:
        return f"PackSparkInputs(meta_keys={self.meta_keys})"
