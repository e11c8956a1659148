"""The demo data set on disk: a SPARK 2024 tree that is either complete or not there."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from spark_seg.atomic import make_folder, user_errors
from spark_seg.datasets.demo.domain import DOMAINS
from spark_seg.datasets.demo.files import (
    Row,
    measure,
    names,
    write_backgrounds,
    write_csv,
    write_frame,
)
from spark_seg.datasets.layout import SATELLITES
from spark_seg.errors import UserError
from spark_seg.progress import Progress

VERSION = 3  # 2 had the same frames, and no backgrounds.csv
"""Of the renderer: a tree made by another one is made anew."""

MANIFEST = "demo.json"
BACKGROUNDS_FILE = "backgrounds.csv"  # as spark_seg.evaluation.groups reads it
_MADE_BY = "spark_seg demo data"
_OURS = ("tree", "old")  # what is being built, what it replaces
_CHUNK = 4
_LEAST_SIZE = 32
_CHOSEN = ("images", "val", "test", "size", "seed", "train_size", "domain")


def default_counts(images: int, val: int | None = None, test: int | None = None) -> dict[str, int]:
    """Frames per split; val and test default to a third and a fifteenth, as in the real set."""
    return {
        "train": images,
        "val": max(1, round(images / 3)) if val is None else val,
        "test": max(1, round(images / 15)) if test is None else test,
    }


def make_demo_data(
    out: str | os.PathLike[str],
    images: int,
    size: int = 1024,
    seed: int = 0,
    val: int | None = None,
    test: int | None = None,
    workers: int | None = None,
    train_size: int | None = None,
    domain: str = DOMAINS[0],
) -> dict[str, Any]:
    """Renders a SPARK 2024 tree of made-up frames; see the package's docstring for how.

    The tree appears under `out` only when it is complete. One of ours that is already there is
    replaced.

    Args:
        out: Folder to make: `train.csv`, `val.csv`, `images/`, `mask/`, `stream-1-test/` (images)
            and `stream-1-test-truth/` (lossless colour masks), `backgrounds.csv` (`stars`, `limb` or
            `earth` for each image, by which evaluation groups them), `demo.json` (what was made).
        images: Training frames in all; the ten craft take turns.
        size: Width and height in pixels, 32 or more.
        seed: Other seeds give other frames. Frame i of a split depends on seed, split, i and size
            alone.
        val, test: Frames of these splits; a third and a fifteenth of `images` where None.
        workers: Processes; as many as there are cores for us where None.
        train_size: Width and height of the training frames, `size` where None. Half the side renders
            in a fifth of the time; a training that shrinks its frames that far anyway loses nothing.
        domain: `standard`, or `hard`: the same craft, poses and masks in other materials, light and
            background, through a worse camera.

    Returns:
        What `demo.json` holds (`images`, `val`, `test`, `size`, `seed`, `version`, `made_by`,
        `measured`: shares of the classes, of frames without a panel, of the boxes) with `root`,
        `seconds`, `rendered` added.

    Raises:
        UserError: A number makes no sense; `out` holds something that was not made here; the disk
            is full or the folder cannot be written.
    """
    spec = _spec(images, size, seed, val, test, train_size, domain)
    root = _checked_root(out)
    workers = _workers(workers, sum(spec[k] for k in ("images", "val", "test")))
    with _beside(root) as partial:
        return _fill(root, partial, spec, workers)


def ensure_demo_data(
    root: str | os.PathLike[str],
    images: int,
    size: int = 1024,
    seed: int = 0,
    val: int | None = None,
    test: int | None = None,
    workers: int | None = None,
    train_size: int | None = None,
    domain: str = DOMAINS[0],
    replace: bool = True,
) -> dict[str, Any]:
    """`make_demo_data`, unless the very same tree is there already.

    Processes that ask for the same tree at once take turns; the later ones find it made.

    Args:
        replace: Whether a tree of ours with other frames may be replaced; one of an older renderer is in any case. All
            else as of `make_demo_data`.

    Returns:
        As `make_demo_data`; `rendered` tells whether there was anything to do.

    Raises:
        UserError: As `make_demo_data`; there is another tree, and it is not to be replaced.
    """
    spec = _spec(images, size, seed, val, test, train_size, domain)
    path = _checked_root(root)
    workers = _workers(workers, sum(spec[k] for k in ("images", "val", "test")))
    present = _present(path, spec)
    if present is not None:
        return present
    if not replace:
        _refuse_others(path, spec)
    with _beside(path) as partial:
        if not replace:  # of whom we waited for
            _refuse_others(path, spec)
        return _present(path, spec) or _fill(path, partial, spec, workers)


def _refuse_others(path: Path, spec: dict[str, Any]) -> None:
    other = _manifest(path)
    if other is not None and any(other.get(k) != spec.get(k) for k in _CHOSEN):
        made = ", ".join(f"{key} {other[key]}" for key in ("version", *_CHOSEN) if key in other)
        raise UserError(
            f"{path} holds other demo frames ({made}): name another folder; make_demo_data --force renders over "
            "them, and a config takes them as they are with demo_data=None"
        )


def _spec(
    images: int,
    size: int,
    seed: int,
    val: int | None,
    test: int | None,
    train_size: int | None,
    domain: str,
) -> dict[str, Any]:
    if domain not in DOMAINS:
        raise UserError(f"demo data: domain must be {' or '.join(DOMAINS)}, not {domain!r}")
    counts = default_counts(images, val, test)
    for name, value, least in (
        ("images", images, 1),
        ("val", counts["val"], 0),
        ("test", counts["test"], 0),
        ("size", size, _LEAST_SIZE),
        ("train_size", size if train_size is None else train_size, _LEAST_SIZE),
        ("seed", seed, 0),
    ):
        if value < least:
            raise UserError(f"demo data: {name} must be {least} or more, not {value}")
    spec = {
        "made_by": _MADE_BY,
        "version": VERSION,
        "images": images,
        "val": counts["val"],
        "test": counts["test"],
        "size": size,
        "seed": seed,
    }
    # Trees that were made without them stay the same trees.
    if train_size not in (None, size):
        spec["train_size"] = train_size
    return spec if domain == DOMAINS[0] else {**spec, "domain": domain}


def _workers(workers: int | None, frames: int) -> int:
    if workers is not None and workers < 1:
        raise UserError(f"demo data: workers must be 1 or more, not {workers}")
    if workers is None:
        affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
        workers = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(workers, -(-frames // _CHUNK)))


def _manifest(root: Path) -> dict[str, Any] | None:
    """What `demo.json` says, or None where there is none of ours."""
    try:
        found = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("made_by") == _MADE_BY else None


def _checked_root(out: str | os.PathLike[str]) -> Path:
    root = Path(out).expanduser().resolve()
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file: name another folder for the demo data")
    if root.is_dir() and any(root.iterdir()) and _manifest(root) is None:
        raise UserError(
            f"{root} holds files that were not made by the demo renderer (no {MANIFEST}): "
            "name another folder for the demo data"
        )
    return root


def _present(root: Path, spec: dict[str, Any]) -> dict[str, Any] | None:
    found = _manifest(root)
    if found is None or any(
        found.get(key) != spec.get(key) for key in {"train_size", "domain", *spec}
    ):
        return None
    return {**found, "root": str(root), "seconds": 0.0, "rendered": False}


@contextmanager
def _beside(root: Path) -> Iterator[Path]:
    """A folder beside `root`, held by this process alone, to build `tree` in; removed at the end."""
    make_folder(root.parent)
    partial = root.parent / f".{root.name}.partial"
    held = _hold(partial)
    strangers = sorted(p.name for p in partial.iterdir() if p.name not in _OURS)
    if strangers:
        os.close(held)
        raise UserError(f"{partial} is in the way and holds {strangers[0]!r}: move it elsewhere")
    try:
        _clear(partial)  # whoever was here before us was killed
        yield partial
    finally:
        _clear(partial)
        with suppress(OSError):
            partial.rmdir()
        os.close(held)


def _clear(partial: Path) -> None:
    for name in _OURS:
        shutil.rmtree(partial / name, ignore_errors=True)


def _hold(partial: Path) -> int:
    """Makes and locks the folder; if it was removed while we waited, tries again."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover - Windows: no such lock
        raise UserError("demo data: rendering needs a POSIX system (Linux, macOS)") from None
    while True:
        make_folder(partial)
        try:
            descriptor = os.open(partial, os.O_RDONLY)
        except FileNotFoundError:
            continue
        with suppress(OSError):  # some cluster file systems know no locks: go on without
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if partial.exists() and os.path.samestat(os.fstat(descriptor), partial.stat()):
            return descriptor
        os.close(descriptor)


