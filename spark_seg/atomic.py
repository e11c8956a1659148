"""Files that are either the old one or the new one, never half of one."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from spark_seg.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOENT,
}


def write_error(error: OSError, path: str | os.PathLike[str]) -> UserError | None:
    """What to tell the user about a failed write to `path`; None where it is not theirs to mend."""
    if error.errno in _FULL:
        return UserError(
            f"no room left while writing {path} ({os.strerror(error.errno)}): "
            "free some space and start again"
        )
    if error.errno in _FORBIDDEN:
        return UserError(
            f"cannot write {path} ({os.strerror(error.errno)}): choose another output folder"
        )
    return None


@contextmanager
def user_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns a full disk or a folder that cannot be written into a `UserError` naming `path`."""
    try:
        yield
    except OSError as error:
        told = None if isinstance(error, UserError) else write_error(error, path)
        if told is None:
            raise
        raise told from error


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Makes a folder with its parents; a file in its place or no permission is a `UserError`.

    So is a folder that is there but may not be written, before hours of work for it rather than after.
    """
    with user_errors(path):
        Path(path).mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return Path(path)


@contextmanager
def replacing(
    path: str | os.PathLike[str], sync: bool = True, shared: bool = False
) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends well.

    It is written beside as `<path>.tmp`; on any error the old file stays and the `.tmp` is removed.

    Args:
        path: The file to write; its folder must be there.
        shared: Whether other processes may write the same file meanwhile: each then has a `.tmp` of its own, and the
            last rename stays.
        sync: Whether the bytes must have reached the disk before the rename. Without it a power
            failure, but not a killed process, can leave a damaged file.

    Raises:
        UserError: The disk is full, or the folder cannot be written.
    """
    final = Path(path)
    own = f"{socket.gethostname()}.{os.getpid()}." if shared else ""
    beside = final.with_name(f"{own}{final.name}.tmp")
    with user_errors(final):
        try:
            with open(beside, "wb") as file:
                yield file
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            os.replace(beside, final)
        except BaseException:
            with suppress(OSError):
                beside.unlink()
            raise


def write_bytes(
    path: str | os.PathLike[str], data: bytes, sync: bool = True, shared: bool = False
) -> None:
    """Writes `data` to `path` in one step; see `replacing`."""
    with replacing(path, sync=sync, shared=shared) as file:
        file.write(data)
