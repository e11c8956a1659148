"""Copies a data tree to a node's own storage before training, once for each node.

The copy is either complete or not there: files go into a folder beside, a manifest (every file with its size and time
of change) is written last, and the folder takes its final name. The name follows from the source's path, so that runs
over the same data share a copy and others do not meet. Processes of one node, of one job or of several, take turns at
a lock; the later ones find the copy made. A copy that no longer equals its source is made anew under
another name, as another run may still read the former one.

The packs of the tree's own cache (`.spark_cache`) come along where they are whole and of these frames, so that no node
decodes all masks again; the copy keeps the times by which they know their files. They are no part of the copy's
identity: one whose originals are there already gets those that it lacks, each written beside and renamed.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_seg.atomic import make_folder, replacing, user_errors, write_bytes
from spark_seg.errors import UserError
from spark_seg.progress import Progress

if TYPE_CHECKING:
    from mmengine.config import Config

MANIFEST = ".spark_staged.json"
_RESERVE = 0.02  # of the disk, left free
_WORKERS = 16  # copying waits for the network most of the time


@dataclass(frozen=True)
class Staged:
    """A copy on this node.

    Attributes:
        root: The copy's folder; takes the place of the source's.
        files: How many files it holds.
        size: Their bytes.
        copied: Whether this call copied them; False where they were there already.
        packs: How many packs of the tree's cache this call took along.
    """

    root: Path
    files: int
    size: int
    copied: bool
    packs: int = 0


def stage(
    source: str | Path,
    to: str | Path,
    workers: int = _WORKERS,
    cached: Mapping[str, Sequence[str]] | None = None,
) -> Staged:
    """Copies a tree to `to/<name>-<digest>`, unless the very same is there already.

    Files count as the same when names, sizes and times of change agree. Names that start with a dot are left out, but
    for the packs that `cached` asks for. Links are followed. May be called by any number of processes at once; one
    copies.

    Args:
        source: The tree, for example on a parallel file system.
        to: A folder on the node's own storage (`$TMPDIR`, `/local/scratch`); made if need be.
        workers: Threads.
        cached: Kinds of the tree's cache to take along, by split (`{"train": ["labels", "half"]}`).

    Raises:
        UserError: `source` is no folder or empty, `to` lies inside it, space is short (checked before anything is
            copied), or a file cannot be read or written.
    """
    source, to = Path(source).expanduser().resolve(), Path(to).expanduser().resolve()
    if not source.is_dir():
        raise UserError(f"staging: {source} is no folder")
    if to == source or source in to.parents:
        raise UserError(f"staging: {to} lies inside {source}: name a folder on node-local storage")
    with user_errors(source):
        files = _files(source)
    if not files:
        raise UserError(f"staging: {source} holds no files")
    size = sum(entry[0] for entry in files.values())
    digest = hashlib.sha256(json.dumps([str(source), files], sort_keys=True).encode()).hexdigest()[
        :12
    ]
    final = make_folder(to) / f"{source.name}-{digest}"
    cached = cached or {}
    if _complete(final, files) and not _lacking(source, final, cached):
        return Staged(final, len(files), size, copied=False)
    with _lock(to / f".{final.name}.lock"), user_errors(final):
        whole = _complete(final, files)
        partial = to / f".{final.name}.partial"
        if not whole:
            # Whoever was here before us was killed.
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(final, ignore_errors=True)
        packs = _lacking(source, final, cached)
        missing = sum(packs.values()) + (0 if whole else size)
        if missing:
            _check_space(to, missing)
        if whole:
            taken = _take_packs(source, final, packs, workers)
            return Staged(final, len(files), size, copied=False, packs=taken)
        try:
            _copy(source, partial, files, size, workers)
            taken = _take_packs(source, partial, packs, workers)
            text = json.dumps({"source": str(source), "files": files}, sort_keys=True)
            write_bytes(partial / MANIFEST, text.encode())
            os.rename(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return Staged(final, len(files), size, copied=True, packs=taken)


def stage_data(
    data_root: str | None, to: str | Path, cached: Mapping[str, Sequence[str]] | None = None
) -> str:
    """The data root of this node's copy: finds the tree as a dataset would, stages it and says so.

    Args:
        data_root: As in a config; None takes SPARK_DATA_ROOT.
        to: See `stage`.
        cached: See `stage`.
    """
    from spark_seg.datasets.layout import find_root

    start = time.monotonic()
    source = find_root(data_root)
    staged = stage(source, to, cached=cached)
    what = f"{staged.files} files, {staged.size / 1e9:.1f} GB"
    if staged.packs:
        what += f", and {staged.packs} packs of its cache"
    if staged.copied:
        print(f"staged {source} as {staged.root}: {what} in {time.monotonic() - start:.0f} s")
    else:
        print(f"staged before: {staged.root} ({what})")
    return str(staged.root)


def _files(source: Path) -> dict[str, list[int]]:
    """Relative path -> [bytes, nanoseconds of the last change], without names that start with a dot."""
    found: dict[str, list[int]] = {}

    def walk(folder: Path, inner: str) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                name = f"{inner}{entry.name}"
                if entry.is_dir():
                    walk(folder / entry.name, f"{name}/")
                elif entry.is_file():
                    stat = entry.stat()
                    found[name] = [stat.st_size, stat.st_mtime_ns]

    walk(source, "")
    return dict(sorted(found.items()))


def _complete(final: Path, files: dict[str, list[int]]) -> bool:
    """Whether the copy has these files, all of them whole (cleaners of scratch folders remove single ones)."""
    try:
        manifest = json.loads((final / MANIFEST).read_text())
        if manifest["files"] != files:
            return False
        here = _files(final)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return {k: v[0] for k, v in here.items()} == {k: v[0] for k, v in files.items()}


def _check_space(to: Path, size: int) -> None:
    disk = shutil.disk_usage(to)
    needed = size + int(_RESERVE * disk.total)
    if needed > disk.free:
        raise UserError(
            f"staging needs {size / 1e9:.1f} GB and {to} has {disk.free / 1e9:.1f} GB free "
            f"({_RESERVE:.0%} of the disk is left alone): free some, name another folder, or train without staging"
        )


def _copy(
    source: Path, partial: Path, files: dict[str, list[int]], size: int, workers: int
) -> None:
    for folder in sorted({str(Path(name).parent) for name in files}):
        (partial / folder).mkdir(parents=True, exist_ok=True)

    def one(name: str) -> int:
        # Neither owner nor mode: what is on a shared file system may be readable through a group only.
        times = (source / name).stat()
        shutil.copyfile(source / name, partial / name)
        # a cache beside the source knows its files by size and time
        os.utime(partial / name, ns=(times.st_atime_ns, times.st_mtime_ns))
        copied = (partial / name).stat().st_size
        if copied != files[name][0]:
            raise UserError(f"staging: {source / name} changed while it was copied: start again")
        return copied

    _each(one, list(files), size, f"stage {source.name}", workers)


def _each(
    copy: Callable[[str], int], names: Sequence[str], size: int, title: str, workers: int
) -> None:
    """Calls `copy`, which returns bytes, for every name in threads, and shows how far it is."""
    done = shown = 0
    pool = ThreadPoolExecutor(max_workers=max(1, workers))
    try:
        with Progress(round(size / 1e6), title, "MB") as bar:
            for copied in pool.map(copy, names):
                done += copied
                bar.update(round(done / 1e6) - shown)
                shown = round(done / 1e6)
    finally:
        pool.shutdown(cancel_futures=True)


def _lacking(source: Path, final: Path, cached: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Packs of the source's own cache, below it, with their bytes: those that may be used and that the copy lacks."""
    from spark_seg.datasets.cache import Shard, cache_folder, shards_of
    from spark_seg.datasets.cache_stamps import is_current
    from spark_seg.datasets.layout import list_frames

    folder = cache_folder(source, None)
    found: dict[str, int] = {}
    if not folder.is_dir():
        return found
    for split, kinds in cached.items():
        for shard in shards_of(list_frames(source, split), source, folder, kinds):
            name = str(shard.path.relative_to(source))
            there = Shard(final / name, shard.kind, shard.names)
            # files that changed since are no reason against it: their records alone are not used
            if not is_current(there, final, False) and is_current(shard, source, False):
                found[name] = shard.path.stat().st_size
    return found