def _fill(root: Path, partial: Path, spec: dict[str, Any], workers: int) -> dict[str, Any]:
    start = time.monotonic()
    with user_errors(root):
        tree = partial / _OURS[0]
        tree.mkdir()
        rows = _render_all(tree, spec, workers)
        for split in ("train", "val"):
            write_csv(tree / f"{split}.csv", rows[split])
        write_backgrounds(tree / BACKGROUNDS_FILE, [row for part in rows.values() for row in part])
        manifest = {**spec, "measured": measure(rows)}
        text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        (tree / MANIFEST).write_text(text, encoding="utf-8")
        _checked_root(root)  # nobody else's files may have come in the meantime
        if root.exists():
            os.rename(root, partial / _OURS[1])
        os.rename(tree, root)
    seconds = time.monotonic() - start
    return {**manifest, "root": str(root), "seconds": seconds, "rendered": True}


def _render_all(tree: Path, spec: dict[str, Any], workers: int) -> dict[str, list[Row]]:
    counts = {"train": spec["images"], "val": spec["val"], "test": spec["test"]}
    sizes = dict.fromkeys(counts, spec["size"]) | {"train": spec.get("train_size", spec["size"])}
    for split in ("train", "val"):
        for name in SATELLITES:
            for kind in ("images", "mask"):
                (tree / kind / name / split).mkdir(parents=True)
    (tree / "stream-1-test").mkdir()
    (tree / "stream-1-test-truth").mkdir()
    domain = spec.get("domain", DOMAINS[0])
    chunks = [
        (str(tree), spec["seed"], sizes[split], split, range(i, min(i + _CHUNK, count)), domain)
        for split, count in counts.items()
        for i in range(0, count, _CHUNK)
    ]
    rows: dict[str, list[Row]] = {split: [] for split in counts}
    with Progress(sum(counts.values()), "render demo data") as bar:
        for done in _run(chunks, workers):
            for row in done:
                rows[row["split"]].append(row)
            bar.update(len(done))
    for listed in rows.values():
        listed.sort(key=lambda row: (SATELLITES.index(row["satellite"]), row["index"]))
    return rows


