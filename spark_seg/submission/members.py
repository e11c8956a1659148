"""One member of a submission: its name, and its bytes in both directions.

A member is what `np.savez_compressed(file, data=array)` writes, except that its bytes carry no time stamps and that
`spark_seg.submission.deflate` compresses. Reading trusts nothing: sizes are compared with what the image can
need before anything is unpacked, and object arrays are refused unread.
"""

import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable
from typing import IO

import numpy as np

from spark_seg.errors import UserError
from spark_seg.submission.deflate import checksum, compress, decompress

KEY = "data"
_ENTRY = f"{KEY}.npy"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_SLACK = 1 << 16
# Where the image's size is unknown: an array of 8192 x 8192 pixels still fits.
_LARGEST = 1 << 28
BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    struct.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
)

Size = tuple[int, int]


def member_name(image: str | os.PathLike[str]) -> str:
    """The member of an image file: `test_00000_img.jpg` -> `test_00000_layer.npz`.

    The rule for any name: the file's stem, without `_img` at its end, plus `_layer.npz`.
    """
    stem = os.path.splitext(os.path.basename(os.fspath(image)))[0]
    return stem.removesuffix("_img") + "_layer.npz"


def member_names(images: Iterable[str | os.PathLike[str]]) -> dict[str, str]:
    """Maps each member to its image, in the order given.

    Raises:
        UserError: Two images have one member, or there is no image.
    """
    found: dict[str, str] = {}
    for image in images:
        path, member = os.fspath(image), member_name(image)
        if member in found:
            raise UserError(
                f"{found[member]} and {path} would both become {member}: keep one of them"
            )
        found[member] = path
    if not found:
        raise UserError("no image to predict: a submission needs at least one")
    return found


def entry_info(name: str, method: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    """A zip entry whose bytes do not tell when or where it was made."""
    info = zipfile.ZipInfo(name, date_time=_EPOCH)
    info.compress_type = method
    info.create_system = 3
    info.external_attr = 0o644 << 16
    return info


def pack(array: np.ndarray) -> bytes:
    """An array as the bytes of an npz file with the one key `data`.

    Equal arrays give equal bytes, as long as the same libraries are installed.

    Args:
        array: Of at least one dimension; uint8 and bool in a submission.

    Raises:
        ValueError: An array of objects.
    """
    array = np.ascontiguousarray(array)
    if array.dtype.hasobject:
        raise ValueError("an array of objects cannot be packed")
    start = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(start, header)
    parts = (start.getvalue(), array.reshape(-1).view(np.uint8).data)
    return _zip_of_one(*compress(parts))


def _zip_of_one(packed: bytes, crc: int, size: int) -> bytes:
    """A zip file of one deflated entry, as the `zipfile` module would write it (PKWARE's APPNOTE 4.3)."""
    name = _ENTRY.encode()
    # Version 2.0, no flags, deflated, midnight of 1980-01-01.
    common = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, crc, len(packed), size, len(name), 0)
    local = b"PK\x03\x04" + common + name
    central = (
        b"PK\x01\x02"
        + struct.pack("<H", 3 << 8 | 20)
        + common
        + struct.pack("<HHHII", 0, 0, 0, 0o644 << 16, 0)
        + name
    )
    end = b"PK\x05\x06" + struct.pack(
        "<HHHHIIH", 0, 0, 1, 1, len(central), len(local) + len(packed), 0
    )
    return b"".join((local, packed, central, end))


def largest(size: Size | None) -> int:
    """Bytes beyond which a member is not read: eight per value of an image [H, W, 3], and some."""
    return _LARGEST if size is None else 8 * 3 * size[0] * size[1] + _SLACK


def read_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    """A zip entry's bytes, if it says that they are at most `limit`.

    Raises:
        UserError: It is too large, encrypted, damaged, or packed by an unusual method.
    """
    name = info.filename
    _refuse_entry(info, name, limit)
    try:
        # zipfile never returns more than the declared size, and compares checksums at the end.
        data = archive.read(info)
    except BROKEN as error:
        raise UserError(f"{name}: damaged ({error})") from error
    if len(data) != info.file_size:
        raise UserError(f"{name}: damaged (shorter than it says)")
    return data


