"""The SPARK dataset in mmsegmentation's terms, with subsets and satellites left out by one
value."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spark_seg import compat
from spark_seg.datasets.layout import SATELLITES, Frame, find_root, list_frames, list_test_images
from spark_seg.datasets.sampling import seed_augmentation
from spark_seg.errors import UserError, UserFileNotFoundError, nearest
from spark_seg.labels import CLASSES, IGNORE_INDEX, PALETTE

compat.install()  # mmseg.datasets does not import with mmcv-lite otherwise

from mmseg.datasets import BaseSegDataset  # noqa: E402
from mmseg.registry import DATASETS  # noqa: E402

Subset = float | int | str | Sequence[str] | None


@DATASETS.register_module()
class SparkDataset(BaseSegDataset):
    """SPARK frames with their masks, or a folder of images without.

    A sample has `img_path`, `sample_id` (`XMM Newton/val/image_00001`; `test_00000` in the test
    set) and `satellite` (empty in the test set), and outside the test set `seg_map_path`.

    Args:
        data_root: The SPARK tree; see `layout.find_root`. None takes SPARK_DATA_ROOT.
        split: `train`, `val`, or `test` for images without masks.
        images: With `split='test'`, the folder of images; see `layout.list_test_images`.
        subset: Which part to take, after `leave_out`: a float in (0, 1] is that share and an int
            that many frames, both spread evenly over the list and so over the satellites, the same
            at every call; a list takes these sample ids; a string is a text file of them, one a
            line. None takes all.
        leave_out: A satellite or a list of them to leave out.
        pipeline: The transforms.
        test_mode: As mmengine's.
        serialize_data: As mmengine's: one array shared by the workers instead of a copy for each.
        lazy_init: As mmengine's: list the frames on first use only.

    Raises:
        UserError: See `layout.list_frames`; also an unknown satellite or id, an impossible subset,
            and nothing left.
    """

    METAINFO = {"classes": CLASSES, "palette": [list(colour) for colour in PALETTE]}  # noqa: RUF012

    def __init__(
        self,
        data_root: str | None = None,
        split: str = "train",
        images: str | None = None,
        subset: Subset = None,
        leave_out: str | Sequence[str] | None = None,
        pipeline: Sequence[dict | Callable] = (),
        test_mode: bool = False,
        serialize_data: bool = True,
        lazy_init: bool = False,
    ) -> None:
        if images is not None and split != "test":
            raise UserError(f"images={images!r} goes with split='test', not with {split!r}")
        self.split = split
        self.images = images
        self.subset = subset
        self.leave_out = leave_out
        super().__init__(
            data_root=data_root,
            pipeline=list(pipeline),
            test_mode=test_mode,
            serialize_data=serialize_data,
            lazy_init=lazy_init,
            ignore_index=IGNORE_INDEX,
        )

    def _join_prefix(self) -> None:
        """The layout makes the paths; there is no prefix to join."""

    def list_frames(self) -> list[Frame]:
        """The frames of this dataset, in order; reads the folders anew."""
        if self.split == "test":
            frames = list_test_images(self._test_root(), self.images)
        else:
            frames = list_frames(find_root(self.data_root), self.split)
        return take_subset(without(frames, self.leave_out), self.subset)

    def _test_root(self) -> Path | None:
        if self.images or os.environ.get("SPARK_TEST_ROOT"):
            return None  # found without a tree
        return find_root(self.data_root)

    def prepare_data(self, idx: int) -> Any:
        """A sample through the pipeline; its augmentation depends on seed, epoch and index alone."""
        seed_augmentation(idx)
        return super().prepare_data(idx)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One dict per frame, as mmengine's `BaseDataset` wants it."""
        samples = []
        for frame in self.list_frames():
            sample: dict[str, Any] = {
                "img_path": frame.image,
                "sample_id": frame.id,
                "satellite": frame.satellite,
                "label_map": None,
                "reduce_zero_label": False,
                "seg_fields": [],
            }
            if frame.mask is not None:
                sample["seg_map_path"] = frame.mask
            samples.append(sample)
        return samples


def without(frames: list[Frame], leave_out: str | Sequence[str] | None) -> list[Frame]:
    """The frames of the satellites that are not left out.

    Raises:
        UserError: An unknown satellite, frames without satellites, or nothing left.
    """
    names = [leave_out] if isinstance(leave_out, str) else list(leave_out or ())
    if not names:
        return frames
    present = {frame.satellite for frame in frames}
    if present == {""}:
        raise UserError("leave_out: the frames of a folder of images have no satellite")
    for name in names:
        if name not in present and name not in SATELLITES:
            known = sorted(present | set(SATELLITES))
            raise UserError(f"leave_out: unknown satellite {name!r}{nearest(name, known)}")
    left = [frame for frame in frames if frame.satellite not in names]
    if not left:
        raise UserError(f"leave_out: nothing is left without {', '.join(names)}")
    return left


def take_subset(frames: list[Frame], subset: Subset) -> list[Frame]:
    """Part of the frames; see `SparkDataset`'s `subset`. A list's order and length are kept.

    Raises:
        UserError: A share outside (0, 1], more frames than there are, an unknown id, an id twice.
    """
    if subset is None:
        return frames
    if isinstance(subset, bool):
        raise UserError(f"subset={subset}: give a share, a number of frames, ids or a file of ids")
    if isinstance(subset, int | float):
        return _spread(frames, subset)
    ids = _ids_of(subset) if isinstance(subset, str) else list(subset)
    if not ids:
        raise UserError(f"subset={subset!r}: no id in it")
    by_id = {frame.id: frame for frame in frames}
    unknown = [name for name in ids if name not in by_id]
    if unknown:
        raise UserError(
            f"subset: {len(unknown)} of {len(ids)} ids are unknown, first {unknown[0]!r}"
            f"{_nearest_id(unknown[0], by_id)}"
        )
    if len(set(ids)) != len(ids):
        raise UserError(f"subset: {len(ids) - len(set(ids))} ids occur more than once")
    return [by_id[name] for name in ids]


def _spread(frames: list[Frame], subset: float) -> list[Frame]:
    total = len(frames)
    if isinstance(subset, int):
        count = subset
        if not 0 < count <= total:
            raise UserError(f"subset={subset}: there are {total} frames (a share is a float: 1.0)")
    else:
        if not 0 < subset <= 1:
            raise UserError(f"subset={subset}: a share lies above 0 and up to 1.0")
        count = max(1, round(subset * total))
    # The list is sorted by satellite: the middles of `count` equal parts spread over all of them.
    return [frames[(2 * i + 1) * total // (2 * count)] for i in range(count)]


def _ids_of(path: str) -> list[str]:
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserFileNotFoundError(
            f"subset: there is no file {path} (a text file of sample ids, one a line)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"subset: {path} cannot be read as text ({error})") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _nearest_id(name: str, known: dict[str, Frame]) -> str:
    # Comparing with 60 000 ids takes seconds: first those with the same number, then a part.
    number = re.search(r"\d+$", name)
    alike = [key for key in known if number and key.endswith(number[0])]
    return nearest(name, alike or list(known)[:2000])
