"""Opening an npz file of numbers, so that what is wrong with it is told in words of our own."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

# What numpy raises for a damaged file, or one of another content.
DAMAGED = (ValueError, KeyError, IndexError, EOFError, TypeError, OSError, zipfile.BadZipFile)


@contextmanager
def open_npz(path: str | Path) -> Iterator["np.lib.npyio.NpzFile"]:
    """The arrays of an npz file; none is ever unpickled.

    Raises:
        ValueError: It is no npz file. numpy takes it for a pickle, and says how to run it.
        OSError: It cannot be opened.
    """
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("not a whole npz file")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            yield arrays


def reason(error: BaseException) -> str:
    """The first line of what such an error says."""
    return (str(error).splitlines() or [type(error).__name__])[0]