def _refuse_entry(info: zipfile.ZipInfo, name: str, limit: int) -> None:
    if info.file_size > limit:
        raise UserError(
            f"{name}: declares {info.file_size} bytes, more than the {limit} that make sense"
        )
    if info.flag_bits & 1:
        raise UserError(f"{name}: encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"{name}: compressed by an unusual method ({info.compress_type})")


def unpack(data: bytes, name: str, size: Size | None = None) -> np.ndarray:
    """The array of a member.

    Args:
        data: The bytes of the npz file.
        name: The member's name, for messages.
        size: (H, W) of the image; None where it is not known.

    Returns:
        bool or uint8 [H, W, 3], read-only; the values of uint8 are `labels.from_submission`'s task.

    Raises:
        UserError: Damaged, other keys than `data`, an object array (never unpickled), another dtype
            or another shape than the image's.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if [entry.filename for entry in entries] != [_ENTRY]:
                raise _wrong_keys(name, [entry.filename for entry in entries])
            _refuse_entry(entries[0], name, largest(size))
            entry = _read_fast(data, entries[0]) or archive.read(entries[0])
    except UserError:
        raise
    except BROKEN as error:
        raise UserError(f"{name}: not a whole npz file ({error})") from error
    file = io.BytesIO(entry)
    shape, fortran, dtype = _header(file, name)
    _refuse_array(shape, dtype, size, name)
    start, wanted = file.tell(), math.prod(shape)
    if len(entry) - start != wanted:
        raise UserError(f"{name}: holds {len(entry) - start} bytes for an array of {wanted}")
    body = np.frombuffer(entry, np.uint8, offset=start)
    if dtype == np.bool_ and body.max() > 1:
        raise UserError(f"{name}: bool values must be stored as 0 or 1, this array holds others")
    return body.view(dtype).reshape(shape, order="F" if fortran else "C")


def _read_fast(data: bytes, info: zipfile.ZipInfo) -> bytes | None:
    """The content of a deflated entry in the usual form; None of any other, which `zipfile` shall judge."""
    head = data[info.header_offset :][:30]
    if info.compress_type != zipfile.ZIP_DEFLATED or len(head) < 30 or head[:4] != b"PK\x03\x04":
        return None
    start = info.header_offset + 30 + sum(struct.unpack("<HH", head[26:]))
    packed = data[start : start + info.compress_size]
    entry = decompress(packed, info.file_size)
    return entry if entry is not None and checksum(entry) == info.CRC else None


def _wrong_keys(name: str, entries: list[str]) -> UserError:
    keys = [entry.removesuffix(".npy") for entry in entries]
    shown = ", ".join(map(repr, keys[:3])) + (" ..." if len(keys) > 3 else "")
    return UserError(f"{name}: its keys are {shown or 'none'}; it must hold the one key {KEY!r}")


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype of an npy file, read without evaluating anything."""
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(file)
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(file)
    except Exception as error:  # a hostile header may raise anything
        raise UserError(
            f"{name}: not an npy array ({' '.join(str(error).split())[:80]})"
        ) from error
    raise UserError(f"{name}: npy format {version} is not expected here")


def _refuse_array(shape: tuple[int, ...], dtype: np.dtype, size: Size | None, name: str) -> None:
    if dtype.hasobject:
        raise UserError(f"{name}: an object array, which could run code when read; not unpickled")
    if dtype not in (np.dtype(np.bool_), np.dtype(np.uint8)):
        raise UserError(f"{name}: the dtype is {dtype}, it must be bool or uint8")
    if size is not None and tuple(shape) != (*size, 3):
        raise UserError(f"{name}: the shape is {list(shape)}, the image needs {[*size, 3]}")
    if len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise UserError(f"{name}: the shape is {list(shape)}, it must be [H, W, 3]")