def _take_packs(source: Path, copy: Path, packs: Mapping[str, int], workers: int) -> int:
    """Copies packs with the stamps beside them; returns how many were still there."""
    from spark_seg.datasets.packs import stamps_beside

    def one(name: str) -> int:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        beside = stamps_beside(Path(name))
        return sum(_take(source / part, copy / part) for part in (name, beside))

    if packs:
        _each(one, list(packs), sum(packs.values()), "stage its cache", workers)
    return sum((copy / name).is_file() for name in packs)


def _take(source: Path, target: Path) -> int:
    if not source.is_file():
        return 0  # stamps that never were, or a pack removed meanwhile: the training makes it
    with open(source, "rb") as file, replacing(target, sync=False, shared=True) as copy:
        shutil.copyfileobj(file, copy, 1 << 20)
        return copy.tell()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds a lock of this node; ends with the process, however that ends."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover - Windows
        raise UserError("staging needs a POSIX system (Linux, macOS)") from None
    with user_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        with suppress(OSError):
            os.close(descriptor)


def use_staged(cfg: "Config", to: str | Path) -> None:
    """Stages a config's data and lets every dataset that had its `data_root` read the copy.

    The config that the run records keeps the source (`spark_seg.config.unresolved_text`).

    Args:
        cfg: As from `spark_seg.config.load_config`; changed in place.
        to: See `stage`.
    """
    source = cfg.get("data_root")
    datasets: list[dict[str, Any]] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if "data_root" in value and value["data_root"] == source:
                datasets.append(value)
            for item in value.values():
                walk(item)
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item)

    for name in ("train_dataloader", "val_dataloader"):
        if name in cfg:
            walk(cfg[name])
    copy = stage_data(source, to, _cached(datasets))
    for dataset in datasets:
        dataset["data_root"] = copy
    cfg.data_root = copy


def _cached(datasets: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """What datasets read of the cache in their tree, by split; a `cache_dir` of its own serves the copy where it is."""
    from spark_seg.datasets.cache import kinds_of

    found: dict[str, list[str]] = {}
    for dataset in datasets:
        kinds = () if dataset.get("cache_dir") else kinds_of(dataset.get("cache"))
        split = dataset.get("split", "train")
        # validation reads whole pictures
        for kind in kinds if split == "train" else kinds[:1]:
            if kind not in found.setdefault(split, []):
                found[split].append(kind)
    return found
