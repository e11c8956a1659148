"""A whole tree looked over before a model is trained on it.

Errors are what training would stumble over or learn wrongly from: missing, unreadable, mismatched
files, masks that are none. Warnings are what someone should know: duplicates, empty masks, counts
and shares unlike SPARK 2024's. Notes are mere facts.
"""

import multiprocessing
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spark_seg.datasets import facts
from spark_seg.datasets.csvs import cross_check
from spark_seg.datasets.layout import (
    SATELLITES,
    Frame,
    list_test_images,
    missing_mask,
    satellite_order,
    scan_split,
    splits_of,
)
from spark_seg.datasets.look import Look, look_at, start_worker
from spark_seg.errors import UserError, nearest
from spark_seg.progress import Progress

CHECKS = {
    "pairs": "every image has its mask, every mask its image",
    "csv": "the CSVs name the files that are there",
    "readable": "every image is whole and decodes",
    "colours": "every mask is whole and a mask",
    "sizes": "image and mask have one size, 1024x1024",
    "modes": "images are colour JPEGs",
    "empty": "every mask shows a craft",
    "duplicates": "no image occurs twice, within or between splits",
    "counts": "frames per satellite as in SPARK 2024",
    "shares": "body and panel pixels per satellite as in SPARK 2024",
    "coding": "how the masks are stored",
}
"""The checks by name, in the order they are reported."""

SHARE_FRAMES = 200
"""Satellites with fewer frames in a split are too few to compare their class shares."""
SHARE_DEVIATION = 0.25
"""Relative deviation of a class share that is worth a warning."""


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        check: A key of `CHECKS`.
        level: `error`, `warning` or `note`.
        where: A frame's id, a file or a split.
        message: One line.
    """

    check: str
    level: str
    where: str
    message: str


@dataclass
class Tally:
    """Sums over one satellite's frames in one split.

    Attributes:
        frames: Images.
        labelled: Masks that could be read.
        pixels: Background, body, panel, ignored pixels of those masks.
        empty: Masks without any craft.
        without_panel: Masks with a body and no panel.
    """

    frames: int = 0
    labelled: int = 0
    pixels: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    empty: int = 0
    without_panel: int = 0

    def share(self, index: int) -> float:
        """Percent of the pixels that are of a class."""
        return 100 * self.pixels[index] / max(1, sum(self.pixels))


@dataclass
class Report:
    """What a tree holds and what is wrong with it.

    Attributes:
        root: The tree.
        findings: In the order of the checks.
        tallies: By split, then by satellite (empty name in the test set).
        mask_kinds: How many masks are stored how.
        limited: Whether only part of the frames was looked at.
    """

    root: str
    findings: list[Finding]
    tallies: dict[str, dict[str, Tally]]
    mask_kinds: dict[str, int]
    limited: bool

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not any(finding.level == "error" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Everything, for a JSON file; class shares in percent."""
        splits = {
            split: {
                name: asdict(tally) | {"body": tally.share(1), "panel": tally.share(2)}
                for name, tally in tallies.items()
            }
            for split, tallies in self.tallies.items()
        }
        return {
            "root": self.root,
            "ok": self.ok,
            "limited": self.limited,
            "findings": [asdict(finding) for finding in self.findings],
            "splits": splits,
            "mask_kinds": self.mask_kinds,
        }


def check_tree(
    root: Path,
    splits: list[str] | None = None,
    limit: int | None = None,
    workers: int = 0,
    images: str | None = None,
) -> Report:
    """Looks at every file of a tree.

    Args:
        root: As `layout.find_root` returns it.
        splits: Which splits, `test` among them; None takes all that are there.
        limit: Look at this many frames of each split only, spread over it; counts are then not
            compared.
        workers: Processes; 0 works in this one.
        images: Where the test images are; see `layout.list_test_images`.

    Raises:
        UserError: A split that is not there was asked for.
    """
    found: list[Finding] = []

    def report(check: str, level: str, where: str, message: str) -> None:
        found.append(Finding(check, level, where, message))

    frames = _list(root, splits, images, report)
    if limit is not None:
        frames = {split: _thin(part, limit) for split, part in frames.items()}
    tallies: dict[str, dict[str, Tally]] = defaultdict(lambda: defaultdict(Tally))
    kinds: Counter[str] = Counter()
    sizes: Counter[tuple[str, tuple[int, int]]] = Counter()
    stored: Counter[tuple[str, str]] = Counter()
    seen: dict[bytes, str] = {}
    every = [frame for part in frames.values() for frame in part]
    with Progress(len(every), "check", "frames") as bar:
        for look in _look(every, workers):
            tally = tallies[look.frame.split][look.frame.satellite]
            _judge(look, tally, seen, report)
            if look.mask_kind is not None:
                kinds[look.mask_kind] += 1
            if look.image_size is not None and look.image_kind is not None:
                sizes[look.frame.split, look.image_size] += 1
                stored[look.frame.split, look.image_kind] += 1
            bar.update()
    ordered = {
        split: {name: tallies[split][name] for name in satellite_order(tallies[split])}
        for split in frames
    }
    for (split, size), count in sizes.items():
        if size != (facts.SIDE, facts.SIDE):
            report("sizes", "note", split, f"{count} images have {size[0]}x{size[1]} pixels")
    for (split, kind), count in stored.items():
        if not kind.startswith("JPEG"):
            report("modes", "note", split, f"{count} images are stored as {kind}, not as JPEG")
    if limit is None:
        _compare(ordered, report)
    for kind, count in kinds.most_common():
        report("coding", "note", str(root), f"{count} masks are {kind}")
    order = list(CHECKS)
    found.sort(key=lambda finding: order.index(finding.check))
    return Report(str(root), found, ordered, dict(kinds.most_common()), limit is not None)


