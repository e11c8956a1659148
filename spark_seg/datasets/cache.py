"""Masks decoded once, and pictures kept at half size: what a training reads instead of the original files.

    <cache folder>/labels/<Satellite>/<split>/00000.pack     masks as run lengths of class indices, 5 kB a frame
    <cache folder>/half/...                                  pictures at half size as JPEG of quality 92
    <cache folder>/half_raw/...                              the same as bare pixels, 768 kB a frame of 1024 px
    <cache folder>/.../00000.stamps                          newer sizes and times of files that were touched

A record is used only while its source file has the size and time of when it was made, or else the same content
(BLAKE2b). So the source files must be there, though nothing of them is read but these two. For all other files the
cache answers None and the original is read, so labels are the same with and without it. `cache_build.py` makes it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spark_seg.datasets.decode import Undecoded
from spark_seg.datasets.layout import Frame
from spark_seg.datasets.packs import Pack, decode_runs, digest_of, key_of
from spark_seg.errors import UserError, nearest

CHOICES = ("labels", "labels+half", "labels+half_raw")
"""What the config's `cache` may be beside None and `auto`, which is `labels` where the cache can be written."""

RULES = {"labels": "1", "half": "2", "half_raw": "1"}
"""Version of how each kind is made: raised when `spark_seg.labels` or the halving changes its results."""

SHARD = 512
"""Frames in a pack."""

_FOLDER = ".spark_cache"  # in the tree; names with a dot are no data to `layout`


def kinds_of(cache: str | None) -> tuple[str, ...]:
    """`labels+half` as `("labels", "half")`, `auto` as `("labels",)`; nothing for None.

    Raises:
        UserError: There is no such choice.
    """
    if cache is None:
        return ()
    if cache == "auto":
        return ("labels",)
    if cache not in CHOICES:
        names = ("auto", *CHOICES)
        raise UserError(
            f"cache={cache!r}: give None, {', '.join(map(repr, names))}{nearest(str(cache), names)}"
        )
    return tuple(cache.split("+"))


def cache_folder(root: Path | str, cache_dir: str | None) -> Path:
    """The cache's folder: `cache_dir`, or `.spark_cache` inside the SPARK tree."""
    return Path(cache_dir).expanduser() if cache_dir else Path(root) / _FOLDER


@dataclass(frozen=True)
class Shard:
    """A pack as it should be.

    Attributes:
        path: The pack's file.
        kind: A key of `RULES`.
        names: Its frames' source files, as paths below the tree.
    """

    path: Path
    kind: str
    names: tuple[str, ...]


def shards_of(
    frames: Sequence[Frame], root: Path | str, folder: Path, kinds: Sequence[str]
) -> list[Shard]:
    """The packs of a split; the same whatever subset of it is trained on.

    Args:
        frames: All frames of one split or several, as `layout.list_frames` lists them.
        root: The SPARK tree.
        folder: The cache's folder.
        kinds: Keys of `RULES`.
    """
    groups: dict[str, list[Frame]] = {}
    for frame in frames:
        groups.setdefault(frame.id.rpartition("/")[0], []).append(frame)
    shards = []
    for kind in kinds:
        for group, members in groups.items():
            sources = [frame.mask if kind == "labels" else frame.image for frame in members]
            names = [relative(source, root) for source in sources if source is not None]
            for start in range(0, len(names), SHARD):
                path = folder / kind / group / f"{start // SHARD:05d}.pack"
                shards.append(Shard(path, kind, tuple(names[start : start + SHARD])))
    return shards


def relative(path: str, root: Path | str) -> str:
    """A file's path below the tree, with slashes; the path itself where it lies elsewhere."""
    start = str(root).rstrip(os.sep) + os.sep
    return path[len(start) :] if path.startswith(start) else path


