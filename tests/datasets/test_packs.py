"""Packs: records in one file, whole or not there; run lengths."""

import numpy as np
import pytest

from spark_seg.datasets.packs import Pack, PackWriter, decode_runs, digest_of, encode_runs, key_of
from spark_seg.errors import UserError

RECORDS = {"mask/a b.jpg": b"one", "mask/c.jpg": b"", "mask/ä.jpg": b"three" * 100}


def write(path, records=RECORDS, rules="1"):
    with PackWriter(path, "labels", rules) as writer:
        for name, blob in records.items():
            writer.add(name, blob, (4, 5), (7, 8), digest_of(blob))
    return path


def test_records_come_back(tmp_path):
    pack = Pack(write(tmp_path / "deep" / "0.pack"))
    assert (pack.kind, pack.rules, len(pack)) == ("labels", "1", 3)
    assert pack.names() == list(RECORDS)
    for row, (name, blob) in enumerate(RECORDS.items()):
        assert bytes(pack.blob(row)) == blob
        record = pack.index[row]
        assert record["key"] == key_of(name)
        assert (record["height"], record["width"], record["size"], record["mtime"]) == (4, 5, 7, 8)
        assert record["digest"].tobytes() == digest_of(blob)


def test_an_empty_pack(tmp_path):
    pack = Pack(write(tmp_path / "0.pack", {}))
    assert len(pack) == 0
    assert pack.names() == []


def test_an_interrupted_write_leaves_the_old_pack(tmp_path):
    path = write(tmp_path / "0.pack")
    before = path.read_bytes()

    def stop():
        with PackWriter(path, "labels", "2") as writer:
            writer.add("x", b"y", (1, 1), (0, 0), b"")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["0.pack"]


@pytest.mark.parametrize("cut", [0, 5, 60, -1])
def test_half_a_pack_is_none(tmp_path, cut):
    path = write(tmp_path / "0.pack")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"0\.pack: no whole cache file .*; remove it"):
        Pack(path)


def test_damage_is_noticed(tmp_path):
    path = write(tmp_path / "0.pack")
    data = bytearray(path.read_bytes())
    data[len("one") + 10] ^= 1  # in the third blob
    path.write_bytes(data)
    pack = Pack(path)
    assert bytes(pack.blob(0)) == b"one"
    assert pack.blob(2) is None
    assert pack.blob(2, checked=False) is not None
    data[len("one") + 500 + 3] ^= 1  # in the index
    path.write_bytes(data)
    with pytest.raises(UserError, match="index is damaged"):
        Pack(path)


def test_runs_of_any_picture():
    rng = np.random.default_rng(0)
    pictures = [
        rng.integers(0, 3, (13, 17), dtype=np.uint8),
        np.zeros((1024, 1024), np.uint8),  # one run, longer than 16 bits hold
        np.full((1, 1), 255, np.uint8),
        np.repeat(np.array([0, 1], np.uint8), [65535, 65536]).reshape(1, -1),
        np.repeat(np.array([2, 0, 2], np.uint8), [131070, 1, 65534]).reshape(5, -1),
    ]
    for picture in pictures:
        back = decode_runs(encode_runs(picture), *picture.shape)
        assert back.dtype == np.uint8
        assert back.flags.writeable
        np.testing.assert_array_equal(back, picture)
    with pytest.raises(ValueError):
        decode_runs(encode_runs(pictures[0]), 13, 18)