Reporter = Callable[[str, str, str, str], None]


def _list(
    root: Path, splits: list[str] | None, images: str | None, report: Reporter
) -> dict[str, list[Frame]]:
    present = splits_of(root)
    frames: dict[str, list[Frame]] = {}
    for split in present if splits is None else splits:
        if split == "test" and split not in present:
            frames[split] = list_test_images(root, images)
            continue
        if split not in present:
            known = [*present, *["test"] * ("test" not in present)]
            raise UserError(
                f"{root}: there is no split {split!r} (there are {', '.join(known)})"
                f"{nearest(split, known)}"
            )
        frames[split] = _list_labelled(root, split, report)
    if splits is None and "test" not in present:
        try:
            frames["test"] = list_test_images(root, images)
        except UserError as error:
            if images is not None:
                raise
            report("pairs", "note", "test", str(error))
    return frames


def _list_labelled(root: Path, split: str, report: Reporter) -> list[Frame]:
    scan = scan_split(root, split)
    if not scan.frames:
        report("pairs", "error", split, f"{root}: the split has no image")
    for frame in scan.frames:
        if frame.mask is None:
            report("pairs", "error", frame.id, f"the mask {missing_mask(frame)} is missing")
    for name in scan.twins:
        report("pairs", "error", name, "another file has the same name: keep one of them")
    for name in scan.lone_masks:
        report("pairs", "warning", name, "this mask has no image")
    for name in scan.strays:
        report("pairs", "warning", name, "named neither *_img nor *_layer: not used")
    try:
        unnamed = cross_check(root / f"{split}.csv", scan.frames)
    except UserError as error:
        report("csv", "error", f"{split}.csv", str(error))
        unnamed = []
    for frame in unnamed:
        report("csv", "warning", frame.id, f"{split}.csv does not name this image")
    return scan.frames


def _thin(frames: list[Frame], limit: int) -> list[Frame]:
    count = min(limit, len(frames))
    return [frames[(2 * i + 1) * len(frames) // (2 * count)] for i in range(count)]


def _look(frames: list[Frame], workers: int) -> Iterator[Look]:
    if workers <= 0:
        yield from map(look_at, frames)
        return
    # Fresh processes: forked ones inherit OpenCV's threads in an unknown state.
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, initializer=start_worker) as pool:
        yield from pool.imap(look_at, frames, chunksize=8)


def _judge(look: Look, tally: Tally, seen: dict[bytes, str], report: Reporter) -> None:
    name = look.frame.id
    tally.frames += 1
    if look.image_error is not None:
        report("readable", "error", name, look.image_error)
    if look.mask_error is not None:
        report("colours", "error", name, look.mask_error)
    if look.image_size and look.mask_size and look.image_size != look.mask_size:
        (iw, ih), (mw, mh) = look.image_size, look.mask_size
        report("sizes", "error", name, f"the image has {iw}x{ih} pixels, the mask {mw}x{mh}")
    if look.channels not in (None, 3):
        report("modes", "warning", name, f"the image has {look.channels} channels, not 3")
    if look.digest is not None:
        first = seen.setdefault(look.digest, name)
        if first != name:
            report("duplicates", "warning", name, f"the same file as {first}")
    if look.counts is not None:
        tally.labelled += 1
        tally.pixels = [a + b for a, b in zip(tally.pixels, look.counts, strict=True)]
        if look.counts[1] + look.counts[2] == 0:
            tally.empty += 1
            report("empty", "warning", name, "the mask shows no craft")
        elif look.counts[2] == 0:
            tally.without_panel += 1


def _compare(tallies: dict[str, dict[str, Tally]], report: Reporter) -> None:
    """Holds counts and shares against the facts."""
    for split, expected in facts.FRAMES.items():
        if split not in tallies:
            continue
        for name in satellite_order({*tallies[split], *SATELLITES}):
            count = tallies[split][name].frames if name in tallies[split] else 0
            if name not in SATELLITES:
                report("counts", "note", f"{name}/{split}", f"{count} frames of another satellite")
            elif count != expected:
                message = f"{count} frames, SPARK 2024 has {expected}"
                report("counts", "warning", f"{name}/{split}", message)
    for split, parts in tallies.items():
        for name, tally in parts.items():
            if name in facts.SHARES and tally.labelled >= SHARE_FRAMES:
                _compare_shares(f"{name}/{split}", tally, facts.SHARES[name], report)


def _compare_shares(where: str, tally: Tally, expected: Iterable[float], report: Reporter) -> None:
    for index, (label, share) in enumerate(zip(("body", "panel"), expected, strict=True), 1):
        measured = tally.share(index)
        if abs(measured - share) > SHARE_DEVIATION * share:
            message = f"{measured:.2f} % of the pixels are {label}, in SPARK 2024 {share:.2f} %"
            report("shares", "warning", where, message)
