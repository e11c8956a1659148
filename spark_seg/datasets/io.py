"""Files to pixels: whole, decodable, or one clear line naming the file.

libjpeg fills what a truncated file lacks with grey and only prints a warning, so such a frame would
be trained on unnoticed: completeness is checked on the bytes, before decoding.
"""

import os

import cv2
import numpy as np

from spark_seg.errors import UserError, UserFileNotFoundError

PathLike = str | os.PathLike[str]

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_REMEDY = "copy it again from the original (tools/check_dataset.py lists every such file)"


def is_jpeg(data: bytes) -> bool:
    """Whether the bytes are a JPEG file's, whatever the file is named."""
    return data.startswith(_JPEG)


def is_png(data: bytes) -> bool:
    """Whether the bytes are a PNG file's, whatever the file is named."""
    return data.startswith(_PNG)


def is_complete(data: bytes) -> bool:
    """Whether a JPEG's or PNG's end is there; True for other formats, which decoding judges.

    In a JPEG's coded data every 0xFF is stuffed, so an end marker after the last scan header is the
    real one; one before it belongs to an embedded thumbnail.
    """
    if is_jpeg(data):
        if data.endswith(b"\xff\xd9"):  # nothing can come after it: spares the search
            return True
        return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    if is_png(data):
        return data.rfind(b"IEND") > 0
    return True


def read_bytes(path: PathLike) -> bytes:
    """Reads a file and checks that it is an image file with its end.

    Raises:
        UserFileNotFoundError: There is no such file.
        UserError: It cannot be read, is empty or is truncated.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise UserFileNotFoundError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}): check its permissions"
        ) from None
    if not data:
        raise UserError(f"{path}: the file is empty; {_REMEDY}")
    if not is_complete(data):
        raise UserError(f"{path}: the file is truncated; {_REMEDY}")
    return data


def decode(data: bytes, name: PathLike, flags: int) -> np.ndarray:
    """Decodes an image file's bytes.

    Args:
        data: The file's bytes.
        name: The file's name, for the message.
        flags: OpenCV's `IMREAD_*`.

    Returns:
        The pixels as OpenCV gives them: `[H, W]` or `[H, W, C]` in BGR(A) order.

    Raises:
        UserError: The bytes are no image that OpenCV can decode.
    """
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise UserError(f"{name}: not an image that can be decoded; {_REMEDY}")
    return image


def read_image(path: PathLike) -> np.ndarray:
    """Reads an image as colour, whatever its file's extension says.

    An orientation in the EXIF data is ignored: masks have none, and the test set's answer is judged
    in the file's own pixel order.

    Returns:
        uint8 `[H, W, 3]`, BGR. Greyscale becomes three equal channels, alpha is dropped.

    Raises:
        UserFileNotFoundError: There is no such file.
        UserError: It is empty, truncated or cannot be decoded.
    """
    from spark_seg.datasets.decode import decode_image

    return decode_image(read_bytes(path), path)