class FrameCache:
    """Open packs, looked up by the path of the source file.

    Holds 16 bytes a frame and kind, and as many again for packs with newer stamps; the packs themselves are mapped, one
    copy for all processes of a machine. Pickles as the list of packs, which are opened again on first use.

    Args:
        root: The SPARK tree.
        shards: The packs that belong to it; those that are missing or of other rules are left out.

    Attributes:
        outdated: Paths of source files that changed since their records were made, or whose records are damaged.
    """

    def __init__(self, root: Path | str, shards: Sequence[Shard]) -> None:
        self.root = str(root)
        self._paths = [(str(shard.path), shard.kind) for shard in shards]
        self._open: dict[str, _Lookup] | None = None
        self.outdated: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    @property
    def kinds(self) -> set[str]:
        """Kinds of which any record is there."""
        return set(self._lookups())

    def labels(self, path: str) -> np.ndarray | None:
        """A mask's class indices uint8 `[H, W]` as `labels.read_mask` gives them; None: read the file itself."""
        found = self._find("labels", path)
        if found is None:
            return None
        pack, row = found
        blob, record = pack.blob(row), pack.index[row]
        if blob is not None:
            try:
                return decode_runs(blob, int(record["height"]), int(record["width"]))
            except ValueError:
                pass
        self.outdated.add(path)
        return None

    def half(self, path: str, enlarge: float = 1.0) -> Undecoded | None:
        """A picture at half size; None: read the file itself.

        Args:
            path: The original picture.
            enlarge: As of `Undecoded`.
        """
        for kind in ("half", "half_raw"):
            found = self._find(kind, path)
            if found is None:
                continue
            pack, row = found
            # the CRC of bare pixels would take as long as all the rest: `cache.py check` compares it
            blob, record = pack.blob(row, checked=kind == "half"), pack.index[row]
            height, width = int(record["height"]), int(record["width"])
            if blob is not None and kind == "half":
                return Undecoded(bytes(blob), path, height, width, 2, enlarge)
            if blob is not None:
                pixels = np.frombuffer(blob, np.uint8).reshape(-(-height // 2), -(-width // 2), 3)
                return Undecoded(pixels, path, height, width, 2, enlarge)
            self.outdated.add(path)
        return None

    def _find(self, kind: str, path: str) -> tuple[Pack, int] | None:
        lookup = self._lookups().get(kind)
        found = None if lookup is None else lookup.find(key_of(relative(path, self.root)))
        if found is None:
            return None
        pack, row = found
        record = pack.index[row]
        try:
            stat = os.stat(path)
            # a training's start notes what was touched before it (`cache_build.refresh_stamps`)
            if (stat.st_size, stat.st_mtime_ns) != pack.stamp(row):
                with open(path, "rb") as file:
                    if digest_of(file.read()) != record["digest"].tobytes():
                        self.outdated.add(path)
                        return None
        except OSError:
            return None  # reading the file itself will say what is wrong
        return (pack, row) if record["length"] else None

    def open(self) -> None:
        """Opens the packs now, not at first use: processes that are forked later share what is held."""
        self._lookups()

    def _lookups(self) -> "dict[str, _Lookup]":
        if self._open is None:
            packs: dict[str, list[Pack]] = {}
            for path, kind in self._paths:
                try:
                    pack = Pack(Path(path))
                except (FileNotFoundError, UserError):
                    continue
                if pack.kind == kind and pack.rules == RULES[kind]:
                    packs.setdefault(kind, []).append(pack)
            self._open = {kind: _Lookup(found) for kind, found in packs.items()}
        return self._open


class _Lookup:
    """Finds a key among the records of several packs."""

    def __init__(self, packs: list[Pack]) -> None:
        self.packs = packs
        keys = np.concatenate([pack.index["key"] for pack in packs])
        owners = np.repeat(np.arange(len(packs), dtype=np.uint32), [len(pack) for pack in packs])
        rows = np.concatenate([np.arange(len(pack), dtype=np.uint32) for pack in packs])
        order = np.argsort(keys, kind="stable")
        self._keys, self._owners, self._rows = keys[order], owners[order], rows[order]

    def find(self, key: int) -> tuple[Pack, int] | None:
        wanted = np.uint64(key)
        at = int(np.searchsorted(self._keys, wanted))
        if at == len(self._keys) or self._keys[at] != wanted:
            return None
        return self.packs[int(self._owners[at])], int(self._rows[at])
