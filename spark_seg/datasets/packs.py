"""Many small records in one file: named blobs with an index behind them, read through a memory map.

    blob 0 | blob 1 | ... | index (structured array) | names (UTF-8, one a line) | header (JSON) | tail

A pack is written beside and renamed, so it is there as a whole or not at all. Readers map the file: its pages are
shared by all processes of a machine.

Sizes and times of source files that were touched since lie in a small file beside, `<name>.stamps`. Writing the pack
anew for them would copy its blobs, and on a network file system take the file away from those who have it mapped.
"""

import hashlib
import json
import mmap
import os
import socket
import struct
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from spark_seg.atomic import make_folder, user_errors
from spark_seg.errors import UserError

_MAGIC = b"SPKPACK1"
_TAIL = struct.Struct("<I8s")  # the header's length, magic
_DIGEST = 16  # bytes of `digest_of`

RECORD = np.dtype(
    [
        ("key", "<u8"),  # of the name, see `key_of`
        ("offset", "<u8"),
        ("length", "<u4"),  # 0: the source could not be read
        ("crc", "<u4"),  # CRC-32 of the blob
        ("height", "<u4"),  # of the source in pixels
        ("width", "<u4"),
        ("size", "<u8"),  # of the source file in bytes
        ("mtime", "<i8"),  # of the source file in nanoseconds
        ("digest", "u1", 16),  # BLAKE2b of the source file's bytes
    ]
)


def key_of(name: str) -> int:
    """64 bits of a name's BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def digest_of(data: bytes) -> bytes:
    """16 bytes of BLAKE2b, by which a source file's content is known again."""
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()


def stamps_beside(path: Path) -> Path:
    """The file of the newer sizes and times that belong to a pack; see `Pack.write_stamps`."""
    return path.with_suffix(".stamps")


def _unfinished(path: Path) -> Path:
    # each process has its own, and `remove_leftovers` knows whose it was
    return path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


