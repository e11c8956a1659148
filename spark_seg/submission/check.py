"""Looks over a submission as a stranger would, before the challenge's server does.

python -m spark_seg.submission.check submission.zip --images FOLDER
"""

import os
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from spark_seg.cli.common import Parser
from spark_seg.errors import UserError, UserFileNotFoundError
from spark_seg.labels import from_submission
from spark_seg.progress import Progress
from spark_seg.submission.members import (
    BROKEN,
    Size,
    largest,
    member_names,
    read_entry,
    unpack,
)

_SHOWN = 10
_THREADS = 8


@dataclass
class CheckReport:
    """What a check found.

    Attributes:
        path: The zip.
        images: How many images it should answer.
        good: How many members are right.
        bytes: The zip's size.
        dtypes: Members per dtype, `bool` or `uint8`.
        sizes: Members per (H, W).
        empty: Members that name neither body nor panel anywhere; legal, but worth a look.
        problems: One line each; empty where the zip is fit to submit.
        bad: Names of members whose content is wrong.
    """

    path: str
    images: int
    good: int = 0
    bytes: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    sizes: dict[Size, int] = field(default_factory=dict)
    empty: int = 0
    problems: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def lines(self, shown: int = _SHOWN) -> list[str]:
        """The first problems, how many more there are, and a summary."""
        lines = list(self.problems[:shown])
        if len(self.problems) > shown:
            lines.append(f"... and {len(self.problems) - shown} more problems")
        return [*lines, self.summary()]

    def summary(self) -> str:
        """One line: fit to submit or not, and what is in it."""
        if not self.ok:
            what = f"{len(self.problems)} problem{'s' * (len(self.problems) > 1)}"
            return (
                f"{self.path}: NOT fit to submit: {what}, {self.good} of {self.images} images right"
            )
        sizes = ", ".join(f"{h}x{w}" for h, w in sorted(self.sizes)[:3])
        sizes += " ..." if len(self.sizes) > 3 else ""
        empty = f", {self.empty} without any spacecraft" if self.empty else ""
        return (
            f"{self.path}: fit to submit: {self.images} images, {'/'.join(self.dtypes)} {sizes}, "
            f"{self.bytes / 1e6:.1f} MB{empty}"
        )

    def raise_if_bad(self) -> None:
        """Raises a `UserError` with the first problem, if there is one."""
        if not self.ok:
            more = len(self.problems) - 1
            raise UserError(
                f"{self.path}: {self.problems[0]}"
                + (f" (and {more} more problems)" if more else "")
            )


def image_size(path: str | os.PathLike[str]) -> Size:
    """(H, W) of an image file from its header, EXIF orientation ignored as everywhere.

    Raises:
        UserError: It is no image that can be read.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        from spark_seg.datasets.io import read_image  # slower, and says what is wrong

        height, width = read_image(path).shape[:2]
    return height, width


def open_zip(path: str | os.PathLike[str]) -> zipfile.ZipFile:
    """Opens a zip for reading.

    Raises:
        UserFileNotFoundError: There is no such file.
        UserError: It is no zip, or its directory is damaged.
    """
    if not Path(path).is_file():
        raise UserFileNotFoundError(f"{path}: there is no such zip file")
    try:
        archive = zipfile.ZipFile(path)
    except BROKEN as error:
        raise UserError(f"{path}: not a whole zip file ({error}): write it again") from error
    # A zip of stored npz files that was cut off still ends in a zip: that of its last whole member.
    if min((info.header_offset for info in archive.infolist()), default=0) > 0:
        archive.close()
        raise UserError(f"{path}: not a whole zip file (cut off): write it again")
    return archive


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (" ..." if len(names) > 3 else "")


def structure(infos: Sequence[zipfile.ZipInfo], expected: Sequence[str]) -> list[str]:
    """What is wrong with the names of a zip's entries; one line per kind of fault."""
    wanted, seen = set(expected), set()
    faults: dict[str, list[str]] = {}
    for info in infos:
        # `filename` is cut at a zero byte, which `orig_filename` still shows.
        name, given = info.filename, info.orig_filename
        parts = given.replace("\\", "/").split("/")
        if given.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in given:
            kind = "members have absolute or outside paths"
        elif len(parts) > 1:
            kind = "members lie in a folder; zip the files themselves, not their folder"
        elif name in seen:
            kind = "members are there twice"
        elif name not in wanted:
            kind = "members belong to no image"
        else:
            seen.add(name)
            continue
        faults.setdefault(kind, []).append(given)
    problems = [f"{len(names)} {kind}: {_some(names)}" for kind, names in faults.items()]
    missing = [name for name in expected if name not in seen]
    if missing:
        problems.append(f"{len(missing)} of {len(expected)} members are missing: {_some(missing)}")
    return problems


