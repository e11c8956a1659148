"""SPARK's CSVs, held against the folders.

Columns: `Image name, Mask name, Class, Bounding box`. Rows come in another order in every copy and
image names repeat across satellites, so a row is matched by satellite and name, never by its line.
A row that names a missing file is an error (an incomplete copy); a frame without a row is not,
since the folders are the truth (tools/check_dataset.py reports it).
"""

import csv
import functools
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spark_seg.errors import UserError, UserFileNotFoundError

if TYPE_CHECKING:
    from spark_seg.datasets.layout import Frame

_NEEDED = ("Image name", "Class")


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a SPARK CSV, names and values stripped of blanks.

    Raises:
        UserError: It cannot be read as text, or a needed column is missing.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, skipinitialspace=True)
            names = [name.strip() for name in next(lines, [])]
            # of a row that is too short the rest is empty, of one too long the rest is left out
            rows = [
                {
                    k: v.strip()
                    for k, v in itertools.zip_longest(names, line[: len(names)], fillvalue="")
                }
                for line in lines
                if line
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path}: cannot be read as a CSV ({error}); copy it again or remove it"
        ) from None
    lacking = [name for name in _NEEDED if rows and name not in rows[0]]
    if lacking:
        raise UserError(
            f"{path}: the column {lacking[0]!r} is missing (columns: {', '.join(rows[0])}); copy "
            f"it again or remove it"
        )
    return rows


def cross_check(path: Path, frames: Sequence["Frame"]) -> list["Frame"]:
    """Holds a CSV, where there is one, against the frames of its split.

    Returns:
        The frames that no row names; empty without a CSV.

    Raises:
        UserFileNotFoundError: Rows name files that are not there.
        UserError: A row pairs an image with another mask than its name says.
    """
    if not path.is_file():
        return []
    known = {(_key(frame.satellite), _stem(frame.image)): frame for frame in frames}
    unnamed = dict(known)
    missing: list[str] = []
    for row in read_csv(path):
        key = (_key(row["Class"]), _stem(row["Image name"]))
        frame = known.get(key)
        if frame is None:
            missing.append(f"{row['Class']}/{row['Image name']}")
            continue
        unnamed.pop(key, None)
        mask = row.get("Mask name")
        if mask and frame.mask and _stem(mask) != _stem(frame.mask):
            raise UserError(
                f"{path}: pairs {row['Class']}/{row['Image name']} with {mask}, but the mask of "
                f"that name is {os.path.basename(frame.mask)}; mend or remove the CSV"
            )
    if missing:
        shown = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        raise UserFileNotFoundError(
            f"{path}: {len(missing)} rows name images that are not there: {shown}; copy them "
            "again, or remove the CSV to use what is there"
        )
    return list(unnamed.values())


@functools.lru_cache(1024)
def _key(satellite: str) -> str:
    return "".join(satellite.split()).replace("_", "").casefold()


def _stem(name: str) -> str:
    # os.path's functions took half of the check's time
    base = name.rpartition("/")[2]
    return base.rpartition(".")[0] or base
