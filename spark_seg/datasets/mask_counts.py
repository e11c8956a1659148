"""Pixels of each class in every mask: what class weights and sampling by content go by.

Counted once over all masks (about 10 ms each on a core; a label cache makes it a fraction of that) and kept in
`$XDG_CACHE_HOME/spark_seg` (default `~/.cache/spark_seg`) under the frames' fingerprint: names and files' sizes.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log

from spark_seg.atomic import make_folder, replacing
from spark_seg.datasets.layout import Frame, fingerprint, missing_mask
from spark_seg.errors import UserError
from spark_seg.labels import CLASSES, read_mask
from spark_seg.progress import Progress

_known: dict[str, np.ndarray] = {}  # in this process, by fingerprint


def counts_of(dataset: Any) -> np.ndarray:
    """int64 [frames, classes]: pixels of each class in the masks of a `SparkDataset`, ignored ones left out.

    Raises:
        UserError: A frame without a mask, or a mask that cannot be read; with `skip_bad_files` the latter counts as
            nothing.
    """
    cache, skip = getattr(dataset, "_cache", None), getattr(dataset, "note_bad", None)
    return mask_counts(dataset.list_frames(), getattr(cache, "labels", None), skip)


def mask_counts(
    frames: Sequence[Frame],
    labels: Any = None,
    skip: Callable[[int, UserError], bool] | None = None,
) -> np.ndarray:
    """As `counts_of`, for frames.

    Args:
        frames: With masks.
        labels: From a mask's path to its labels uint8 [H, W] or None (a label cache), or None.
        skip: Told of a frame, by its place, whose mask cannot be read; whether it may count as nothing.
    """
    for frame in frames:
        if frame.mask is None:
            raise UserError(missing_mask(frame))
    key = fingerprint(frames)
    if key not in _known:
        _known[key] = (
            _from_file(key, len(frames))
            if _file(key).is_file()
            else _count(frames, labels, skip, key)
        )
    return _known[key]


def remember(frames: Sequence[Frame], counts: np.ndarray) -> None:
    """Takes what another process counted."""
    _known[fingerprint(frames)] = counts


def _file(key: str) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "spark_seg" / f"mask_counts_{key}.npy"


def _from_file(key: str, frames: int) -> np.ndarray:
    path = _file(key)
    try:
        counts = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it") from error
    if counts.shape != (frames, len(CLASSES)):
        raise UserError(f"{path} is of other data: remove it")
    return counts


def _count(frames: Sequence[Frame], labels: Any, skip: Any, key: str) -> np.ndarray:
    skipped = []

    def one(row: int) -> np.ndarray:
        path = frames[row].mask
        assert path is not None
        mask = labels(path) if labels is not None else None
        try:
            mask = read_mask(path) if mask is None else mask
        except UserError as error:
            if skip is None or not skip(row, error):
                raise
            skipped.append(row)
            return np.zeros(len(CLASSES), np.int64)
        return np.bincount(mask.ravel(), minlength=len(CLASSES))[: len(CLASSES)]

    workers = min(8, os.cpu_count() or 1)
    counts = np.zeros((len(frames), len(CLASSES)), np.int64)
    title = "counting classes in masks"
    with Progress(len(frames), title, "mask") as bar, ThreadPoolExecutor(workers) as pool:
        for row, found in enumerate(pool.map(one, range(len(frames)))):
            counts[row] = found
            bar.update(1)
    if skipped:  # to be looked at again next time
        return counts
    path = _file(key)
    try:
        make_folder(path.parent)
        with replacing(path, shared=True) as file:
            np.save(file, counts, allow_pickle=False)
    except UserError as error:
        print_log(f"the counts are not kept, and made anew next time: {error}", "current")
    return counts
