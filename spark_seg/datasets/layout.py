"""What lies where in a SPARK tree: from folders to lists of frames, paired by name.

    <root>/images/<Satellite>/<split>/<stem>_img.jpg
    <root>/mask/<Satellite>/<split>/<stem>_layer.jpg
    <root>/train.csv, val.csv                           not always there
    <test>/test_NNNNN_img.jpg                           without masks

The folders' listing is the truth. A CSV, where present, is only held against it (see `csvs.py`).
File names repeat in every satellite's folder, so a frame's id names satellite and split too. Names
that start with a dot (macOS's `._*`) are no data.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spark_seg.datasets.csvs import cross_check
from spark_seg.errors import UserError, UserFileNotFoundError, nearest

SATELLITES = (
    "VenusExpress",
    "Cheops",
    "LisaPathfinder",
    "ObservationSat1",
    "Proba2",
    "Proba3",
    "Proba3ocs",
    "Smart1",
    "Soho",
    "XMM Newton",
)
"""The satellites of SPARK 2024 as their folders are named, in the organisers' class index's
order."""

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png")
_UNPACKED = "spark-2024-train-val"
_TEST_FOLDERS = ("stream-1-test", "spark-2024-segmentation-test", "test")


@dataclass(frozen=True)
class Frame:
    """One image and, except in the test set, its mask.

    Attributes:
        id: `XMM Newton/val/image_00001`, or `test_00001` in the test set; unique.
        satellite: The satellite's folder name; empty in the test set.
        split: `train`, `val`, `test`.
        image: Path of the image.
        mask: Path of the mask, or None in the test set.
    """

    id: str
    satellite: str
    split: str
    image: str
    mask: str | None


def satellite_order(names: Iterable[str]) -> list[str]:
    """The names in class-index order, unknown ones behind in alphabetical order."""
    known = {name: index for index, name in enumerate(SATELLITES)}
    return sorted(names, key=lambda name: (known.get(name, len(known)), name))


def find_root(data_root: str | None) -> Path:
    """The folder that holds `images/` and `mask/`.

    Args:
        data_root: That folder, the one above it, a folder of the same name inside it (as unzipping
            twice makes), or its `images` or `mask`. None takes the environment variable
            SPARK_DATA_ROOT.

    Raises:
        UserFileNotFoundError: Nothing given, or no such folder.
        UserError: No SPARK tree there, or more than one.
    """
    given = data_root or os.environ.get("SPARK_DATA_ROOT")
    if not given:
        raise UserFileNotFoundError(
            "no data root: set the environment variable SPARK_DATA_ROOT or data_root to the folder "
            "that holds images/ and mask/"
        )
    root = Path(given).expanduser()
    source = "data_root" if data_root else "SPARK_DATA_ROOT"
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UserFileNotFoundError(
            f"{source} {root} {what}: set it to the folder that holds images/ and mask/"
        )
    if root.name in ("images", "mask") and _is_tree(root.parent):
        return root.parent
    for candidate in (root, root / _UNPACKED):
        if _is_tree(candidate):
            return candidate
    inside = [root / name for name in _folders(root) if _is_tree(root / name)]
    if len(inside) == 1:
        return inside[0]
    if inside:
        names = ", ".join(path.name for path in inside)
        raise UserError(f"{source} {root} holds several SPARK trees ({names}): name one of them")
    raise UserError(
        f"{source} {root} is no SPARK tree: looked for images/<Satellite>/<split>/ in it and in "
        f"the folders inside it; there is {_contents(root)}"
    )


def splits_of(root: Path) -> list[str]:
    """Names of the splits that any satellite has, sorted."""
    images = root / "images"
    return sorted({split for name in _folders(images) for split in _folders(images / name)})


def list_frames(root: Path | str, split: str) -> list[Frame]:
    """All frames of a labelled split: satellites in class-index order, then by name.

    Args:
        root: As `find_root` returns it.
        split: `train` or `val`, or any folder name found below the satellites.

    Raises:
        UserError: The split has no image; masks are missing (count and first three names); two
            files of one stem; a CSV of the split names files that are not there.
    """
    root = Path(root)
    found = scan_split(root, split)
    frames = found.frames
    if not frames:
        splits = splits_of(root)
        raise UserError(
            f"{root}: the split {split!r} has no image (looked for images/<Satellite>/{split}/"
            f"*_img.jpg; splits found: {', '.join(splits) or 'none'})"
            f"{nearest(split, set(splits) - {split})}"
        )
    if found.twins:
        raise UserError(f"{root}: two files have one name, keep one: {_first(found.twins)}")
    missing = [missing_mask(frame) for frame in frames if frame.mask is None]
    if missing:
        raise UserFileNotFoundError(
            f"{root}: {len(missing)} of {len(frames)} masks of the split {split!r} are missing: "
            f"{_first(missing)}; copy them again or remove their images"
        )
    cross_check(root / f"{split}.csv", frames)
    return frames


@dataclass
class SplitScan:
    """What lies in a split's folders, right or wrong.

    Attributes:
        frames: All images in order; `mask` is None where it is missing.
        lone_masks: Masks without an image, as paths below the root.
        twins: Files whose stem another file has, likewise.
        strays: Image files whose name has not the right ending, likewise.
    """

    frames: list[Frame]
    lone_masks: list[str]
    twins: list[str]
    strays: list[str]


def scan_split(root: Path, split: str) -> SplitScan:
    """Lists a labelled split without judging it; satellites in class-index order, then by name."""
    found = SplitScan([], [], [], [])
    for satellite in satellite_order({*_folders(root / "images"), *_folders(root / "mask")}):
        inner = f"{satellite}/{split}"
        images = _stems(root, f"images/{inner}", "_img", found)
        masks = _stems(root, f"mask/{inner}", "_layer", found)
        for stem, image in images.items():
            frame = Frame(f"{inner}/{stem}", satellite, split, image, masks.pop(stem, None))
            found.frames.append(frame)
        found.lone_masks += [os.path.relpath(path, root) for path in masks.values()]
    return found


def missing_mask(frame: Frame) -> str:
    """Where a frame's mask should be, as a path below the root."""
    return f"mask/{frame.id}_layer.jpg"


