"""`cache.py build|check|remove`: masks decoded once, and pictures at half size, for fast training."""

import argparse
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from spark_seg.cli.common import Parser
from spark_seg.errors import UserError

if TYPE_CHECKING:
    from spark_seg.datasets.cache import Shard

_SHOWN = 5  # names of one sort that are printed
_KINDS = ("labels", "half", "half_raw")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 0, or 1 where source files are bad or the cache is not whole.

    Raises:
        UserError: The tree or a split is not there, or the cache cannot be written.
    """
    args = _parser().parse_args(argv)
    from spark_seg.datasets.cache import cache_folder, shards_of
    from spark_seg.datasets.layout import find_root, list_frames, splits_of

    if args.action == "build" and args.workers is not None and args.workers < 1:
        raise UserError(f"--workers {args.workers}: give a number from 1 on")
    root = find_root(args.data_root)
    folder = cache_folder(root, args.cache_dir)
    frames = [
        frame for split in args.splits or splits_of(root) for frame in list_frames(root, split)
    ]
    shards = shards_of(frames, root, folder, args.kinds)
    return {"build": _build, "check": _check, "remove": _remove}[args.action](
        args, root, folder, shards
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="cache", description=__doc__)
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="ACTION", parser_class=Parser
    )
    for name, purpose in (
        ("build", "make what is missing or whose source file changed"),
        ("check", "compare every record with its checksum and its source file's content"),
        ("remove", "delete the records' files"),
    ):
        part = actions.add_parser(name, help=purpose, description=purpose)
        add = part.add_argument
        add("data_root", nargs="?", help="the SPARK tree (default: SPARK_DATA_ROOT)")
        add(
            "--cache-dir",
            metavar="DIR",
            help="the cache's folder (default: .spark_cache in the tree)",
        )
        add("--splits", nargs="+", metavar="SPLIT", help="only these, for example: train")
        add(
            "--kinds",
            nargs="+",
            choices=_KINDS,
            default=list(_KINDS) if name == "remove" else ["labels"],
            help="labels: masks; half, half_raw: pictures at half size as JPEG or bare (default: "
            + ("all" if name == "remove" else "labels")
            + ")",
        )
        if name == "build":
            add("--workers", type=int, metavar="N", help="threads (default: one per core)")
        if name == "check":
            add("--anew", action="store_true", help="also decode every file again and compare")
    return parser


def _build(args: argparse.Namespace, root: Path, folder: Path, shards: "list[Shard]") -> int:
    from spark_seg.datasets.cache_build import build_cache, unread_records

    done = build_cache(root, shards, args.workers or 0)
    print(
        f"{folder}: {done.made} records made, {done.kept} kept from before, {done.packs} of {len(shards)} packs were "
        f"up to date; {_size(shards)}"
    )
    if done.touched:
        print(f"{done.touched} files were touched since and hold the same, which is noted")
    unread = unread_records(shards)
    _list("cannot be read", done.bad)
    if len(unread) > len(done.bad):  # found by an earlier build
        _list("source files could not be read", unread)
    return 1 if unread else 0


def _check(args: argparse.Namespace, root: Path, folder: Path, shards: "list[Shard]") -> int:
    from spark_seg.datasets.cache_build import check_cache

    found = check_cache(root, shards, args.anew)
    _list("packs missing or of other frames or rules", found.missing)
    _list("source files changed since", found.changed)
    _list("records damaged", found.damaged)
    _list("source files could not be read", found.bad)
    state = "whole" if found.ok else "not whole: run build"
    print(f"{folder}: {found.records} records, {_size(shards)}: {state}")
    return 0 if found.ok and not found.bad else 1


def _remove(args: argparse.Namespace, root: Path, folder: Path, shards: "list[Shard]") -> int:
    from spark_seg.datasets.packs import remove_leftovers, stamps_beside

    removed = 0
    for part in {shard.path.parent for shard in shards}:
        remove_leftovers(part)
    for path in [file for shard in shards for file in (shard.path, stamps_beside(shard.path))]:
        if path.is_file():
            removed += path.stat().st_size
            path.unlink()
    for part in {shard.path.parent for shard in shards}:
        while part != folder and part.is_relative_to(folder):
            with suppress(OSError):  # not empty, or another's
                part.rmdir()
            part = part.parent
    print(f"{folder}: removed {removed / 1e6:.1f} MB")
    return 0


def _size(shards: "list[Shard]") -> str:
    sizes = [shard.path.stat().st_size for shard in shards if shard.path.is_file()]
    return f"{sum(sizes) / 1e6:.1f} MB"


def _list(what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        print(f"{len(names)} {what}: " + "; ".join(names[:_SHOWN]) + more)
