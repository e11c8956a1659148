"""A checkpoint is a folder: written beside and renamed, with a manifest that tells a whole one from a torn one.

weights.safetensors     every weight and buffer, fp32
ema.safetensors         the averaged weights, where there are any: those that are evaluated
optimizer.safetensors   the optimizer's state by parameter name; fits any ZeRO stage and number of processes
rng_00000.safetensors   random state of process 0, 1, ...
state.json              finished epochs and steps, schedules, position in the data, best score
manifest.json           size and SHA-256 of each file; written last
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from spark_seg.atomic import user_errors, write_bytes
from spark_seg.errors import FailedElsewhere, UserError, UserFileNotFoundError

WEIGHTS_FILE = "weights.safetensors"
EMA_FILE = "ema.safetensors"
BEST_FILE = "best.safetensors"  # beside the folders: plain weights, fp32
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
MANIFEST_FILE = "manifest.json"
LAST, PREVIOUS = "last", "previous"  # folders; the second is what the first was before


def rng_file(rank: int) -> str:
    """The name of a process's random state."""
    return f"rng_{rank:05d}.safetensors"


@contextmanager
def replaced_folder(path: str | Path, keep_former: str | None = None) -> Iterator[Path]:
    """A fresh folder to write into that takes `path`'s place when the block ends without error.

    The former content stays whole until the new one is complete. In a group of processes every one enters the block
    and gets the same folder; the first process makes, seals and renames it, and an error on any process is an error
    on all.

    Args:
        path: The folder to replace.
        keep_former: A name beside `path` under which the former content is kept; without it, it is removed.

    Raises:
        UserError: The disk is full or the folder cannot be written, on any process.
    """
    path = Path(path)
    fresh = path.with_name(f"{path.name}.tmp")
    first = _rank() == 0
    with together(path):
        if first:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
    try:
        with together(path):
            yield fresh
        with together(path):
            if first:
                seal(fresh)
                _put_in_place(fresh, path, keep_former)
    except BaseException:
        if first:
            shutil.rmtree(fresh, ignore_errors=True)
        raise


def _put_in_place(fresh: Path, path: Path, keep_former: str | None) -> None:
    """Renames a sealed folder; whenever this is killed, `newest_whole` finds it and finishes the work."""
    former = path.with_name(keep_former or f"{path.name}.old")
    if path.exists():
        shutil.rmtree(former, ignore_errors=True)
        os.rename(path, former)
    os.rename(fresh, path)
    if keep_former is None:
        shutil.rmtree(former, ignore_errors=True)


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


@contextmanager
def together(path: Path) -> Iterator[None]:
    """Runs a block on every process and fails on all where it fails on one.

    Args:
        path: What is written, for messages.

    Raises:
        FailedElsewhere: On those where it did not fail.
    """
    error: BaseException | None = None
    try:
        with user_errors(path):
            yield
    except Exception as e:
        error = e
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        told: list[str | None] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(told, str(error) if error else None)
        if error is None and any(told):
            raise FailedElsewhere(next(t for t in told if t))
    if error is not None:
        raise error


def seal(folder: Path) -> None:
    """Writes the manifest over the folder's files."""
    files = {
        file.name: {"size": file.stat().st_size, "sha256": _digest(file)}
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name != MANIFEST_FILE
    }
    write_bytes(folder / MANIFEST_FILE, json.dumps({"files": files}, indent=1).encode())


def _digest(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def damage(folder: str | Path) -> str | None:
    """What is wrong with a checkpoint folder, in a few words; None for a whole one."""
    folder = Path(folder)
    try:
        files = json.loads((folder / MANIFEST_FILE).read_text())["files"]
    except FileNotFoundError:
        return f"no {MANIFEST_FILE}: it was never finished"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST_FILE} is damaged"
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["size"]:
            return f"{name} is truncated"
        if _digest(file) != expected["sha256"]:
            return f"{name} is damaged"
    return None


def read_state(folder: str | Path) -> dict[str, Any]:
    """The folder's `state.json`."""
    return json.loads((Path(folder) / STATE_FILE).read_text())


def newest_whole(folder: str | Path) -> tuple[Path | None, list[str]]:
    """The checkpoint furthest in training among a run's checkpoints, and lines about damaged ones passed over.

    Folders that a killed process left under a temporary name count where they are whole, and get the name that they
    were written for.
    """
    folder = Path(folder)
    found: list[tuple[int, bool, Path]] = []
    notes = []
    for fresh in sorted(folder.glob("*.tmp")):
        if not fresh.is_dir() or damage(fresh):
            continue
        # Killed between sealing it and renaming it. Where it lies the next one is written, before that is complete.
        path = fresh.with_suffix("")
        if path.is_dir() and damage(path):
            shutil.rmtree(path)  # must not take the place of a whole `previous`
        _put_in_place(fresh, path, PREVIOUS if path.name == LAST else None)
    for candidate in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not candidate.is_dir():
            continue
        wrong = damage(candidate)
        if wrong is None:
            with suppress(OSError, ValueError):
                state = read_state(candidate)
                # Of two at one step the one after its validation is further.
                found.append((int(state["iter"]), not state.get("validate"), candidate))
        elif candidate.suffix not in (".tmp", ".old"):  # half written, half removed by a kill
            notes.append(f"{candidate}: {wrong}; passed over")
    best = max(found, key=lambda f: (f[0], f[1], f[2].name == LAST), default=None)
    return (best[2] if best else None), notes


def require_whole(folder: str | Path) -> Path:
    """The folder, if it is a whole checkpoint.

    Raises:
        UserFileNotFoundError: No such folder.
        UserError: It is torn; the message says what is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserFileNotFoundError(f"no checkpoint folder {folder}")
    if wrong := damage(folder):
        raise UserError(f"{folder} is no whole checkpoint: {wrong}")
    return folder
