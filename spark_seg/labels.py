"""The one truth about labels: names, colours, the codings and the functions between them.

Codings (H, W: height and width in pixels):
    class index     uint8 [H, W], 0 background, 1 body, 2 panel, 255 ignored
    colour mask     black, red (255 or 254, 0, 0), blue (0, 0, 255 or 254), in SPARK as JPEG
    submission      bool or uint8 0/255 [H, W, 3]: channel 0 body, channel 1 empty, channel 2 panel
"""

import io
from typing import Any

import cv2
import numpy as np

from spark_seg.datasets.io import PathLike, decode, is_jpeg, is_png, read_bytes
from spark_seg.datasets.jpeg import jpeg_info
from spark_seg.errors import UserError

CLASSES = ("background", "body", "panel")
PALETTE = ((0, 0, 0), (255, 0, 0), (0, 0, 255))  # RGB
IGNORE_INDEX = 255

FAR = 60.0
"""Euclidean distance in RGB beyond which a pixel is near none of the three colours."""
FAR_SHARE = 0.01
"""A colour mask with a larger share of far pixels is no mask."""

_SURE = (
    34  # no channel is off by more: the class is beyond doubt, and within FAR (sqrt(3) * 34 < 60)
)
# Weight of chroma beside luminance where chroma is coarse. Of 0 to 0.45 on rendered craft of 24 to
# 300 px, 0.25 was the one never below nearest RGB, even on masks that were compressed twice.
_CHROMA = 0.25
_GREY = 8  # channels that differ by no more than this are grey
_VIEW_IGNORED = (128, 128, 128)
_REMEDY = "put the original colour mask or a single-channel PNG of class indices 0/1/2 in its place"


def decode_mask(img: np.ndarray, name: str) -> np.ndarray:
    """Class indices of a mask as OpenCV decodes it.

    A colour mask's pixel takes the nearest of the three colours in RGB. Since green is zero in all
    three, its share of the distance is common to all and the rule is exactly: not background where
    max(red, blue) > 127, and then panel where blue > red (a tie is body, the lower index). It
    survives what JPEG does to edges.

    A single channel holds the class indices themselves; 255 there is an ignored pixel, accepted
    beside 1 or 2 only, since an image of nothing but 0 and 255 is a black-and-white picture.

    Args:
        img: uint8, `[H, W]`, `[H, W, 3]` (BGR) or `[H, W, 4]` (BGRA, alpha ignored).
        name: The file's name, for messages.

    Returns:
        uint8 `[H, W]` of class indices.

    Raises:
        UserError: The picture is greyscale, holds other indices, or over 1 % of its pixels are
            farther than 60 from all three colours.
    """
    if img.dtype != np.uint8:
        raise UserError(
            f"{name}: a mask has 8 bits per channel, this one is {img.dtype}; {_REMEDY}"
        )
    if img.ndim == 2 or img.shape[2] == 1:
        return _check_indices(img.reshape(img.shape[:2]), name)
    if img.ndim != 3 or img.shape[2] not in (3, 4):
        raise UserError(f"{name}: not a mask, its shape is {img.shape}; {_REMEDY}")
    return _decode_colours(img, name, None)