def list_test_images(root: Path | str | None, images: str | None = None) -> list[Frame]:
    """The frames of a folder of images without masks, by name.

    Args:
        root: The SPARK tree, where the test set is looked for last: inside it, then beside it. May
            be None.
        images: A folder of images, a folder with `images/` or `stream-1-test/` in it, or one image.
            None takes the environment variable SPARK_TEST_ROOT, else what is found near `root`.

    Raises:
        UserFileNotFoundError: No such folder, or no test set near the root.
        UserError: No image in the folder, or two with one name.
    """
    given = images or os.environ.get("SPARK_TEST_ROOT")
    if given:
        path = Path(given).expanduser()
        if not path.exists():
            source = "the images" if images else "SPARK_TEST_ROOT"
            raise UserFileNotFoundError(f"{source} {path}: there is no such folder")
        if path.is_file():
            return _test_frames([str(path)], path)
        folder = _image_folder(path)
        if folder is None:
            raise UserError(f"{path}: no image (.jpg, .jpeg, .png) in it, but {_contents(path)}")
        return _test_frames(_images_in(folder), folder)
    if root is None:
        raise UserFileNotFoundError("no test set: name a folder of images or set SPARK_TEST_ROOT")
    root = Path(root).resolve()
    for place in (root, root.parent):
        for name in _TEST_FOLDERS:
            folder = _image_folder(place / name)
            if folder is not None:
                return _test_frames(_images_in(folder), folder)
    raise UserFileNotFoundError(
        f"no test set inside or beside {root} (looked for {', '.join(_TEST_FOLDERS)}): name a "
        "folder of images or set SPARK_TEST_ROOT"
    )


def fingerprint(frames: Sequence[Frame]) -> str:
    """16 hexadecimal digits that change with the list of frames and with any file's size."""
    digest = hashlib.sha256()
    for frame in frames:
        sizes = [os.stat(path).st_size for path in (frame.image, frame.mask) if path]
        digest.update(f"{frame.id} {sizes}\n".encode())
    return digest.hexdigest()[:16]


def _is_tree(folder: Path) -> bool:
    images = folder / "images"
    return any(_folders(images / name) for name in _folders(images))


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be listed ({error.strerror}): check its permissions"
        ) from None


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in _entries(folder) if entry.is_dir())


def _contents(folder: Path) -> str:
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in _entries(folder))
    return (
        ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        or "nothing"
    )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def _stems(root: Path, inner: str, suffix: str, found: SplitScan) -> dict[str, str]:
    """Maps `image_00001` to the path of `image_00001<suffix>.jpg`, in order of names."""
    stems: dict[str, str] = {}
    for entry in sorted(_entries(root / inner), key=lambda entry: entry.name):
        base, extension = os.path.splitext(entry.name)
        if extension.lower() not in IMAGE_EXTENSIONS:
            continue
        stem = base.removesuffix(suffix)
        if stem == base:
            found.strays.append(f"{inner}/{entry.name}")
        elif stem in stems:
            found.twins.append(f"{inner}/{entry.name}")
        else:
            stems[stem] = entry.path
    return stems


def _images_in(folder: Path) -> list[str]:
    return sorted(
        entry.path
        for entry in _entries(folder)
        if os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS
    )


def _image_folder(folder: Path) -> Path | None:
    """The folder itself or the nearest usual one inside it that holds images; None without any."""
    inner = ("", "images", "stream-1-test", os.path.join("stream-1-test", "images"))
    return next((folder / name for name in inner if _images_in(folder / name)), None)


def _test_frames(paths: Iterable[str], folder: Path) -> list[Frame]:
    frames: dict[str, Frame] = {}
    for path in paths:
        stem = os.path.splitext(os.path.basename(path))[0].removesuffix("_img")
        if stem in frames:
            other = os.path.basename(frames[stem].image)
            raise UserError(
                f"{folder}: {other} and {os.path.basename(path)} have one name: keep one of them"
            )
        frames[stem] = Frame(stem, "", "test", path, None)
    return list(frames.values())
