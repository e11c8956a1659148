"""How bright and how coloured the pixels are."""

# ruff: noqa: NPY002 - mmengine seeds numpy's global generator, in every loader process

from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from spark_seg.errors import UserError, nearest


@TRANSFORMS.register_module()
class ColorJitter(BaseTransform):
    """Random brightness, contrast, saturation and hue, in 8 bits throughout.

    Brightness multiplies the values; contrast then stretches them about the image's mean grey, both
    by one table. Saturation multiplies S and hue turns H in HSV (at the same V), or they multiply and turn the
    chrominance of YIQ (at the same grey), and then all four are one matrix: a tenth of the time. An argument of 0
    switches its part off; with all at 0 the image is untouched. Draws from numpy's global
    generator, the same numbers in either space.

    Args:
        brightness: Largest relative change: 0.2 draws a factor from 0.8 to 1.2.
        contrast: Likewise.
        saturation: Likewise.
        hue: Largest turn as a share of the full circle, at most 0.5.
        space: `hsv` or `yiq`.
    """

    def __init__(
        self,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
        hue: float = 0.1,
        space: str = "hsv",
    ) -> None:
        limits = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5}
        values = (brightness, contrast, saturation, hue)
        for (name, top), value in zip(limits.items(), values, strict=True):
            if not 0 <= value <= top:
                raise UserError(f"{name}={value!r}: must lie between 0 and {top}")
        if space not in ("hsv", "yiq"):
            raise UserError(
                f"space={space!r}: give 'hsv' or 'yiq'{nearest(str(space), ('hsv', 'yiq'))}"
            )
        self.brightness, self.contrast, self.saturation, self.hue = values
        self.space = space

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        brightness, contrast, saturation = (
            1 + np.random.uniform(-limit, limit)
            for limit in (self.brightness, self.contrast, self.saturation)
        )
        hue = np.random.uniform(-self.hue, self.hue)
        img = results["img"]
        if self.space == "yiq":
            if brightness != 1 or contrast != 1 or saturation != 1 or hue != 0:
                matrix = colour_matrix(mean_grey(img), brightness, contrast, saturation, hue)
                img = cv2.transform(img, matrix)
            results["img"] = img
            return results
        if brightness != 1 or contrast != 1:
            img = cv2.LUT(img, _value_table(img, brightness, contrast))
        if saturation != 1 or hue != 0:
            turned, strength, value = cv2.split(cv2.cvtColor(img, cv2.COLOR_BGR2HSV_FULL))
            turned += np.uint8(round(hue * 256) % 256)  # around the circle
            steps = np.arange(256)
            table = np.minimum(np.rint(steps * saturation), 255).astype(np.uint8)
            hsv = cv2.merge([turned, cv2.LUT(strength, table), value])
            img = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR_FULL)
        results["img"] = img
        return results

    def __repr__(self) -> str:
        return (
            f"ColorJitter(brightness={self.brightness}, contrast={self.contrast}, "
            f"saturation={self.saturation}, hue={self.hue}, space={self.space!r})"
        )


# Y, I and Q (NTSC) of red, green and blue; Y is BT.601's grey
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_RGB = np.linalg.inv(_YIQ)


def mean_grey(img: np.ndarray) -> float:
    """The mean luminance of uint8 `[H, W, 3]`, BGR."""
    blue, green, red = cv2.mean(img)[:3]
    return 0.114 * blue + 0.587 * green + 0.299 * red


def colour_matrix(
    grey: float, brightness: float, contrast: float, saturation: float, hue: float
) -> np.ndarray:
    """The map float64 `[3, 4]` from BGR to BGR that brightness, contrast, saturation and hue make together.

    Args:
        grey: The image's mean luminance, about which contrast stretches.
        brightness: A factor.
        contrast: A factor.
        saturation: A factor, of the chrominance in YIQ.
        hue: Its turn, as a share of the circle.
    """
    angle = -2 * np.pi * hue  # from red over green to blue, as HSV counts
    cos, sin = saturation * np.cos(angle), saturation * np.sin(angle)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    rgb = _RGB @ turn @ _YIQ
    linear = contrast * brightness * rgb[::-1, ::-1]
    # grey stays grey, so the offset is the same for all channels
    return np.column_stack([linear, np.full(3, (1 - contrast) * brightness * grey)])


def _value_table(img: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    values = np.arange(256) * brightness
    if contrast != 1:
        grey = brightness * mean_grey(img)
        values = (values - grey) * contrast + grey
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