Chunk = tuple[str, int, int, str, range, str]


def _run(chunks: list[Chunk], workers: int) -> Iterator[list[Row]]:
    if workers == 1:
        for chunk in chunks:
            yield write_chunk(chunk)
        return
    # Spawned, not forked: the caller may have threads (torch, CUDA) that a fork would break.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker)
    try:
        todo = iter(chunks)
        running = {
            pool.submit(write_chunk, c) for _, c in zip(range(2 * workers), todo, strict=False)
        }
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(write_chunk, c) for _, c in zip(done, todo, strict=False)}
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "demo data: a worker process died (out of memory?): try fewer with --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    # Ctrl-C reaches the whole group; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def write_chunk(chunk: Chunk) -> list[Row]:
    """Renders and writes some frames of a split; a row for each (runs in the workers)."""
    import cv2

    from spark_seg.datasets.demo.render import render, satellite_of

    folder, seed, size, split, indices, domain = chunk
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        rows = []
        for index in indices:
            frame = render(seed, split, index, size, domain)
            assert frame.satellite == satellite_of(index)
            paths = names(split, index, frame.satellite)
            write_frame(Path(folder), paths, frame.image, frame.labels, lossless=split == "test")
            area = (frame.box[2] - frame.box[0] + 1) * (frame.box[3] - frame.box[1] + 1)
            body, panel = int((frame.labels == 1).sum()), int((frame.labels == 2).sum())
            shares = {"body": body / size**2, "panel": panel / size**2, "box_area": area / size**2}
            rows.append(
                {"split": split, "index": index, "satellite": frame.satellite, "box": frame.box}
                | {"names": paths, "background": frame.background}
                | shares
            )
    finally:
        cv2.setNumThreads(threads)
    return rows
