"""What a JPEG's header says about how its pixels were stored, without decoding them."""

import struct
from dataclasses import dataclass

import numpy as np

_SOF = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}

# Luminance table of ITU T.81 annex K, which encoders scale by the quality; sorted, so that the
# order in the file does not matter.
_ANNEX_K = np.sort(
    np.frombuffer(
        bytes.fromhex(
            "100b0a101828333d0c0c0e131a3a3c370e0d1018283945380e11161d3357503e"
            "12162538446d674d182337405168715c31404e5767797865485c5f6270646763"
        ),
        np.uint8,
    ).astype(np.int64)
)


@dataclass(frozen=True)
class JpegInfo:
    """A JPEG's header.

    Attributes:
        width: In pixels.
        height: In pixels.
        factors: Sampling factors `(horizontal, vertical)` of each component, luminance first.
        quality: The quality 1..100 whose standard tables come nearest to the luminance table; None
            without a table.
        rgb: Whether the components are red, green, blue instead of luminance and chrominance.
    """

    width: int
    height: int
    factors: tuple[tuple[int, int], ...]
    quality: int | None
    rgb: bool

    @property
    def subsampling(self) -> str:
        """`4:4:4`, `4:2:2`, `4:2:0`, `4:4:0`, `4:1:1`, `grey`, or the factors themselves."""
        if len(self.factors) == 1:
            return "grey"
        (h, v), (ch, cv) = self.factors[0], self.factors[1]
        names = {
            (1, 1): "4:4:4",
            (2, 1): "4:2:2",
            (2, 2): "4:2:0",
            (1, 2): "4:4:0",
            (4, 1): "4:1:1",
        }
        ratio = (h / ch, v / cv)
        return names.get((int(ratio[0]), int(ratio[1])), f"{h}x{v}/{ch}x{cv}")

    @property
    def chroma_is_coarser(self) -> bool:
        """Whether chrominance has fewer samples than luminance."""
        return not self.rgb and len(self.factors) >= 3 and self.factors[0] != self.factors[1]


def jpeg_info(data: bytes) -> JpegInfo | None:
    """Reads a JPEG's markers up to its first scan; None where there is none or it is broken."""
    if not data.startswith(b"\xff\xd8"):
        return None
    at, table, frame, adobe, names = 2, None, None, 1, b""
    try:
        while True:
            while data[at + 1] == 0xFF:  # fill bytes
                at += 1
            marker, length = data[at + 1], struct.unpack_from(">H", data, at + 2)[0]
            body = data[at + 4 : at + 2 + length]
            if data[at] != 0xFF or len(body) != length - 2:
                return None
            if marker == 0xDB and table is None:
                table = _luminance_table(body)
            elif marker == 0xEE and body.startswith(b"Adobe"):
                adobe = body[11]
            elif marker in _SOF:
                height, width, count = struct.unpack_from(">xHHB", body)
                parts = [body[6 + 3 * k : 9 + 3 * k] for k in range(count)]
                names = bytes(part[0] for part in parts)
                frame = (width, height, tuple((part[1] >> 4, part[1] & 15) for part in parts))
            elif marker == 0xDA:
                break
            at += 2 + length
    except (IndexError, struct.error):
        return None
    if frame is None or not frame[2] or any(0 in factors for factors in frame[2]):
        return None
    rgb = len(frame[2]) == 3 and (adobe == 0 or names == b"RGB")
    return JpegInfo(*frame, quality=None if table is None else _quality(table), rgb=rgb)


def _luminance_table(body: bytes) -> np.ndarray | None:
    """The table with number 0 of a DQT segment, sorted."""
    at = 0
    while at < len(body):
        wide, number = body[at] >> 4, body[at] & 15
        size = 128 if wide else 64
        values = np.frombuffer(body[at + 1 : at + 1 + size], ">u2" if wide else "u1")
        if number == 0 and len(values) == 64:
            return np.sort(values.astype(np.int64))
        at += 1 + size
    return None


def _quality(table: np.ndarray) -> int:
    qualities = np.arange(1, 101)
    scale = np.where(qualities < 50, 5000 // qualities, 200 - 2 * qualities)
    standard = np.clip((_ANNEX_K[None] * scale[:, None] + 50) // 100, 1, 255)
    return int(qualities[np.abs(standard - table).sum(axis=1).argmin()])
