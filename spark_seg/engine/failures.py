"""Which process failed first, and why: each one's errors in a file of its own, the first cause told at the end.

When one process of a run fails, the others fail after it with errors that only say that a connection was lost. Whoever
fails first creates `errors/first.json` (one process alone can); the others point to it.
"""

import contextlib
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from spark_seg.engine.launch import this_process
from spark_seg.errors import FailedElsewhere, FolderInUse, UserError

FOLDER, FIRST = "errors", "first.json"


@contextlib.contextmanager
def recorded(work_dir: str | os.PathLike[str]) -> Iterator[None]:
    """Writes an error that leaves the block to `<work_dir>/errors/rank_<N>.txt`, with its traceback.

    Errors of former attempts stay in these files, which grow; each entry begins with rank, host, process and time.
    A user's mistake in a single process is told on the terminal in one line and needs no file; nor does a training that
    was interrupted.

    Raises:
        FolderInUse: As it came, unwritten.
        FailedElsewhere: Instead of this process's own error, where another process failed before it.
        Exception: The error itself, told on stderr with rank and host, where there are several processes.
    """
    folder = Path(work_dir) / FOLDER
    process = this_process()
    begun = time.time()
    try:
        yield
    except (FailedElsewhere, FolderInUse):
        raise  # the process that failed has told all others; the folder is another training's
    except Exception as error:
        if process.world_size == 1:
            if not isinstance(error, UserError):
                with contextlib.suppress(OSError):
                    _write(folder, error, process.rank)
            raise
        cause: dict[str, object] | None = None
        try:
            path = _write(folder, error, process.rank)
            cause = _first(folder, error, process.rank, path, begun)
        except OSError as trouble:  # a full disk must not hide the error
            print(f"warning: cannot write {folder}: {trouble}", file=sys.stderr)
        if cause is None:
            where = f"rank {process.rank} on {socket.gethostname()} failed first"
            print(f"{where}: {_line(error)} ({folder}/rank_{process.rank}.txt)", file=sys.stderr)
            raise
        raise FailedElsewhere(
            f"the first cause was on rank {cause['rank']}, host {cause['host']}: {cause['error']} "
            f"({cause['file']}); rank {process.rank} stopped after it",
            quiet=not process.is_main,
        ) from error


def _write(folder: Path, error: Exception, rank: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rank_{rank}.txt"
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    head = f"--- rank {rank}, host {socket.gethostname()}, process {os.getpid()}, {now}\n"
    with path.open("a") as file:
        file.write(head + "".join(traceback.format_exception(error)) + "\n")
    return path


def _first(
    folder: Path, error: Exception, rank: int, path: Path, begun: float
) -> dict[str, object] | None:
    """Claims to be the first that failed; what is there where another one was."""
    record = {
        "rank": rank,
        "host": socket.gethostname(),
        "error": _line(error),
        "file": str(path),
        "time": time.time(),
    }
    first, mine = folder / FIRST, folder / f".{FIRST}.{rank}"
    mine.write_text(json.dumps(record) + "\n")
    try:
        for _ in range(2):
            try:
                os.link(mine, first)  # whole at once, and refused where it is there already
                return None
            except FileExistsError:
                found = json.loads(first.read_text())
                if found["time"] >= begun - 60:  # clocks differ a little between nodes
                    return None if found["rank"] == rank else found
                first.unlink(missing_ok=True)  # of an attempt that was killed long ago
    finally:
        mine.unlink(missing_ok=True)
    return None


def forget_first(work_dir: str | os.PathLike[str]) -> None:
    """Before an attempt: the first cause of a former one is not this one's. One process calls it."""
    with suppress(NotADirectoryError):  # nothing of a former one; the writing says what is wrong
        (Path(work_dir) / FOLDER / FIRST).unlink(missing_ok=True)


def _line(error: Exception) -> str:
    text = str(error).strip()
    name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return name + (text.splitlines()[0] if text else "no message")
