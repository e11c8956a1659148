"""Whether packs are up to date, and the new times of source files that were only touched.

After a copy without times, or a restored backup, every file would be read and hashed for every sample: as its time is
another, only its content says that it is the same. So a build, and every training's start, compares such files once
and notes their times beside the packs (`packs.Pack.write_stamps`).
"""

import logging
import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from spark_seg.datasets.cache import RULES, Shard
from spark_seg.datasets.io import read_bytes
from spark_seg.datasets.packs import Pack, digest_of
from spark_seg.errors import UserError
from spark_seg.progress import Progress


def stamp_of(path: str) -> tuple[int, int]:
    """`(size, mtime in ns)`; `(0, 0)` where there is no file."""
    try:
        stat = os.stat(path)
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def is_current(shard: Shard, root: Path | str, thorough: bool) -> bool:
    """Whether a pack is whole, of today's rules and of these frames.

    Args:
        shard: The pack.
        root: The SPARK tree.
        thorough: Whether every source file must also have the size and time that the pack knows.
    """
    pack = _open(shard)
    return pack is not None and not (thorough and _moved(shard, pack, root))


def refresh_stamps(
    root: Path | str, shards: Sequence[Shard], threads: int, tell: bool = False
) -> int:
    """Notes the new time of source files that were touched and hold the same: a look at them is enough again.

    Looks at every file's size and time, as the epoch after it does, and reads those of another time and the same size.
    Any number of processes may do it at once: each begins at another pack and leaves out what the others noted.

    Args:
        root: The SPARK tree.
        shards: The packs as they should be; those that are not there or of other frames are left alone.
        threads: How many work at once.
        tell: Whether to log in one line what was found.

    Returns:
        How many files had been touched; 0 where the cache cannot be written.
    """
    pool = ThreadPoolExecutor(threads, "stamps")
    total = same = 0
    try:
        rows = pool.map(lambda shard: _touched(shard, root), shards)
        work = [(shard, found) for shard, found in zip(shards, rows, strict=True) if found]
        total = sum(len(found) for _, found in work)
        for shard, _ in work:
            if not os.access(shard.path.parent, os.W_OK):  # before gigabytes are read in vain
                raise UserError(f"{shard.path.parent} cannot be written")
        # another order in each process: where several do this, they meet late
        random.Random(os.getpid()).shuffle(work)
        if work:
            with Progress(total, "compare touched files", "files") as bar:
                counts = pool.map(lambda item: _refresh(item[0], item[1], root), work)
                for (_, found), equal in zip(work, counts, strict=True):
                    same += equal
                    bar.update(len(found))
    except UserError as error:
        if tell:
            _log(
                f"cache: {total} files have another time than when it was made, and {error}: each is read and "
                "compared for every sample, which is slow: run tools/cache.py build where it can be written",
                logging.WARNING,
            )
        return 0
    finally:
        pool.shutdown(cancel_futures=True)
    if tell and same:
        _log(
            f"cache: {same} files were touched since it was made and hold the same, which is noted"
        )
    return same


def _open(shard: Shard) -> Pack | None:
    """The pack, where it is whole, of today's rules and of these frames."""
    try:
        pack = Pack(shard.path)
    except (FileNotFoundError, UserError):
        return None
    right = (pack.kind, pack.rules) == (shard.kind, RULES[shard.kind])
    return pack if right and tuple(pack.names()) == shard.names else None


def _moved(shard: Shard, pack: Pack, root: Path | str) -> list[tuple[int, tuple[int, int]]]:
    """Rows whose source file has another stamp than the pack knows, with that stamp."""
    known = map(tuple, pack.stamps().tolist())
    there = (stamp_of(os.path.join(root, name)) for name in shard.names)
    return [
        (row, now) for row, (now, then) in enumerate(zip(there, known, strict=True)) if now != then
    ]


def _touched(shard: Shard, root: Path | str) -> list[int]:
    """Rows whose source file may hold the same though its time is another."""
    pack = _open(shard)
    if pack is None:
        return []
    return [
        row
        for row, (size, _) in _moved(shard, pack, root)
        # another size is other content, and what could not be read has none to compare
        if size == pack.stamp(row)[0] and pack.index[row]["length"]
    ]


def _refresh(shard: Shard, rows: Sequence[int], root: Path | str) -> int:
    """Notes the stamps of those files that hold the same; returns how many do, by whomever they were noted."""
    pack = _open(shard)  # anew: another process may have been here meanwhile
    if pack is None:
        return 0
    stamps = pack.stamps()
    same = new = 0
    for row in rows:
        path = os.path.join(root, shard.names[row])
        stamp = stamp_of(path)  # before it is read: a change after it is seen by its time
        if stamp == pack.stamp(row):
            same += 1
            continue
        try:
            data = read_bytes(path)
        except UserError:
            continue  # reading it for a sample will say what is wrong
        if digest_of(data) == pack.index[row]["digest"].tobytes():
            stamps[row] = np.array(stamp, np.int64)
            new += 1
    if new:
        pack.write_stamps(stamps)
    return same + new


def _log(text: str, level: int = logging.INFO) -> None:
    from mmengine.logging import print_log  # a training has it loaded; the command starts without

    print_log(text, "current", level)
