"""How bright and how coloured the pixels are."""

# ruff: noqa: NPY002 - mmengine seeds numpy's global generator, in every loader process

from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from spark_seg.errors import UserError


@TRANSFORMS.register_module()
class ColorJitter(BaseTransform):
    """Random brightness, contrast, saturation and hue, in 8 bits throughout.

    Brightness multiplies the values; contrast then stretches them about the image's mean grey, both
    by one table. Saturation multiplies S and hue turns H in HSV (at the same V). An argument of 0
    switches its part off; with all at 0 the image is untouched. Draws from numpy's global
    generator.

    Args:
        brightness: Largest relative change: 0.2 draws a factor from 0.8 to 1.2.
        contrast: Likewise.
        saturation: Likewise.
        hue: Largest turn as a share of the full circle, at most 0.5.
    """

    def __init__(
        self,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
        hue: float = 0.1,
    ) -> None:
        limits = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5}
        values = (brightness, contrast, saturation, hue)
        for (name, top), value in zip(limits.items(), values, strict=True):
            if not 0 <= value <= top:
                raise UserError(f"{name}={value!r}: must lie between 0 and {top}")
        self.brightness, self.contrast, self.saturation, self.hue = values

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        brightness, contrast, saturation = (
            1 + np.random.uniform(-limit, limit)
            for limit in (self.brightness, self.contrast, self.saturation)
        )
        hue = np.random.uniform(-self.hue, self.hue)
        img = results["img"]
        if brightness != 1 or contrast != 1:
            img = cv2.LUT(img, _value_table(img, brightness, contrast))
        if saturation != 1 or hue != 0:
            hsv = cv2.cvtColor(img, cv2.COLOR_BGR2HSV_FULL)
            img = cv2.cvtColor(cv2.LUT(hsv, _hsv_table(saturation, hue)), cv2.COLOR_HSV2BGR_FULL)
        results["img"] = img
        return results

    def __repr__(self) -> str:
        return (
            f"ColorJitter(brightness={self.brightness}, contrast={self.contrast}, "
            f"saturation={self.saturation}, hue={self.hue})"
        )


def _value_table(img: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    values = np.arange(256) * brightness
    if contrast != 1:
        blue, green, red = cv2.mean(img)[:3]
        grey = brightness * (0.114 * blue + 0.587 * green + 0.299 * red)
        values = (values - grey) * contrast + grey
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _hsv_table(saturation: float, hue: float) -> np.ndarray:
    steps = np.arange(256)
    turned = (steps + round(hue * 256)) % 256
    stretched = np.minimum(np.rint(steps * saturation), 255)
    return np.stack([turned, stretched, steps], axis=1).astype(np.uint8).reshape(256, 1, 3)