def read_labels(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, size: Size | None
) -> tuple[np.ndarray, str]:
    """A member's class indices uint8 [H, W], and the dtype it was written in.

    Raises:
        UserError: The member is anything but a legal answer to an image of that size.
    """
    array = unpack(read_entry(archive, info, largest(size)), info.filename, size)
    return from_submission(array, info.filename), array.dtype.name


def _expected(images: str | os.PathLike[str] | Sequence[str]) -> dict[str, str]:
    """Members to images, from a folder of images or from a list of files or names."""
    if isinstance(images, str | os.PathLike):
        from spark_seg.datasets.layout import list_test_images

        return member_names(frame.image for frame in list_test_images(None, os.fspath(images)))
    return member_names(images)


def check_zip(
    zip_path: str | os.PathLike[str],
    images: str | os.PathLike[str] | Sequence[str],
    progress: bool = False,
) -> CheckReport:
    """Holds a submission against the images it answers.

    Every image once and nothing else; members at the root, with one key `data`; shape that of the
    image; one dtype throughout, bool or uint8 0/255; channel 1 empty, body and panel disjoint.

    Args:
        zip_path: The submission.
        images: The folder of test images, or a list. Where an entry of the list is an existing
            file, its size is compared; where it is only a name, any size is accepted.
        progress: Whether to show progress on stderr.

    Returns:
        The report; a wrong zip is a report with problems, not an error.

    Raises:
        UserFileNotFoundError: No such zip or folder.
        UserError: No image in the folder, or one cannot be read.
    """
    expected = _expected(images)
    report = CheckReport(os.fspath(zip_path), len(expected))
    try:
        archive = open_zip(zip_path)
    except UserFileNotFoundError:
        raise
    except UserError as error:
        report.problems.append(str(error))
        return report
    report.bytes = os.path.getsize(zip_path)
    with archive:
        infos = archive.infolist()
        report.problems += structure(infos, list(expected))
        by_name = {info.filename: info for info in infos if info.filename in expected}
        first: dict[str, str] = {}
        for name, found in _inspected(archive, by_name, expected, progress):
            if isinstance(found, UserError):
                report.problems.append(str(found))
                report.bad.append(name)
                continue
            report.good += 1
            report.empty += found.empty
            report.dtypes[found.dtype] = report.dtypes.get(found.dtype, 0) + 1
            first.setdefault(found.dtype, name)
            report.sizes[found.size] = report.sizes.get(found.size, 0) + 1
    if len(report.dtypes) > 1:
        told = ", ".join(f"{n} {d} (first {first[d]})" for d, n in sorted(report.dtypes.items()))
        report.problems.append(f"the members' dtypes are mixed: {told}")
    return report


@dataclass(frozen=True)
class _Member:
    empty: bool
    dtype: str
    size: Size


def _inspected(
    archive: zipfile.ZipFile,
    members: dict[str, zipfile.ZipInfo],
    images: dict[str, str],
    progress: bool,
) -> Iterator[tuple[str, _Member | UserError]]:
    """What each member is, in their order; a few at a time, as unpacking leaves the interpreter to others."""

    def inspect(name: str) -> _Member | UserError:
        size = image_size(images[name]) if os.path.isfile(images[name]) else None
        try:
            labels, dtype = read_labels(archive, members[name], size)
        except UserError as error:
            return error
        return _Member(not labels.any(), dtype, labels.shape)

    bar = Progress(len(members), "check") if progress and members else None
    pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
    try:
        for name, found in zip(members, pool.map(inspect, members), strict=True):
            yield name, found
            if bar is not None:
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)
    if bar is not None:
        bar.close()


def main(argv: list[str] | None = None) -> int:
    """Prints the problems and a summary; 0 where the zip is fit to submit, 1 where it is not."""
    parser = Parser(
        prog="python -m spark_seg.submission.check", description="Check a submission zip."
    )
    parser.add_argument("zip", help="the submission")
    parser.add_argument("--images", required=True, help="folder of the test images it answers")
    args = parser.parse_args(argv)
    report = check_zip(args.zip, args.images, progress=True)
    print("\n".join(report.lines()))
    return 0 if report.ok else 1


if __name__ == "__main__":
    from spark_seg.cli import call

    call(main)
