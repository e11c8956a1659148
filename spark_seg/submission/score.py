"""Scores a submission against masks, so that the whole chain is scored, the zip's writing included.

python -m spark_seg.submission.score submission.zip --truth FOLDER [--json FILE] [--counts FILE]
"""

import os
import re
from pathlib import Path

from spark_seg.atomic import make_folder
from spark_seg.cli.common import Parser
from spark_seg.cli.rule import add_rule, chosen_rule
from spark_seg.datasets.memory import reuse_memory
from spark_seg.errors import UserError, UserFileNotFoundError
from spark_seg.evaluation.bootstrap import RESAMPLES
from spark_seg.evaluation.frame import DEFAULT_OPTIONS, CountOptions, count_frame
from spark_seg.evaluation.run import summarize
from spark_seg.evaluation.store import ImageCounts
from spark_seg.evaluation.table import write_metrics_json
from spark_seg.labels import read_mask
from spark_seg.progress import track
from spark_seg.submission.check import open_zip, read_labels, structure

_PLAIN = re.compile(r"[^/\\:\0]+_layer\.npz")  # a member, wherever its mask is
_EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def find_truth(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Maps members to masks: `test_00000_layer.npz` to `test_00000_layer.jpg` or `test_00000.png`.

    Folders inside are searched too; hidden files (macOS's `._*`) are no masks.

    Raises:
        UserFileNotFoundError: No such folder, or no mask in it.
        UserError: Two masks with one member.
    """
    if not os.path.isdir(folder):
        raise UserFileNotFoundError(f"{folder}: there is no such folder of masks")
    found: dict[str, str] = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.name.startswith(".") or path.suffix.lower() not in _EXTENSIONS:
            continue
        member = path.stem.removesuffix("_layer") + "_layer.npz"
        if member in found:
            raise UserError(f"{found[member]} and {path} are both the truth of {member}: keep one")
        found[member] = str(path)
    if not found:
        raise UserFileNotFoundError(
            f"{folder}: no mask in it (looked for {', '.join(_EXTENSIONS)} files)"
        )
    return found


def score_zip(
    zip_path: str | os.PathLike[str],
    truth: str | os.PathLike[str],
    progress: bool = False,
    options: CountOptions = DEFAULT_OPTIONS,
) -> ImageCounts:
    """Counts of every image of a submission, as evaluation counts them; no logits, so no calibration.

    Args:
        zip_path: The submission, of either dtype.
        truth: Folder of masks, colour or index, of the images' own size; named as in the data
            (`test_00000_layer.jpg`) or as in the zip.
        progress: Whether to show progress on stderr.
        options: What is counted.

    Returns:
        The counts per image; ids are the members' stems without `_layer`, satellites are empty.

    Raises:
        UserFileNotFoundError: No such zip, folder or mask.
        UserError: Members without mask or masks without member, a member that is no legal answer,
            another size than the mask's, a file that is no mask.
    """
    masks = find_truth(truth)
    reuse_memory()
    rows = []
    with open_zip(zip_path) as archive:
        infos = archive.infolist()
        given = {info.orig_filename: None for info in infos}
        alone = [name for name in given if name not in masks and _PLAIN.fullmatch(name)]
        problems = structure(infos, [*masks, *alone])
        if alone:
            some = ", ".join(name.removesuffix("_layer.npz") for name in alone[:3])
            some += " ..." if len(alone) > 3 else ""
            told = f"no mask in {truth} for {some} ({len(alone)} of {len(infos)} members)"
            problems.insert(0, told)
        if problems:
            raise UserError(f"{zip_path} against {truth}: {'; '.join(problems)}")
        items = track(infos, len(infos), "score") if progress else iter(infos)
        for info in items:
            mask = read_mask(masks[info.filename])
            height, width = mask.shape
            try:
                labels, _ = read_labels(archive, info, (height, width))
            except UserError as error:
                raise UserError(f"{zip_path}: {error}") from error
            name = info.filename.removesuffix("_layer.npz")
            rows.append((name, "", count_frame(labels, mask, options)))
    return ImageCounts.collect(rows, options)


def main(argv: list[str] | None = None) -> int:
    """Prints the table that evaluation prints, and writes the same flat JSON on request."""
    parser = Parser(
        prog="python -m spark_seg.submission.score", description="Score a submission against masks."
    )
    parser.add_argument("zip", help="the submission")
    parser.add_argument("--truth", required=True, help="folder of masks, named as in the data")
    parser.add_argument("--json", help="write the numbers into this file, flat keys, 0 to 1")
    parser.add_argument("--counts", help="write the counts into this file, for tools/compare.py")
    parser.add_argument(
        "--resamples",
        type=int,
        default=RESAMPLES,
        help=f"of the bootstrap, for 95 %% intervals; 0: none (default: {RESAMPLES})",
    )
    add_rule(parser)
    args = parser.parse_args(argv)
    if args.resamples < 0:
        raise UserError(f"--resamples {args.resamples}: give a number from 0 up")
    rule = chosen_rule(args)
    for path in (args.json, args.counts):
        if path:
            make_folder(Path(path).parent)  # told before the work, not after it
    counts = score_zip(args.zip, args.truth, progress=True)
    found = summarize(counts, rule, resamples=args.resamples)
    print("\n".join(found.table))
    if args.json:
        write_metrics_json(args.json, found.metrics)
    if args.counts:
        counts.save(args.counts)
    return 0


if __name__ == "__main__":
    from spark_seg.cli import call

    call(main)