class PackWriter:
    """Writes a pack record by record; `with` renames it into place, or removes it after an error.

    Two processes may write the same pack at once: each has a file of its own, and the last rename stays.

    Args:
        path: The pack; its folder is made.
        kind: What the blobs are.
        rules: The version of how they are made; a reader asks for the same.
        needless: Asked at the end: whether another process has written the pack meanwhile, so that this one is dropped.
            On a network file system, replacing a file that others have mapped takes it away from them.

    Raises:
        UserError: The disk is full, or the folder cannot be written.
    """

    def __init__(
        self, path: Path, kind: str, rules: str, needless: Callable[[], bool] | None = None
    ) -> None:
        self.path, self.kind, self.rules = path, kind, rules
        self._needless = needless
        self._beside = _unfinished(path)
        self._records: list[tuple[Any, ...]] = []
        self._names: list[str] = []
        self._at = 0
        self._file: IO[bytes]

    def __enter__(self) -> "PackWriter":
        make_folder(self.path.parent)
        with user_errors(self.path):
            self._file = open(self._beside, "wb")
        return self

    def add(
        self, name: str, blob: bytes, shape: tuple[int, int], stamp: tuple[int, int], digest: bytes
    ) -> None:
        """Appends a record; see `RECORD` for what belongs to it.

        Args:
            name: Unique in the pack, without line breaks.
            blob: The bytes; none where the source could not be read.
            shape: `(H, W)` of the source.
            stamp: `(size, mtime in ns)` of the source's file.
            digest: `digest_of` the source's bytes.
        """
        with user_errors(self.path):
            self._file.write(blob)
        crc = zlib.crc32(blob)
        self._records.append(
            (key_of(name), self._at, len(blob), crc, *shape, *stamp, list(digest.ljust(16, b"\0")))
        )
        self._names.append(name)
        self._at += len(blob)

    def __exit__(self, kind: Any, *exc: object) -> None:
        try:
            if kind is None:
                with user_errors(self.path):
                    self._finish()
        finally:
            with suppress(
                OSError
            ):  # once more what the disk had no room for, which is told already
                self._file.close()
            with suppress(OSError):
                self._beside.unlink()

    def _finish(self) -> None:
        index = np.array(self._records, RECORD).tobytes()
        names = "\n".join(self._names).encode()
        header = json.dumps(
            {
                "kind": self.kind,
                "rules": self.rules,
                "count": len(self._names),
                "index": self._at,
                "names": self._at + len(index),
                "digest": digest_of(index + names).hex(),
            }
        ).encode()
        self._file.write(index + names + header + _TAIL.pack(len(header), _MAGIC))
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._needless is None or not self._needless():
            os.replace(self._beside, self.path)
            with suppress(OSError):  # of the former pack, by its digest: no reader would take it
                stamps_beside(self.path).unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 asks only
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    return True


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes of this machine had begun to write in a folder of packs."""
    host = socket.gethostname()
    for ending in ("pack", "stamps"):
        ours = [
            (path, path.name.split(".")[-2]) for path in folder.glob(f"*.{ending}.{host}.*.tmp")
        ]
        # as `atomic.replacing` names them, by which staging copies packs
        ours += [
            (path, path.name.removeprefix(f"{host}.").split(".")[0])
            for path in folder.glob(f"{host}.*.{ending}.tmp")
        ]
        for path, number in ours:
            if number.isdigit() and not _is_alive(int(number)):
                with suppress(OSError):
                    path.unlink()


class Pack:
    """An open pack.

    Attributes:
        path: The file.
        kind: What the blobs are.
        rules: The version of how they were made.
        index: `RECORD` `[n]`, a view of the file.

    Raises:
        UserError: The file is no pack, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            length, magic = _TAIL.unpack(self._map[-_TAIL.size :])
            header = json.loads(self._map[-_TAIL.size - length : -_TAIL.size])
            self.kind, self.rules = str(header["kind"]), str(header["rules"])
            start, middle = int(header["index"]), int(header["names"])
            end = len(self._map) - _TAIL.size - length
            self._names = (middle, end)
            self._digest = digest_of(self._map[start:end])
            whole = self._digest.hex() == header["digest"]
            if magic != _MAGIC or not whole:
                raise ValueError("its index is damaged")
            self.index = np.frombuffer(self._map, RECORD, int(header["count"]), start)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise UserError(f"{path}: no whole cache file ({error}); remove it") from None
        self._newer = self._read_stamps()

    def __len__(self) -> int:
        return len(self.index)

    def stamp(self, row: int) -> tuple[int, int]:
        """`(size, mtime in ns)` of a record's source file when its content was last known to be the record's."""
        if self._newer is not None:
            return int(self._newer[row, 0]), int(self._newer[row, 1])
        record = self.index[row]
        return int(record["size"]), int(record["mtime"])

    def stamps(self) -> np.ndarray:
        """`stamp` of all records: int64 `[n, 2]`, a copy."""
        if self._newer is not None:
            return self._newer.copy()
        return np.stack([self.index["size"].astype(np.int64), self.index["mtime"]], 1)

    def write_stamps(self, stamps: np.ndarray) -> None:
        """Keeps other stamps beside the pack, for this reader and whoever opens it from now on.

        They name the pack's index by its digest, which holds the source files' contents: stamps are never read with a
        pack that they were not compared with. Of several processes that write at once, the last one's stay.

        Args:
            stamps: int64 `[n, 2]` as `stamps` gives them, of files whose content is the record's.

        Raises:
            UserError: The disk is full, or the folder cannot be written.
        """
        data = self._digest + np.ascontiguousarray(stamps, "<i8").tobytes()
        final = stamps_beside(self.path)
        beside = _unfinished(final)
        with user_errors(final):
            try:
                beside.write_bytes(data + digest_of(data))
                os.replace(beside, final)
            finally:
                beside.unlink(missing_ok=True)
        self._newer = self._read_stamps()

    def _read_stamps(self) -> np.ndarray | None:
        """What `write_stamps` wrote; None without it, or where it is damaged or another pack's."""
        try:
            data = stamps_beside(self.path).read_bytes()
        except OSError:
            return None
        body = data[:-_DIGEST]
        whole = len(body) == _DIGEST + 16 * len(self) and digest_of(body) == data[-_DIGEST:]
        if not whole or body[:_DIGEST] != self._digest:
            return None
        return np.frombuffer(body, "<i8", offset=_DIGEST).reshape(-1, 2)

    def names(self) -> list[str]:
        """The records' names, in order."""
        text = self._map[self._names[0] : self._names[1]].decode()
        return text.split("\n") if text else []

    def blob(self, row: int, checked: bool = True) -> memoryview | None:
        """A record's bytes, as a view of the file; None where they are damaged.

        Args:
            row: Which.
            checked: Whether the CRC is compared.
        """
        record = self.index[row]
        start = int(record["offset"])
        view = memoryview(self._map)[start : start + int(record["length"])]
        return None if checked and zlib.crc32(view) != int(record["crc"]) else view


def encode_runs(labels: np.ndarray) -> bytes:
    """Run-length code of uint8 `[H, W]`: lengths uint16 `[n]`, then values uint8 `[n]`, row by row."""
    flat = np.ascontiguousarray(labels, np.uint8).reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(np.append(starts, flat.size))
    parts = (lengths + 65534) // 65535  # a longer run is several
    values = np.repeat(flat[starts], parts)
    pieces = np.full(int(parts.sum()), 65535, np.int64)
    pieces[np.cumsum(parts) - 1] = lengths - 65535 * (parts - 1)
    return pieces.astype("<u2").tobytes() + values.tobytes()


def decode_runs(blob: memoryview | bytes, height: int, width: int) -> np.ndarray:
    """The labels uint8 `[height, width]` of a run-length code.

    Raises:
        ValueError: The runs do not fill the picture.
    """
    count = len(blob) // 3
    lengths = np.frombuffer(blob, "<u2", count)
    return np.repeat(np.frombuffer(blob, np.uint8, count, 2 * count), lengths).reshape(
        height, width
    )


def read_names(paths: Sequence[Path]) -> dict[str, tuple[Pack, int]]:
    """Every record of the packs that can be opened, by its name."""
    found: dict[str, tuple[Pack, int]] = {}
    for path in paths:
        try:
            pack = Pack(path)
        except (UserError, FileNotFoundError):
            continue
        found.update((name, (pack, row)) for row, name in enumerate(pack.names()))
    return found
