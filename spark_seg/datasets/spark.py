"""The SPARK dataset in mmsegmentation's terms, with subsets and satellites left out by one
value."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from spark_seg import compat
from spark_seg.datasets.bad_files import ATTEMPTS, BadFiles, replacement
from spark_seg.datasets.cache import FrameCache, cache_folder, kinds_of, shards_of
from spark_seg.datasets.layout import SATELLITES, Frame, find_root, list_frames, list_test_images
from spark_seg.datasets.sampling import seed_augmentation
from spark_seg.errors import UserError, UserFileNotFoundError, nearest
from spark_seg.labels import CLASSES, IGNORE_INDEX, PALETTE

compat.install()  # mmseg.datasets does not import with mmcv-lite otherwise

from mmengine.logging import print_log  # noqa: E402
from mmseg.datasets import BaseSegDataset  # noqa: E402
from mmseg.registry import DATASETS  # noqa: E402

from spark_seg.datasets.others import OtherFrames  # noqa: E402
from spark_seg.datasets.transforms.geometry import RandomWarp  # noqa: E402
from spark_seg.datasets.transforms.loading import LoadSparkImage, LoadSparkMask  # noqa: E402
from spark_seg.datasets.transforms.mixing import CopyPaste, Mosaic  # noqa: E402

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
        cache: `labels` reads masks decoded once, the same labels in a hundredth of the time; `auto` does so where the
            cache is there or can be written, and else says once that it cannot; with a subset it makes none;
            `labels+half` and `labels+half_raw` also take pictures at half size (JPEG of quality 92, or bare) where
            the pipeline's `LoadSparkImage` may `reduce`. What is missing is made on first use, by this process
            together with any other that needs it; a file that changed since is read itself. None: none.
        cache_dir: The cache's folder, one for each tree; None: `.spark_cache` inside the tree.
        skip_bad_files: In training, replaces a sample whose files cannot be read by another one (drawn from its
            seed), instead of ending the run. They are told as they are met and at the end of the epoch.

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
        cache: str | None = None,
        cache_dir: str | None = None,
        skip_bad_files: bool = False,
    ) -> None:
        if images is not None and split != "test":
            raise UserError(f"images={images!r} goes with split='test', not with {split!r}")
        if skip_bad_files and (split != "train" or test_mode):
            raise UserError("skip_bad_files is for training: an evaluation must see every frame")
        if cache not in (None, "auto") and split == "test":
            raise UserError(f"cache={cache!r}: the test split has no masks, and is read as it is")
        kinds_of(cache)
        cache = None if split == "test" else cache
        self.cache, self.cache_dir, self.skip_bad_files = cache, cache_dir, skip_bad_files
        self._cache: FrameCache | None = None
        self._bad: BadFiles | None = None
        self._outdated = 0
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
        _check_order(self.pipeline.transforms)

    def full_init(self) -> None:
        """Lists the frames, and makes what the cache lacks of them."""
        if self._fully_initialized:
            return
        _check_order(self.pipeline.transforms)
        super().full_init()
        if self._cache is not None:
            self._cache.open()
        if self.skip_bad_files:
            self._bad = BadFiles(len(self))

    def _join_prefix(self) -> None:
        """The layout makes the paths; there is no prefix to join."""

    def list_frames(self) -> list[Frame]:
        """The frames of this dataset, in order; reads the folders anew."""
        if self.split == "test":
            frames = list_test_images(self._test_root(), self.images)
        else:
            frames = list_frames(find_root(self.data_root), self.split)
        return self._part(frames)

    def _part(self, frames: list[Frame]) -> list[Frame]:
        return take_subset(without(frames, self.leave_out), self.subset)

    def _open_cache(self, root: Path, frames: list[Frame]) -> FrameCache | None:
        """Makes what is missing of the split's packs; `frames` are all of it, whatever the subset."""
        kinds = kinds_of(self.cache)
        if not _may_reduce(self.pipeline.transforms):
            kinds = kinds[:1]  # evaluation reads whole pictures
        if not kinds:
            return None
        from spark_seg.datasets.cache_build import build_cache

        folder = cache_folder(root, self.cache_dir)
        shards = shards_of(frames, root, folder, kinds)
        # a trial with few frames shall not wait for all of them
        if self.cache == "auto" and self.subset is not None:
            told = "a subset: cache='auto' builds no label cache, masks are decoded; cache='labels' builds it"
            print_log(told, "current")
            return FrameCache(root, shards)
        try:
            build_cache(root, shards, thorough=False)
        except UserError as error:
            if self.cache != "auto":
                raise
            # a tree that is shared may be for reading alone; what others built of the cache is used
            print_log(
                f"no label cache in {folder} ({error}): masks without one are decoded for every sample, which is slow: "
                "give cache_dir a folder that can be written, or set cache=None",
                "current",
                logging.WARNING,
            )
        return FrameCache(root, shards)

    def require_use_of_cache(self) -> None:
        """For a training: raises a UserError where its pipeline could not take the pictures that `cache` keeps."""
        if len(kinds_of(self.cache)) > 1 and not _may_reduce(self.pipeline.transforms):
            raise UserError(
                f"cache={self.cache!r}: the training pipeline reads whole pictures: give LoadSparkImage a reduce, or "
                "set cache='labels'"
            )

    def _test_root(self) -> Path | None:
        if self.images or os.environ.get("SPARK_TEST_ROOT"):
            return None  # found without a tree
        return find_root(self.data_root)

    def prepare_data(self, idx: int) -> Any:
        """A sample through the pipeline; its augmentation depends on seed, epoch and index alone."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._sample(idx)
            except UserError as error:
                if attempt == ATTEMPTS or not self.note_bad(idx, error):
                    raise
                idx = replacement(idx, attempt, len(self))
        raise AssertionError("unreachable")

    def note_bad(self, idx: int, error: UserError) -> bool:
        """Notes a frame that cannot be read and tells of it once; False where bad files are not skipped."""
        if self._bad is None:
            return False
        if self._bad.add(idx):
            print_log(f"skipped a frame: {error}", "current", logging.WARNING)
        return True

    def _sample(self, idx: int) -> Any:
        seed_augmentation(idx)
        info = self.frame_info(idx)
        if any(getattr(step, "mixes", False) for step in self.pipeline.transforms):
            info["others"] = OtherFrames(self, int(idx))
        return self.pipeline(info)

    def frame_info(self, idx: int) -> dict[str, Any]:
        """What the loading steps take: paths, ids, and the cache where there is one."""
        info = self.get_data_info(idx)
        if self._cache is not None:
            info["cache"] = self._cache
            if len(self._cache.outdated) > self._outdated == 0:
                self._outdated = len(self._cache.outdated)
                print_log(
                    f"{next(iter(self._cache.outdated))} changed since the cache was built; such files are read "
                    "themselves, which is slow: run tools/cache.py build",
                    "current",
                    logging.WARNING,
                )
        return info

    def skipped(self) -> list[str]:
        """The ids of the samples that were replaced so far, by any worker of this machine."""
        return (
            []
            if self._bad is None
            else [self.get_data_info(index)["sample_id"] for index in self._bad.found()]
        )

    def load_data_list(self) -> list[dict[str, Any]]:
        """One dict per frame, as mmengine's `BaseDataset` wants it."""
        if self.cache is None:
            frames = self.list_frames()
        else:
            root = find_root(self.data_root)
            everything = list_frames(root, self.split)
            frames = self._part(everything)
            self._cache = self._open_cache(root, everything)
        samples = []
        for frame in frames:
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