def read_mask(path: PathLike) -> np.ndarray:
    """Reads a mask of any accepted coding; see `decode_mask`.

    Where a JPEG stores chroma more coarsely than luminance (4:2:0, as most encoders do), only
    luminance knows the edges: red, blue and black have 76, 29 and 0 of it. Unclear pixels then take
    the nearest colour in YCbCr with chroma weighted by 0.25. That is never below nearest RGB and
    loses a fifth as much: body and panel of whole craft keep IoU 0.98 where RGB goes down to 0.955.

    A PNG with a palette counts by its colours where those are the three colours, else by its
    indices. An EXIF orientation is ignored, as for images.

    Returns:
        uint8 `[H, W]` of class indices.

    Raises:
        UserFileNotFoundError: There is no such file.
        UserError: It is empty, truncated, cannot be decoded, or is no mask.
    """
    data = read_bytes(path)
    if is_png(data) and data[25:26] == b"\x03":
        indices = _palette_indices(data, path)
        if indices is not None:
            return _check_indices(indices, str(path))
    img = decode(data, path, cv2.IMREAD_UNCHANGED)
    if img.ndim == 2 and is_jpeg(data) and img.any():
        raise UserError(
            f"{path}: a greyscale JPEG cannot hold labels (JPEG alters indices, grey has no "
            f"colours); {_REMEDY}"
        )
    info = jpeg_info(data)
    if img.ndim == 3 and info is not None and info.chroma_is_coarser:
        luma = decode(data, path, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
        return _decode_colours(img, str(path), luma)
    return decode_mask(img, str(path))


def colorize(labels: np.ndarray) -> np.ndarray:
    """Class indices uint8 `[H, W]` to colours uint8 `[H, W, 3]`, RGB; ignored pixels turn grey.

    Raises:
        ValueError: An index is none of 0, 1, 2, 255.
    """
    _refuse_unknown(labels, ignored=True)
    table = np.full((256, 1, 3), _VIEW_IGNORED, np.uint8)
    table[: len(PALETTE), 0] = PALETTE
    return cv2.LUT(cv2.merge([np.ascontiguousarray(labels, np.uint8)] * 3), table)


def to_submission(labels: np.ndarray, dtype: Any = bool) -> np.ndarray:
    """Class indices uint8 `[H, W]` to the submission's array `[H, W, 3]`: body, empty, panel.

    Args:
        labels: Class indices, without ignored pixels.
        dtype: `bool`, or `np.uint8` for 0/255.

    Raises:
        ValueError: An index is none of 0, 1, 2, or the dtype is neither.
    """
    labels = np.ascontiguousarray(labels, np.uint8)
    if labels.size and int(labels.max()) >= len(CLASSES):
        _refuse_unknown(labels, ignored=False)
    kind = np.dtype(dtype)
    if kind not in (np.bool_, np.uint8):
        raise ValueError(f"a submission array is bool or uint8, not {kind}")
    body, panel = labels & np.uint8(1), labels >> np.uint8(1)  # 1 and 2
    array = cv2.merge([body, np.zeros_like(labels), panel])
    return array.view(bool) if kind == np.bool_ else array * np.uint8(255)


def from_submission(array: np.ndarray, name: str) -> np.ndarray:
    """A submission's array back to class indices.

    Args:
        array: bool or uint8 (0 and 255 only) `[H, W, 3]`.
        name: The file's or member's name, for messages.

    Returns:
        uint8 `[H, W]` of class indices.

    Raises:
        UserError: Other shape, dtype or values; green not empty; a pixel both body and panel.
    """
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise UserError(f"{name}: a submission array is [H, W, 3], this one is {list(array.shape)}")
    if array.dtype == np.uint8:
        counts = histogram(array)
        if counts[0] + counts[255] != array.size:
            raise UserError(f"{name}: uint8 values must be 0 or 255, this array holds others")
    elif array.dtype != np.bool_:
        raise UserError(f"{name}: the dtype must be bool or uint8, not {array.dtype}")
    planes = cv2.split(np.ascontiguousarray(array).view(np.uint8))
    body, green, panel = (np.asarray(plane) for plane in planes)
    if set_pixels := cv2.countNonZero(green):
        raise UserError(f"{name}: channel 1 (green) must be empty, {set_pixels} pixels are set")
    # in place: new memory costs more than the arithmetic
    np.bitwise_and(body, 1, out=body)  # 1 of 1 and of 255
    np.bitwise_and(panel, 1, out=panel)
    np.add(panel, panel, out=panel)
    np.bitwise_or(body, panel, out=body)
    if body.max() > 2:
        raise UserError(f"{name}: {int((body > 2).sum())} pixels are body and panel at once")
    return body


def histogram(values: np.ndarray) -> np.ndarray:
    """How often each value occurs: int64 `[256]` of a uint8 array of any shape."""
    flat = np.ascontiguousarray(values, np.uint8).reshape(1, -1)
    if flat.size >= 1 << 24:  # OpenCV counts in float32
        return np.bincount(flat[0], minlength=256)
    return cv2.calcHist([flat], [0], None, [256], [0, 256]).reshape(-1).astype(np.int64)


def _check_indices(img: np.ndarray, name: str) -> np.ndarray:
    counts = histogram(img)
    found = [int(v) for v in np.flatnonzero(counts)]
    strangers = [v for v in found if v >= len(CLASSES) and v != IGNORE_INDEX]
    if strangers:
        shown = ", ".join(map(str, strangers[:5])) + (" ..." if len(strangers) > 5 else "")
        raise UserError(
            f"{name}: a single-channel mask holds class indices 0, 1, 2 (255: ignored), this one "
            f"holds {shown}: a greyscale picture of a colour mask cannot be read back; {_REMEDY}"
        )
    if counts[IGNORE_INDEX] and not counts[1] and not counts[2]:
        raise UserError(
            f"{name}: holds nothing but {' and '.join(map(str, found))}: a black-and-white picture "
            f"does not tell body from panel; {_REMEDY}"
        )
    return np.ascontiguousarray(img)


def _decode_colours(img: np.ndarray, name: str, luma: np.ndarray | None) -> np.ndarray:
    """Classes of uint8 `[H, W, 3 or 4]`, checked to be a mask; `luma` uint8 `[H, W]` or None."""
    height, width = img.shape[:2]
    labels, unsure = np.empty((2, height, width), np.uint8)
    tint = 0.0
    # Stripes of 64 kB planes stay in the cache and in small allocations: three times as fast.
    step = max(1, 65536 // max(width, 1))
    for top in range(0, height, step):
        rows = slice(top, top + step)
        blue, green, red = cv2.split(img[rows])[:3]
        high, low = cv2.max(red, blue), cv2.min(red, blue)
        craft = cv2.threshold(high, 127, 1, cv2.THRESH_BINARY)[1]
        panel = cv2.bitwise_and(craft, cv2.compare(blue, red, cv2.CMP_GT))
        cv2.add(craft, panel, dst=labels[rows])
        tint = max(tint, cv2.norm(red, blue, cv2.NORM_INF), cv2.norm(red, green, cv2.NORM_INF))
        # How far the worst channel is off the nearest colour.
        off = cv2.max(cv2.max(cv2.min(high, cv2.bitwise_not(high)), low), green)
        cv2.threshold(off, _SURE, 1, cv2.THRESH_BINARY, dst=unsure[rows])
    if tint <= _GREY:
        _refuse_greyscale(img, name)
    limit = FAR_SHARE * labels.size
    count = cv2.countNonZero(unsure)
    if count <= limit and (luma is None or count == 0):
        return labels
    index = np.flatnonzero(unsure.view(bool))
    pixels = img.reshape(-1, img.shape[2])[index, :3].astype(np.int32)
    if count > limit:
        _refuse_picture(pixels, index, labels, name)
    if luma is not None:
        labels.reshape(-1)[index] = _nearest_by_luma(pixels, luma.reshape(-1)[index])
    return labels


def _nearest_by_luma(pixels: np.ndarray, luma: np.ndarray) -> np.ndarray:
    """Classes of int32 `[n, 3]` BGR pixels whose luminance uint8 `[n]` is known and chroma is
    blurred.

    The nearest of the three colours in YCbCr with chroma weighted by `_CHROMA`, as linear functions
    of Y, R and B (Cr = (R - Y) / 1.402, Cb = (B - Y) / 1.772).
    """
    y = luma.astype(np.float32)
    cr, cb = (pixels[:, 2] - y) / np.float32(1.402), (pixels[:, 0] - y) / np.float32(1.772)
    best, classes = np.zeros_like(y), np.zeros(len(y), np.uint8)
    for k in (1, 2):
        r, g, b = (float(v) for v in PALETTE[k])
        yk = 0.299 * r + 0.587 * g + 0.114 * b
        rk, bk = _CHROMA**2 * (r - yk) / 1.402, _CHROMA**2 * (b - yk) / 1.772
        norm = yk**2 + (rk**2 + bk**2) / _CHROMA**2
        # |p|^2 - |p - colour|^2, where black scores zero
        score = np.float32(2 * yk) * y + np.float32(2 * rk) * cr + np.float32(2 * bk) * cb - norm
        classes[score > best] = k
        best = np.maximum(best, score)
    return classes


def _refuse_greyscale(img: np.ndarray, name: str) -> None:
    """Equal channels: fine if uniformly almost black (JPEG), else the colours were lost."""
    brightest = int(img[..., :3].max())
    if brightest > _GREY or brightest > int(img[..., :3].min()):
        raise UserError(
            f"{name}: a greyscale picture (three equal channels): body and panel cannot be told "
            f"apart; {_REMEDY}"
        )


def _refuse_picture(pixels: np.ndarray, index: np.ndarray, labels: np.ndarray, name: str) -> None:
    """Counts the pixels that are far from all colours; `pixels` int32 `[n, 3]` lie at `index`.

    JPEG's coarse chroma makes blends of two colours along the labels' edges. In a small frame they
    alone can be over 1 %, so they count only where nothing but edges is left (over a quarter of the
    frame).
    """
    blue, green, red = pixels.T
    high, low = np.maximum(blue, red), np.minimum(blue, red)
    far = np.minimum(high, 255 - high) ** 2 + low**2 + green**2 > FAR**2
    strange, blends = int(far.sum()), 0
    if FAR_SHARE * labels.size < strange <= labels.size / 4:
        square = np.ones((5, 5), np.uint8)
        edges = cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, square).reshape(-1)[index]
        blends = int((far & (edges > 0) & (green <= 96) & (red + blue <= 320)).sum())
    if strange - blends > FAR_SHARE * labels.size:
        raise UserError(
            f"{name}: not a mask: {strange / labels.size:.1%} of its pixels are far from black, "
            f"red and blue; {_REMEDY}"
        )


def _refuse_unknown(labels: np.ndarray, ignored: bool) -> None:
    counts = histogram(labels)
    legal = int(counts[: len(CLASSES)].sum()) + (int(counts[IGNORE_INDEX]) if ignored else 0)
    if legal != labels.size:
        raise ValueError(
            f"labels hold other values than {'0, 1, 2, 255' if ignored else '0, 1, 2'}"
        )


def _palette_indices(data: bytes, path: PathLike) -> np.ndarray | None:
    """Indices of a palette PNG, or None where its palette holds the mask's own colours."""
    from PIL import Image  # OpenCV replaces indices by colours while decoding

    try:
        with Image.open(io.BytesIO(data)) as image:
            indices = np.asarray(image)
            palette = np.asarray(image.getpalette("RGB"), np.int32).reshape(-1, 3)
    except (OSError, SyntaxError, ValueError):
        return None  # decoding will say what is wrong
    used = np.flatnonzero(np.bincount(indices.ravel()))
    if any(v >= len(CLASSES) and v != IGNORE_INDEX for v in used):
        return None
    colours = palette[used[used < len(palette)]]
    distance = np.linalg.norm(colours[:, None] - np.asarray(PALETTE), axis=2).min(axis=1)
    grey = bool((np.ptp(colours, axis=1) == 0).all())
    return None if (distance <= FAR).all() and not grey else indices
