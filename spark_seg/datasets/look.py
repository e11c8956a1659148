"""One frame's files looked at in full: what `tools/check_dataset.py` does in every worker."""

import hashlib
from dataclasses import dataclass

import cv2

from spark_seg.datasets.io import decode, is_jpeg, is_png, read_bytes
from spark_seg.datasets.jpeg import jpeg_info
from spark_seg.datasets.layout import Frame
from spark_seg.datasets.memory import reuse_memory
from spark_seg.errors import UserError
from spark_seg.labels import CLASSES, IGNORE_INDEX, histogram, read_mask


@dataclass
class Look:
    """What one frame's files are; fields of a file that cannot be read stay None.

    Attributes:
        frame: The frame.
        image_error: Why the image cannot be used.
        mask_error: Why the mask cannot be used.
        image_size: `(width, height)` in pixels.
        mask_size: Likewise.
        channels: The image's channels as stored: 1, 3 or 4.
        image_kind: How the image is stored: `JPEG 4:2:0`, `PNG`, `other`.
        mask_kind: Likewise, with the quality: `JPEG 4:2:0 q95`.
        digest: Hash of the image file's bytes.
        counts: Pixels of background, body, panel and ignored.
    """

    frame: Frame
    image_error: str | None = None
    mask_error: str | None = None
    image_size: tuple[int, int] | None = None
    mask_size: tuple[int, int] | None = None
    channels: int | None = None
    image_kind: str | None = None
    mask_kind: str | None = None
    digest: bytes | None = None
    counts: tuple[int, int, int, int] | None = None


def look_at(frame: Frame) -> Look:
    """Reads and decodes a frame's image and mask; never raises for what is wrong with them."""
    look = Look(frame)
    try:
        data = read_bytes(frame.image)
        look.digest = hashlib.blake2b(data, digest_size=16).digest()
        image = decode(data, frame.image, cv2.IMREAD_UNCHANGED)
        look.image_size = (image.shape[1], image.shape[0])
        look.channels = 1 if image.ndim == 2 else image.shape[2]
        look.image_kind = _kind(data, with_quality=False)
    except UserError as error:
        look.image_error = str(error)
    if frame.mask is not None:
        try:
            look.mask_kind = _kind(read_bytes(frame.mask), with_quality=True)
            labels = read_mask(frame.mask)
            look.mask_size = (labels.shape[1], labels.shape[0])
            counts = histogram(labels)
            background, body, panel = (int(counts[k]) for k in range(len(CLASSES)))
            look.counts = (background, body, panel, int(counts[IGNORE_INDEX]))
        except UserError as error:
            look.mask_error = str(error)
    return look


def start_worker() -> None:
    """Prepares a worker process: one thread each, memory kept."""
    cv2.setNumThreads(1)
    reuse_memory()


def _kind(data: bytes, with_quality: bool) -> str:
    if is_png(data):
        return "PNG"
    info = jpeg_info(data) if is_jpeg(data) else None
    if info is None:
        return "other"
    quality = f" q{info.quality}" if with_quality and info.quality is not None else ""
    return f"JPEG {'RGB' if info.rgb else info.subsampling}{quality}"
