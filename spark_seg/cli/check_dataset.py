"""Looks over a SPARK tree: prints what it holds and what is wrong; exit code 1 on errors."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from spark_seg.cli.common import Parser
from spark_seg.errors import UserError

if TYPE_CHECKING:
    from spark_seg.datasets.check import Report

_SHOWN = 5  # findings of one check and level that are printed; the JSON has all


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 0 where there is no error in the data, else 1.

    Raises:
        UserError: The tree, a split or the JSON's folder is not there.
    """
    parser = Parser(prog="check_dataset", description=__doc__)
    parser.add_argument("data_root", nargs="?", help="the SPARK tree (default: SPARK_DATA_ROOT)")
    parser.add_argument(
        "--splits", nargs="+", metavar="SPLIT", help="only these, for example: train val test"
    )
    parser.add_argument(
        "--images", metavar="DIR", help="the test images, where not found by itself"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only N frames of each split")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="processes, 0: none (default: %(default)s)",
    )
    parser.add_argument("--json", metavar="FILE", help="write everything found to this file")
    args = parser.parse_args(argv)
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit}: give a number of frames from 1 on")

    from spark_seg.atomic import make_folder, write_bytes
    from spark_seg.datasets.check import check_tree
    from spark_seg.datasets.layout import find_root

    root = find_root(args.data_root)
    if args.json:  # told before minutes of looking
        make_folder(Path(args.json).parent)
    report = check_tree(root, args.splits, args.limit, args.workers, args.images)
    print("\n".join(lines(report)))
    if args.json:
        write_bytes(args.json, json.dumps(report.as_dict(), indent=1).encode() + b"\n")
    return 0 if report.ok else 1


def lines(report: "Report") -> list[str]:
    """The report as text: one [k/n] line per check with what it found, then the table."""
    from spark_seg.datasets.check import CHECKS

    text = [f"{report.root}" + (" (part of the frames)" if report.limited else "")]
    for number, (check, purpose) in enumerate(CHECKS.items(), 1):
        found = [finding for finding in report.findings if finding.check == check]
        levels = {
            level: sum(f.level == level for f in found) for level in ("error", "warning", "note")
        }
        state = ", ".join(f"{n} {level}{'s' * (n > 1)}" for level, n in levels.items() if n) or "ok"
        if report.limited and check in ("counts", "shares"):
            state = "not compared with --limit"
        text.append(f"[{number}/{len(CHECKS)}] {purpose}: {state}")
        for level in levels:
            same = [finding for finding in found if finding.level == level]
            text += [f"    {level}: {f.where}: {f.message}" for f in same[:_SHOWN]]
            if len(same) > _SHOWN:
                text.append(f"    {level}: ... and {len(same) - _SHOWN} more")
    text += _table(report)
    errors = sum(finding.level == "error" for finding in report.findings)
    text.append(f"{errors} errors" if errors else "no errors")
    return text


def _table(report: "Report") -> list[str]:
    titles = ("split", "satellite", "frames", "body %", "panel %", "no panel", "empty")
    rows = ["{:8} {:18} {:>7} {:>7} {:>8} {:>9} {:>6}".format(*titles)]
    for split, tallies in report.tallies.items():
        for name, tally in tallies.items():
            row = f"{split:8} {name or '-':18} {tally.frames:7}"
            if tally.labelled:
                row += f" {tally.share(1):7.2f} {tally.share(2):8.2f}"
                row += f" {tally.without_panel:9} {tally.empty:6}"
            rows.append(row)
    return rows
