"""Packing and unpacking with each of the libraries, and the files that come of it."""

import importlib.util
import io
import zipfile
import zlib
from typing import Any

import numpy as np
import pytest

from spark_seg.benchmark.eval_ways import draw, found
from spark_seg.labels import to_submission
from spark_seg.submission import deflate, members
from spark_seg.submission.members import pack, unpack

LIBRARIES = ["isal.isal_zlib", "zlib_ng.zlib_ng", "zlib"]


@pytest.fixture(params=LIBRARIES)
def library(request: Any, monkeypatch: Any) -> Any:
    """The one library that is installed."""
    if importlib.util.find_spec(request.param.split(".")[0]) is None:
        pytest.skip(f"{request.param} is not installed")
    monkeypatch.setattr(deflate, "_PACKERS", {request.param: deflate._PACKERS[request.param]})
    monkeypatch.setattr(deflate, "_UNPACKERS", (request.param,))
    yield request.param
    deflate._first.cache_clear()


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    return [to_submission(found(draw(512, share))) for share in (0.03, 0.09, 0.3)]


def savez(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, data=array)
    return buffer.getvalue()


def test_numpy_and_zipfile_read_it(library: str, frames: list[np.ndarray]) -> None:
    assert deflate.packer() == library
    for array in (*frames, frames[0].view(np.uint8) * np.uint8(255), frames[0][:5, :7].copy()):
        data = pack(array)
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            np.testing.assert_array_equal(file["data"], array)
            assert file["data"].dtype == array.dtype
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.testzip() is None
            (info,) = archive.infolist()
            assert (info.filename, info.compress_type) == ("data.npy", zipfile.ZIP_DEFLATED)
            assert info.external_attr >> 16 == 0o644
        np.testing.assert_array_equal(unpack(data, "m", array.shape[:2]), array)
        np.testing.assert_array_equal(unpack(savez(array), "m"), array)


def test_size_against_savez_compressed(library: str, frames: list[np.ndarray]) -> None:
    sizes = [(len(pack(array)), len(savez(array))) for array in frames]
    assert sum(a for a, _ in sizes) <= 1.6 * sum(b for _, b in sizes)


def test_an_npz_differs_from_numpys_in_time_stamps_and_packing_alone(
    frames: list[np.ndarray],
) -> None:
    ours, theirs = (
        zipfile.ZipFile(io.BytesIO(f(frames[0]))).read("data.npy") for f in (pack, savez)
    )
    assert ours == theirs


def test_nothing_is_unpacked_beyond_what_it_says(library: str) -> None:
    packed, crc, size = deflate.compress([b"ab" * 500, memoryview(b"c" * 10)])
    whole = b"ab" * 500 + b"c" * 10
    assert (crc, size) == (zlib.crc32(whole), 1010)
    assert zlib.decompress(packed, -15) == whole
    assert deflate.decompress(packed, 1010) == whole
    assert deflate.decompress(packed, 1009) is None
    assert deflate.decompress(packed, 1011) is None
    assert deflate.decompress(packed[:-2], 1010) is None
    assert deflate.decompress(packed + b"x", 1010) == whole
    assert deflate.decompress(b"\xff" * 50, 10) is None
    assert deflate.decompress(b"", 10) is None
    assert deflate.checksum(whole) == crc
    # where it might hold a little more than it says, and where it cannot hold much more
    large, _, size = deflate.compress([np.random.default_rng(0).bytes(50) * 10_000])
    assert len(large) * 1032 > size
    flat, _, size = deflate.compress([bytes(5_000_000)])
    assert len(flat) * 1032 <= 4 * size
    for wrong in (-1, 1):
        assert deflate.decompress(flat, size + wrong) is None
        assert deflate.decompress(flat[:-2], size) is None
    assert deflate.decompress(flat, size) == bytes(size)


def test_a_bomb_is_not_unpacked(library: str, monkeypatch: Any) -> None:
    """An entry that declares little and holds much."""
    bomb = bytearray(pack(np.zeros((3000, 3000, 3), np.uint8)))
    declared = (1000).to_bytes(4, "little")
    bomb[22:26] = declared  # local header
    central = bomb.rindex(b"PK\x01\x02")
    bomb[central + 24 : central + 28] = declared
    with pytest.raises(members.UserError, match=r"not a whole npz|not an npy|holds"):
        unpack(bytes(bomb), "m", (3000, 3000))


def test_damage_is_noticed(library: str, frames: list[np.ndarray]) -> None:
    data = pack(frames[0])
    for place in (40, len(data) // 2, len(data) - 90):
        bad = bytearray(data)
        bad[place] ^= 0x55
        with pytest.raises(members.UserError, match=r"^m: "):
            unpack(bytes(bad), "m", (512, 512))
