"""Errors that are the user's to mend: one clear line, no traceback.

The command line prints the message of a `UserError` and exits; anything else is a bug of ours and keeps its
traceback. A message says what is wrong, in which file, and what to do.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Something the user can mend; the message is one line."""


class UserFileNotFoundError(UserError, FileNotFoundError):
    """A file or folder the user named, or that should be in the data, is not there."""


class FolderInUse(UserError):
    """Another process trains in the work folder, where nothing may be written for this one."""


class FailedElsewhere(UserError):
    """This process ends because another one of its group failed; the message is that one's error.

    Attributes:
        quiet: Whether another process tells it.
    """

    def __init__(self, message: str, quiet: bool = True) -> None:
        super().__init__(message)
        self.quiet = quiet


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """A hint such as `; did you mean 'epochs'?`, or nothing where no known name comes near."""
    close = get_close_matches(name, sorted(set(known)), n=count, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
