"""Makes the cache of `cache.py`: in parallel, taken up where it stopped, anew only where a source file changed.

Packs are written beside and renamed, so several processes, or two jobs, may build one cache at once: each begins at
another pack and leaves out what the others finished. Threads do the work, since OpenCV and numpy release the
interpreter while they decode.

Files that were only touched (a copy without times, a restored backup) would be read and hashed for every sample: their
new times are noted beside the packs first, by a training's start too.
"""

import os
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import cv2

from spark_seg.datasets.cache import RULES, Shard
from spark_seg.datasets.cache_stamps import is_current, refresh_stamps, stamp_of
from spark_seg.datasets.decode import decode_image, image_size
from spark_seg.datasets.io import read_bytes
from spark_seg.datasets.memory import reuse_memory
from spark_seg.datasets.packs import (
    Pack,
    PackWriter,
    digest_of,
    encode_runs,
    read_names,
    remove_leftovers,
)
from spark_seg.errors import UserError
from spark_seg.labels import read_mask
from spark_seg.progress import Progress

QUALITY = (
    92  # that of the challenge's own frames; what it takes is below their noise (docs/data.md)
)
"""Of the JPEGs at half size."""


class _StoppedError(Exception):
    """Another thread failed, or the user interrupts: this one leaves its pack."""


@dataclass
class Built:
    """What a build did.

    Attributes:
        packs: Packs that were there before, whole and up to date.
        made: Records decoded.
        kept: Records of an older pack whose source is the same.
        touched: Records whose source has another time and the same content; see `refresh_stamps`.
        bad: One line for each source file that could not be read; its record is empty.
    """

    packs: int = 0
    made: int = 0
    kept: int = 0
    touched: int = 0
    bad: list[str] = field(default_factory=list)


