"""One training at a time in a work folder.

The first process of a training holds a POSIX record lock on a file in the folder. Such a lock ends with its process,
however that ends, is not inherited by loaders' workers, and holds on network file systems too. Where a file system
has no locks nothing is held and nothing refused.
"""

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path

from spark_seg.atomic import make_folder
from spark_seg.errors import FolderInUse

FILE = "training.lock"
# Seconds to wait: a training that was killed a moment ago is on its way out. Of a node that failed, a network file
# system forgets the locks after its lease (NFS: 90 s).
_PATIENCE, _REQUEUED_PATIENCE = 5.0, 150.0


class FolderLock:
    """A work folder's lock, held from `take` to the end of the `with` block.

    Args:
        work_dir: The folder.
    """

    def __init__(self, work_dir: str | os.PathLike[str]) -> None:
        self.folder = Path(work_dir)
        requeued = bool(int(os.environ.get("SLURM_RESTART_COUNT") or 0))
        self.patience = _REQUEUED_PATIENCE if requeued else _PATIENCE
        self._file: int | None = None

    def take(self, make: bool = False) -> None:
        """Takes the lock of the folder that has this name now; once it is held, another call changes nothing.

        Args:
            make: Make the folder where there is none; else nothing is locked there.

        Raises:
            FolderInUse: Another process trains there.
        """
        if make:
            make_folder(self.folder)
        path = self.folder / FILE
        if self._holds(path) or not self.folder.is_dir():
            return
        self.release()
        until = time.monotonic() + self.patience
        while True:
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError:  # whoever writes there next tells what is wrong with the folder
                return
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                holder = os.pread(file, 200, 0).decode(errors="replace").strip()
                os.close(file)
                if time.monotonic() > until:
                    raise FolderInUse(
                        f"{self.folder}: {holder or 'another process'} is training there: give another --work-dir, "
                        "or end that training first"
                    ) from None
                time.sleep(0.1)
                continue
            except OSError:  # no locks on this file system
                os.close(file)
                return
            self._file = file
            if self._holds(path):
                break
            self.release()  # the folder was moved, or the file removed, in between
        with contextlib.suppress(OSError):  # a full disk: whose lock it is is told to others only
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    def release(self) -> None:
        """Lets go."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None and self._holds(self.folder / FILE):
            with contextlib.suppress(OSError):
                os.unlink(self.folder / FILE)
        self.release()

    def _holds(self, path: Path) -> bool:
        """Whether the lock is held, and of the file that has this path now."""
        if self._file is None:
            return False
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(self._file), os.stat(path))
        return False
