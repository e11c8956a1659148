"""Deflate for label maps: the fastest library that is installed, for either direction.

A submission's array is three megabytes of long runs. isal packs it some forty times as fast as zlib into about 1.1 to
1.3 times the size, zlib-ng's inflate is the fastest way back. Both are optional (`pip install spark-seg[fast]`).
"""

import functools
import importlib
import zlib
from collections.abc import Iterable
from types import ModuleType

_RAW = -15
# Level, window and memory of `compressobj`. A window of 512 bytes keeps isal to matches inside the run, whose codes are
# short: with 32 kB the result was 1.6 times zlib's size, with 512 bytes 1.1. zlib-ng is smallest and slower from level
# 3 on, and its level 1 packs five times worse; zlib's middle level packs three times as tightly as its fastest.
_PACKERS = {"isal.isal_zlib": (1, -9, 9), "zlib_ng.zlib_ng": (2, -15, 9), "zlib": (6, -15, 9)}
_UNPACKERS = ("zlib_ng.zlib_ng", "isal.isal_zlib", "zlib")
_METHOD = 8
_EXPANSION = 1032  # the most that deflate can: 258 bytes from two bits


@functools.cache
def _first(names: Iterable[str]) -> tuple[str, ModuleType]:
    """The first of some modules that can be imported; the last always can."""
    for name in names:
        try:
            return name, importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError(f"none of {names}")


def packer() -> str:
    """The module that compresses here: `isal.isal_zlib`, `zlib_ng.zlib_ng` or `zlib`."""
    return _first(tuple(_PACKERS))[0]


def compress(parts: Iterable[bytes | memoryview]) -> tuple[bytes, int, int]:
    """Raw deflate of the parts, one after the other.

    Returns:
        The packed bytes, and CRC-32 and length of what was packed.
    """
    name, module = _first(tuple(_PACKERS))
    level, window, memory = _PACKERS[name]
    stream = module.compressobj(level, _METHOD, window, memory)
    packed, crc, size = [], 0, 0
    for part in parts:
        packed.append(stream.compress(part))
        crc = module.crc32(part, crc)
        size += len(part)
    packed.append(stream.flush())
    return b"".join(packed), crc, size


def decompress(packed: bytes, size: int) -> bytes | None:
    """What raw deflate holds, if that is exactly `size` bytes and all of it is there; None where it is not.

    However much it holds, no more is unpacked than four times what it should be. Bytes after its end are ignored, as
    `zipfile` does.
    """
    module = _first(_UNPACKERS)[1]
    try:
        if len(packed) * _EXPANSION <= 4 * size:
            data = module.decompress(
                packed, _RAW, size
            )  # into one piece of memory, several times as fast
        else:
            stream = module.decompressobj(_RAW)
            data = stream.decompress(packed, size + 1)
            if not stream.eof:
                return None
    except (module.error, zlib.error):
        return None
    return data if len(data) == size else None


def checksum(data: bytes) -> int:
    """CRC-32."""
    return _first(_UNPACKERS)[1].crc32(data)