def build_cache(
    root: Path | str, shards: Sequence[Shard], threads: int = 0, thorough: bool = True
) -> Built:
    """Makes the packs that are missing, damaged, of other rules or of other frames.

    Args:
        root: The SPARK tree.
        shards: The packs as they should be; see `cache.shards_of`.
        threads: How many work at once; 0: one for each core that this process may use.
        thorough: Also make anew the packs of which a source file's content changed. Without it, as in a training,
            such files are read themselves, and other jobs' packs stay where they are.

    Raises:
        UserError: A pack cannot be written.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    workers = threads or (len(affinity(0)) if affinity else os.cpu_count() or 1)
    done = Built(touched=refresh_stamps(root, shards, workers, tell=not thorough))
    todo = [shard for shard in shards if not is_current(shard, root, thorough)]
    done.packs = len(shards) - len(todo)
    for folder in {shard.path.parent for shard in shards}:
        remove_leftovers(folder)
    if not todo:
        return done
    reuse_memory()
    # another order in each process: where several build, they meet late
    random.Random(os.getpid()).shuffle(todo)
    started = {shard.path: _inode(shard.path) for shard in todo}
    lock = threading.Lock()
    total = sum(len(shard.names) for shard in todo)
    stop = threading.Event()
    with Progress(total, "cache", "files") as bar:

        def made_elsewhere(shard: Shard) -> bool:
            same = _inode(shard.path) == started[shard.path]
            return not same and is_current(shard, root, thorough)

        def step() -> None:
            if stop.is_set():
                raise _StoppedError
            with lock:
                bar.update()

        def make(shard: Shard) -> Built:
            try:
                return make_or_leave(shard)
            except BaseException:
                stop.set()  # before this thread takes the next one
                raise

        def make_or_leave(shard: Shard) -> Built:
            if stop.is_set():
                raise _StoppedError
            if made_elsewhere(shard):
                with lock:
                    bar.update(len(shard.names))
                return Built(packs=1)  # another process was faster
            return make_pack(shard, root, step, lambda: made_elsewhere(shard))

        with ThreadPoolExecutor(workers, "cache") as pool:
            jobs = [pool.submit(make, shard) for shard in todo]
            try:
                for job in as_completed(jobs):
                    part = job.result()
                    done.packs += part.packs
                    done.made += part.made
                    done.kept += part.kept
                    done.bad += part.bad
            except BaseException as error:
                stop.set()
                pool.shutdown(cancel_futures=True)
                if isinstance(error, _StoppedError):  # it ended before the one that stopped it
                    for job in jobs:
                        if not job.cancelled() and not isinstance(job.exception(), _StoppedError):
                            job.result()
                raise
    done.bad.sort()
    return done


def make_pack(
    shard: Shard,
    root: Path | str,
    step: Callable[[], None],
    needless: Callable[[], bool] | None = None,
) -> Built:
    """Writes one pack; calls `step` after every record. For `needless` see `PackWriter`.

    Records of the folder's older packs are kept where their source file is the same.
    """
    done = Built()
    older = read_names(sorted(shard.path.parent.glob("*.pack")))
    with PackWriter(shard.path, shard.kind, RULES[shard.kind], needless) as writer:
        for name in shard.names:
            path = os.path.join(root, name)
            stamp = stamp_of(path)
            pack, row = older.get(name, (None, 0))
            if pack is not None and (pack.kind, pack.rules) != (shard.kind, RULES[shard.kind]):
                pack = None
            try:
                blob, shape, digest = _record(path, shard.kind, stamp, pack, row)
                if pack is not None and digest == pack.index[row]["digest"].tobytes():
                    done.kept += 1
                else:
                    done.made += 1
            except UserError as error:
                blob, shape, digest = b"", (0, 0), b""
                done.bad.append(str(error))
            writer.add(name, blob, shape, stamp, digest)
            step()
    return done


def _record(
    path: str, kind: str, stamp: tuple[int, int], pack: Pack | None, row: int
) -> tuple[bytes, tuple[int, int], bytes]:
    data: bytes | None = None
    if pack is not None:
        record = pack.index[row]
        same = pack.stamp(row) == stamp
        digest = record["digest"].tobytes()
        if not same:
            data = read_bytes(path)
            same = digest_of(data) == digest
        old = pack.blob(row) if same and record["length"] else None
        if old is not None:
            return bytes(old), (int(record["height"]), int(record["width"])), digest
    data = data if data is not None else read_bytes(path)
    digest = digest_of(data)
    if kind == "labels":
        labels = read_mask(path)
        return encode_runs(labels), (labels.shape[0], labels.shape[1]), digest
    size = image_size(data)
    if size is None:
        whole = decode_image(data, path)
        size = (whole.shape[0], whole.shape[1])
    half = decode_image(data, path, 2)
    if kind == "half_raw":
        return half.tobytes(), size, digest
    written, code = cv2.imencode(".jpg", half, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert written
    return code.tobytes(), size, digest


def unread_records(shards: Sequence[Shard]) -> list[str]:
    """Names of the source files that could not be read when their packs were written."""
    names = []
    for shard in shards:
        pack = Pack(shard.path)
        names += [
            name for name, size in zip(pack.names(), pack.index["length"], strict=True) if not size
        ]
    return names


@dataclass
class Checked:
    """What a check found.

    Attributes:
        records: Records that should be there.
        missing: Packs that are not there, damaged, or of other rules or frames.
        changed: Source files whose content is another than when their record was made.
        damaged: Records whose bytes, or whose labels when decoded anew, are others.
        bad: Source files that could not be read when the cache was built.
    """

    records: int = 0
    missing: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether a training finds all it asks for."""
        return not (self.missing or self.changed or self.damaged)


def check_cache(root: Path | str, shards: Sequence[Shard], anew: bool = False) -> Checked:
    """Compares the packs with their checksums and with the source files' content.

    Args:
        root: The SPARK tree.
        shards: The packs as they should be.
        anew: Also make every record again and compare it.
    """
    found = Checked(records=sum(len(shard.names) for shard in shards))
    with Progress(found.records, "check", "files") as bar:
        for shard in shards:
            if not is_current(shard, root, thorough=False):
                found.missing.append(str(shard.path))
                bar.update(len(shard.names))
                continue
            pack = Pack(shard.path)
            for row, name in enumerate(shard.names):
                _check_record(pack, row, os.path.join(root, name), name, anew, found)
                bar.update()
    return found


def _check_record(pack: Pack, row: int, path: str, name: str, anew: bool, found: Checked) -> None:
    record = pack.index[row]
    if not record["length"]:
        found.bad.append(name)
        return
    try:
        data = read_bytes(path)
    except UserError:
        data = b""
    if digest_of(data) != record["digest"].tobytes():
        found.changed.append(name)
        return
    blob = pack.blob(row)
    if blob is None or (anew and _record(path, pack.kind, (0, 0), None, 0)[0] != bytes(blob)):
        found.damaged.append(name)


def _inode(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_ino, stat.st_mtime_ns
