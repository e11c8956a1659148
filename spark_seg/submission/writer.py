"""Writes submission.zip image by image, and goes on where it was interrupted.

Members are collected as finished files in `npz/`; `npz/` and the state beside it are removed when
the zip is whole. A member counts as done when its file is there and can be read: it appears by a
rename, so a killed run leaves none half written.
"""

import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from spark_seg.atomic import make_folder, replacing, user_errors, write_bytes
from spark_seg.errors import UserError
from spark_seg.labels import to_submission
from spark_seg.submission.check import CheckReport, check_zip
from spark_seg.submission.members import entry_info, member_name, member_names, pack, unpack

_FORMAT = 1
_STATE = "submission_state.json"


class SubmissionWriter:
    """Collects predictions and assembles the zip.

    Args:
        out_dir: Folder of `submission.zip`; made if need be.
        names: The test images, as paths or file names. Where they are existing files, the finished
            zip is also compared with their sizes.
        dtype: `bool` or `uint8` (0/255), as a name or a type.
        fingerprint: Whatever the predictions depend on: weights, config, options, the images. An
            interrupted run is continued only if it, the dtype and the names are the same.
        keep_npz: Leave the members in `npz/` beside the zip.

    Attributes:
        zip_path: Where the zip will be.
        resumed: How many members an interrupted run has left.
        report: What the check of the finished zip found; None before.

    Raises:
        UserError: Two images with one member, the folder cannot be written, an `npz` folder in it
            that no run of ours left.
    """

    def __init__(
        self,
        out_dir: str | os.PathLike[str],
        names: Sequence[str | os.PathLike[str]],
        dtype: Any = bool,
        fingerprint: str = "",
        keep_npz: bool = False,
    ) -> None:
        self.dtype = np.dtype(dtype)
        if self.dtype.name not in ("bool", "uint8"):
            raise UserError(f"a submission's dtype is bool or uint8, not {self.dtype}")
        self._images = member_names(names)
        self.keep_npz = keep_npz
        self.report: CheckReport | None = None
        self.folder = make_folder(out_dir)
        self.zip_path = self.folder / "submission.zip"
        self._npz = self.folder / "npz"
        self._state = self.folder / _STATE
        self._done: set[str] = set()
        self._start(self._key(fingerprint))
        self.resumed = len(self._done)

    @staticmethod
    def is_begun(out_dir: str | os.PathLike[str]) -> bool:
        """Whether a run that did not end has left its state there, which a writer goes on with or clears away."""
        return (Path(out_dir) / _STATE).is_file()

    def _key(self, fingerprint: str) -> str:
        parts = [_FORMAT, fingerprint, self.dtype.name, list(self._images)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _start(self, key: str) -> None:
        """Takes over what an interrupted run of the same key left, or clears it away."""
        try:
            left = json.loads(self._state.read_text()).get("key")
        except FileNotFoundError:
            left = None
            if self._npz.is_dir() and any(self._npz.iterdir()):
                raise UserError(
                    f"{self._npz} holds files of something else: choose another output folder "
                    "or move them away"
                ) from None
        except (OSError, ValueError, AttributeError):
            left = ""
        if left == key:
            self._done = {name for name in self._images if self._whole(name)}
            if self._done:
                self._say(f"{len(self._done)} of {len(self._images)} images are done, going on")
        else:
            if left is not None:
                self._say("weights, config, options or images changed since, starting afresh")
            self._clear()
            write_bytes(self._state, json.dumps({"key": key}).encode())
        make_folder(self._npz)

    def _say(self, what: str) -> None:
        print(f"interrupted submission in {self.folder}: {what}", file=sys.stderr, flush=True)

    def _whole(self, member: str) -> bool:
        """Whether the member's file is there and undamaged (a power failure can truncate it)."""
        path = self._npz / member
        try:
            return unpack(path.read_bytes(), member).dtype == self.dtype
        except FileNotFoundError:
            return False
        except (OSError, UserError):
            with suppress(OSError):
                path.unlink()
            return False

    def _clear(self) -> None:
        """Removes members and state; files of other kinds in `npz/`, and then the folder, stay."""
        with user_errors(self._npz):
            if self._npz.is_dir():
                for path in self._npz.iterdir():
                    if path.name.endswith(("_layer.npz", "_layer.npz.tmp")):
                        path.unlink()
                with suppress(OSError):
                    self._npz.rmdir()
            self._state.unlink(missing_ok=True)

    @property
    def images(self) -> list[str]:
        """All images, as they were given, in their order."""
        return list(self._images.values())

    @property
    def pending(self) -> list[str]:
        """The images still without prediction, as they were given, in their order."""
        return [image for member, image in self._images.items() if member not in self._done]

    def add(self, name: str | os.PathLike[str], labels: np.ndarray) -> None:
        """Writes one prediction; may be called in several threads at once.

        Args:
            name: The image, as given or its bare file name.
            labels: Class indices uint8 [H, W] at the image's own size.

        Raises:
            UserError: The disk is full; what was written so far stays and can be continued.
            ValueError: No such image, or labels that are no class indices.
        """
        member = member_name(name)
        if member not in self._images:
            raise ValueError(f"{os.fspath(name)} is none of the submission's images")
        if labels.ndim != 2 or labels.dtype != np.uint8:
            raise ValueError(f"labels are uint8 [H, W], not {labels.dtype} {list(labels.shape)}")
        data = pack(to_submission(labels, self.dtype))
        write_bytes(self._npz / member, data, sync=False, shared=True)
        self._done.add(member)

    def finish(self, progress: bool = False) -> Path:
        """Assembles the zip, checks it, puts it in its place and clears up.

        The zip takes its place only after the check, so that an older `submission.zip` is replaced
        by a good one or stays.

        Args:
            progress: Whether to show the check's progress on stderr.

        Returns:
            The path of `submission.zip`.

        Raises:
            UserError: Images without prediction, disk full, or the check found a problem; the
                members stay for another attempt, wrong ones excepted.
        """
        # other processes may have written their share into the same folder
        images = self._images
        self._done.update(m for m in images if m not in self._done and self._whole(m))
        if pending := self.pending:
            raise UserError(
                f"{len(pending)} of {len(self._images)} images have no prediction yet, first "
                f"{os.path.basename(pending[0])}: start again to go on"
            )
        with replacing(self.zip_path) as file:
            with zipfile.ZipFile(file, "w") as archive:
                for member in self._images:
                    archive.writestr(entry_info(member), (self._npz / member).read_bytes())
            file.flush()
            self.report = check_zip(file.name, self.images, progress)
            self.report.path = str(self.zip_path)
            for member in self.report.bad:
                (self._npz / member).unlink(missing_ok=True)
                self._done.discard(member)
            self.report.raise_if_bad()
        if not self.keep_npz:
            self._clear()
        return self.zip_path
