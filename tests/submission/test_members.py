"""One member: names, deterministic bytes, and nothing trusted when reading."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest

from spark_seg.errors import UserError
from spark_seg.submission.members import member_name, member_names, pack, unpack

ARRAY = np.zeros((8, 6, 3), bool)
ARRAY[2:5, 1:4, 0] = True
ARRAY[6, :, 2] = True


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def raw_npz(entry, name="data.npy", method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(name, entry)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("image", "member"),
    [
        ("test_00000_img.jpg", "test_00000_layer.npz"),
        ("/data/stream-1-test/test_00017_img.jpg", "test_00017_layer.npz"),
        ("frame.png", "frame_layer.npz"),
        ("a.b_img.jpeg", "a.b_layer.npz"),
        ("img_img_7.jpg", "img_img_7_layer.npz"),
    ],
)
def test_names(image, member):
    assert member_name(image) == member


def test_two_images_with_one_member_are_refused_by_name():
    with pytest.raises(UserError, match=r"one/t_img\.jpg and two/t\.png would both become t_layer"):
        member_names(["one/t_img.jpg", "two/t.png"])
    with pytest.raises(UserError, match="no image"):
        member_names([])


@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_numpy_reads_what_is_packed(dtype):
    array = ARRAY if dtype is bool else ARRAY.astype(np.uint8) * 255
    data = pack(array)
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        assert file.files == ["data"]
        assert file["data"].dtype == dtype
        np.testing.assert_array_equal(file["data"], array)
    back = unpack(data, "m", (8, 6))
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, array)


def test_bytes_depend_on_the_array_alone():
    data = pack(ARRAY)
    assert data == pack(ARRAY.copy())
    info = zipfile.ZipFile(io.BytesIO(data)).infolist()[0]
    assert info.date_time == (1980, 1, 1, 0, 0, 0)
    assert info.compress_type == zipfile.ZIP_DEFLATED


def test_a_mask_packs_into_a_hundredth():
    frame = np.zeros((512, 512, 3), bool)
    frame[100:300, 150:350, 0] = True
    assert len(pack(frame)) < frame.size / 100


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(save):
    for array in (ARRAY, np.asfortranarray(ARRAY)):
        buffer = io.BytesIO()
        save(buffer, data=array)
        np.testing.assert_array_equal(unpack(buffer.getvalue(), "m", (8, 6)), ARRAY)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npz(arr_0=ARRAY), "its keys are 'arr_0'; it must hold the one key 'data'"),
        (npz(data=ARRAY, more=ARRAY), "its keys are 'data', 'more'"),
        (npz(), "its keys are none"),
        (npz(data=ARRAY[..., 0]), r"the shape is \[8, 6\], the image needs \[8, 6, 3\]"),
        (npz(data=ARRAY.transpose(1, 0, 2)), r"the shape is \[6, 8, 3\]"),
        (npz(data=ARRAY.astype(np.float32)), "the dtype is float32, it must be bool or uint8"),
        (npz(data=ARRAY.astype(np.int64)), "the dtype is int64"),
        (npz(data=np.array(["a"])), "the dtype is <U1"),
        (b"", "not a whole npz"),
        (b"hello", "not a whole npz"),
        (npy(ARRAY), "not a whole npz"),
        (pack(ARRAY)[:-30], "not a whole npz"),
        (raw_npz(b"hello"), "not an npy array"),
        (raw_npz(npy(ARRAY)[:60]), "not an npy array"),
        (raw_npz(npy(ARRAY)[:-5]), "holds 139 bytes for an array of 144"),
        (raw_npz(npy(ARRAY) + b"more"), "holds 148 bytes"),
        (raw_npz(npy(ARRAY), name="data"), "its keys are 'data'; it must hold|entries"),
        (raw_npz(npy(ARRAY), method=zipfile.ZIP_LZMA), "compressed by an unusual method"),
        (raw_npz(npy(ARRAY)[:128] + b"\x02" * 144), "bool values must be stored as 0 or 1"),
    ],
)
def test_anything_else_is_one_clear_line(data, message):
    with pytest.raises(UserError, match=message) as error:
        unpack(data, "test_00000_layer.npz", (8, 6))
    assert str(error.value).startswith("test_00000_layer.npz: ")
    assert "\n" not in str(error.value)


def test_without_a_known_size_the_form_still_counts():
    assert unpack(pack(ARRAY), "m").shape == (8, 6, 3)
    with pytest.raises(UserError, match=r"must be \[H, W, 3\]"):
        unpack(npz(data=ARRAY[..., :2]), "m")
    with pytest.raises(UserError, match=r"must be \[H, W, 3\]"):
        unpack(npz(data=np.zeros((0, 4, 3), bool)), "m")


class Bomb:
    def __reduce__(self):
        return (_explode, ())


def _explode():
    raise AssertionError("unpickled")


def test_an_object_array_is_never_unpickled():
    hostile = np.empty((8, 6, 3), object)
    hostile[:] = Bomb()
    assert b"_explode" in pickle.dumps(hostile)
    with pytest.raises(UserError, match="object array"):
        unpack(npz(data=hostile), "m", (8, 6))


def declaring(size):
    """An npz with a megabyte of zeros that declares another size in both of its headers."""
    data = raw_npz(npy(ARRAY)[:128] + bytes(1_000_000))
    true = struct.pack("<I", 1_000_128)
    assert data.count(true) == 2
    return data.replace(true, struct.pack("<I", size))


@pytest.mark.parametrize(("size", "declared"), [((8, 6), 1_000_128), (None, 300_000_000)])
def test_a_bomb_is_refused_by_its_declared_size(size, declared, monkeypatch):
    data = declaring(declared)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(UserError, match=f"declares {declared} bytes"):
        unpack(data, "m", size)


def test_a_bomb_that_lies_about_its_size_is_cut_there():
    with pytest.raises(UserError, match="not a whole npz"):
        unpack(declaring(128 + 144), "m", (8, 6))


def test_a_header_that_declares_more_than_there_is_is_refused_before_reading():
    header = npy(np.zeros((1, 1, 3), bool))[:128].replace(b"(1, 1, 3)", b"(9**9,3) ")
    with pytest.raises(UserError, match="not an npy array"):
        unpack(raw_npz(header + b"\0\0\0"), "m")
    header = npy(np.zeros((1, 1, 3), bool))[:128].replace(
        b"(1, 1, 3), }         ", b"(99999, 99999, 3), } "
    )
    with pytest.raises(UserError, match="holds 3 bytes for an array of 29999400003"):
        unpack(raw_npz(header + b"\0\0\0"), "m")


def test_damaged_bytes_are_noticed():
    data = bytearray(pack(np.random.default_rng(0).random((40, 40, 3)) < 0.5))
    data[200] ^= 0xFF
    with pytest.raises(UserError, match="not a whole npz"):
        unpack(bytes(data), "m", (40, 40))