def _may_reduce(transforms: Sequence[Any]) -> bool:
    return any(isinstance(step, LoadSparkImage) and step.reduce is not None for step in transforms)


def _check_order(transforms: Sequence[Any]) -> None:
    """A picture that is not yet decoded must meet the warp that decodes it.

    Raises:
        UserError: Something else comes first.
    """
    for at, step in enumerate(transforms):
        if isinstance(step, LoadSparkImage) and step.reduce is not None:
            rest = [other for other in transforms[at + 1 :] if not isinstance(other, LoadSparkMask)]
            if not rest or not isinstance(rest[0], RandomWarp | Mosaic | CopyPaste):
                name = type(rest[0]).__name__ if rest else "nothing"
                raise UserError(
                    f"LoadSparkImage(reduce={step.reduce}) is followed by {name}: RandomWarp must come next, or "
                    "leave reduce out"
                )


def without(frames: list[Frame], leave_out: str | Sequence[str] | None) -> list[Frame]:
    """The frames of the satellites that are not left out.

    Raises:
        UserError: An unknown satellite, frames without satellites, or nothing left.
    """
    names = _texts("leave_out", "satellites' names", [] if leave_out is None else leave_out)
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
    ids = _ids_of(subset) if isinstance(subset, str) else _texts("subset", "ids", subset)
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


def _texts(key: str, what: str, given: Any) -> list[str]:
    items = [given]
    if isinstance(given, Iterable) and not isinstance(given, str):
        items = sorted(given, key=str) if isinstance(given, set | frozenset) else list(given)
    wrong = [item for item in items if not isinstance(item, str)]
    if wrong:
        raise UserError(f"{key}={given!r}: {wrong[0]!r} is no text; give {what}")
    return items


def _spread(frames: list[Frame], subset: float) -> list[Frame]:
    total = len(frames)
    if isinstance(subset, int):
        count = subset
        if not 0 < count <= total:
            split = f"the split {frames[0].split} has" if frames else "there are"
            raise UserError(
                f"subset={subset}: {split} {total} frames: give 1 to {total}, or a share of each split such as 0.5"
            )
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
