"""Copies a data tree to a node's own storage before training, once for each node.

The copy is either complete or not there: files go into a folder beside, a manifest (every file with its size and time
of change) is written last, and the folder takes its final name. The name follows from the source's path, so that runs
over the same data share a copy and others do not meet. Processes of one node, of one job or of several, take turns at
a lock; the later ones find the copy made. A copy that no longer equals its source is made anew under
another name, as another run may still read the former one.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_seg.atomic import make_folder, user_errors, write_bytes
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
    """

    root: Path
    files: int
    size: int
    copied: bool


def stage(source: str | Path, to: str | Path, workers: int = _WORKERS) -> Staged:
    """Copies a tree to `to/<name>-<digest>`, unless the very same is there already.

    Files count as the same when names, sizes and times of change agree. Names that start with a dot are left out.
    Links are followed. May be called by any number of processes at once; one copies.

    Args:
        source: The tree, for example on a parallel file system.
        to: A folder on the node's own storage (`$TMPDIR`, `/local/scratch`); made if need be.
        workers: Threads.

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
    if _complete(final, files):
        return Staged(final, len(files), size, copied=False)
    with _lock(to / f".{final.name}.lock"):
        if _complete(final, files):
            return Staged(final, len(files), size, copied=False)
        partial = to / f".{final.name}.partial"
        with user_errors(final):
            # Whoever was here before us was killed.
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(final, ignore_errors=True)
            _check_space(to, size)
            try:
                _copy(source, partial, files, size, workers)
                text = json.dumps({"source": str(source), "files": files}, sort_keys=True)
                write_bytes(partial / MANIFEST, text.encode())
                os.rename(partial, final)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    return Staged(final, len(files), size, copied=True)


def stage_data(data_root: str | None, to: str | Path) -> str:
    """The data root of this node's copy: finds the tree as a dataset would, stages it and says so.

    Args:
        data_root: As in a config; None takes SPARK_DATA_ROOT.
        to: See `stage`.
    """
    from spark_seg.datasets.layout import find_root

    start = time.monotonic()
    source = find_root(data_root)
    staged = stage(source, to)
    what = f"{staged.files} files, {staged.size / 1e9:.1f} GB"
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

    done = shown = 0
    pool = ThreadPoolExecutor(max_workers=max(1, workers))
    try:
        with Progress(round(size / 1e6), f"stage {source.name}", "MB") as bar:
            for copied in pool.map(one, files):
                done += copied
                bar.update(round(done / 1e6) - shown)
                shown = round(done / 1e6)
    finally:
        pool.shutdown(cancel_futures=True)


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
    copy = stage_data(source, to)

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if "data_root" in value and value["data_root"] == source:
                value["data_root"] = copy
            for item in value.values():
                walk(item)
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item)

    for name in ("train_dataloader", "val_dataloader"):
        if name in cfg:
            walk(cfg[name])
    cfg.data_root = copy
