"""Decoding pictures: simplejpeg where it is installed, OpenCV else; JPEGs at reduced size on request.

libjpeg can decode at 1/2, 1/4 and 1/8 by a smaller inverse transform of each block: less to compute, and an average
over the block's pixels. simplejpeg gives the very pixels that OpenCV gives (both are libjpeg-turbo with its exact
transform; tests/datasets/test_decode.py compares), a little faster and with a fourth channel at no cost.
"""

import functools
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from spark_seg.datasets.io import PathLike, decode, is_jpeg, read_bytes
from spark_seg.datasets.jpeg import jpeg_info
from spark_seg.errors import UserError

REDUCTIONS = (8, 4, 2)
_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


@functools.cache
def fast_decoder() -> Any | None:
    """The module simplejpeg, or None where it is not installed (`pip install simplejpeg`)."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def decode_image(
    data: bytes,
    name: PathLike,
    reduce: int = 1,
    size: tuple[int, int] | None = None,
    alpha: bool = False,
) -> np.ndarray:
    """Decodes a picture's bytes as colour.

    Args:
        data: The file's bytes.
        name: The file's name, for the message.
        reduce: 1, 2, 4 or 8: the sides are divided by it, rounding up. A JPEG's blocks are decoded smaller; other
            files are decoded and then averaged.
        size: `(H, W)` of the whole picture where it is known; spares reading the header.
        alpha: Whether a fourth channel of undefined content may come along (warping four is twice as fast as three).

    Returns:
        uint8 `[ceil(H / reduce), ceil(W / reduce), 3]`, BGR; 4 channels with `alpha` where that costs nothing.

    Raises:
        UserError: The bytes are no image that can be decoded.
    """
    if is_jpeg(data):
        decoder = fast_decoder()
        if decoder is not None:
            try:
                height, width = size or decoder.decode_jpeg_header(data)[:2]
                height, width = -(-height // reduce), -(-width // reduce)
                return decoder.decode_jpeg(
                    data,
                    "BGRA" if alpha else "BGR",
                    min_height=height,
                    min_width=width,
                    min_factor=1 if reduce == 1 else reduce,
                    buffer=_kept_in_cache(4 * height * width) if alpha else None,
                )
            except ValueError:
                pass  # CMYK, or bytes after a damage: OpenCV is the judge
        return decode(data, name, _FLAGS[reduce] | cv2.IMREAD_IGNORE_ORIENTATION)
    img = decode(data, name, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return img if reduce == 1 else average_blocks(img, reduce)


def _kept_in_cache(size: int) -> np.ndarray:
    """A buffer for libjpeg-turbo that begins between multiples of 32 bytes.

    Rows that begin at such multiples it writes past the processor's caches (`vmovntdq`, libjpeg-turbo's
    simd/x86_64/jdcolext-avx2.asm), and a warp, which reads along other lines than rows, then waits for memory at
    each of them: 1.5 to 2.3 ms for a picture of 512 x 512 pixels instead of 0.7.
    """
    buffer = np.empty(size + 32, np.uint8)
    start = (16 - buffer.ctypes.data) % 32
    return buffer[start : start + size]


def average_blocks(img: np.ndarray, side: int) -> np.ndarray:
    """Means of blocks of `side` x `side` pixels; a last block that is not full repeats the border."""
    height, width = (-(-n // side) for n in img.shape[:2])
    low, right = height * side - img.shape[0], width * side - img.shape[1]
    if low or right:
        img = cv2.copyMakeBorder(img, 0, low, 0, right, cv2.BORDER_REPLICATE)
    return cv2.resize(img, (width, height), interpolation=cv2.INTER_AREA)


@dataclass(frozen=True)
class Undecoded:
    """A picture whose decoding waits until it is known how much of its detail is used.

    Attributes:
        data: The file's bytes, or the pixels uint8 `[h, w, 3]` where a cache holds them raw.
        name: The file's name.
        height: Of the original picture in pixels.
        width: Likewise.
        least: The reduction that `data` already has: 1, or 2 for pictures kept at half size.
        enlarge: How much a reduced picture may be enlarged afterwards.
    """

    data: bytes | np.ndarray
    name: str
    height: int
    width: int
    least: int = 1
    enlarge: float = 1.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(H, W, 3)` of the original picture."""
        return self.height, self.width, 3

    def reduction(self, scale: float) -> int:
        """The largest reduction that may be decoded when the original is resized by `scale`."""
        for reduce in REDUCTIONS:
            if reduce >= self.least and scale * reduce <= self.enlarge + 1e-9:
                return reduce
        return self.least

    def pixels(self, reduce: int = 1, alpha: bool = False) -> np.ndarray:
        """Decodes at `reduce` (at least `least`); see `decode_image`."""
        reduce = max(reduce // self.least, 1)
        if isinstance(self.data, np.ndarray):
            return self.data if reduce == 1 else average_blocks(self.data, reduce)
        size = (-(-self.height // self.least), -(-self.width // self.least))
        return decode_image(self.data, self.name, reduce, size, alpha)


def open_image(path: PathLike, enlarge: float) -> Undecoded:
    """Reads a picture's bytes and size; its pixels are decoded when they are asked for.

    Raises:
        UserFileNotFoundError: There is no such file.
        UserError: It is empty, truncated, or no picture.
    """
    data = read_bytes(path)
    size = image_size(data)
    if size is None:  # no JPEG: the whole picture says
        img = decode_image(data, path)
        return Undecoded(img, str(path), img.shape[0], img.shape[1], enlarge=enlarge)
    height, width = size
    return Undecoded(data, str(path), height, width, enlarge=enlarge)


def image_size(data: bytes) -> tuple[int, int] | None:
    """`(H, W)` from a JPEG's header; None where the bytes are none or the header is broken."""
    if not is_jpeg(data):
        return None
    decoder = fast_decoder()
    if decoder is not None:
        try:
            height, width = decoder.decode_jpeg_header(data)[:2]
            return int(height), int(width)
        except ValueError:
            pass
    info = jpeg_info(data)
    return None if info is None else (info.height, info.width)


def allowed_enlargement(value: float | None) -> float | None:
    """Checks the `reduce` of a pipeline.

    Raises:
        UserError: It is neither None nor a number from 0.5 to 4.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.5 <= value <= 4:
        raise UserError(
            f"reduce={value!r}: give the largest enlargement of a reduced picture, 0.5 to 4 (1.0 keeps all detail), "
            "or None"
        )
    return float(value)
