"""`compare.py A B`: is run B better than run A on the images that both have seen?

`compare.py A1 A2 --to B1 B2`: is recipe B better than A, each trained with several seeds?
"""

from pathlib import Path
from typing import TYPE_CHECKING

from spark_seg.cli.common import Parser
from spark_seg.cli.rule import add_rule, chosen_rule
from spark_seg.errors import UserError, nearest

if TYPE_CHECKING:
    from spark_seg.evaluation.compare import Comparison, Difference

MAIN = "spark/score"
_ONE_EACH = (
    "one training each: what their seeds do is not counted (several of each: A1 A2 --to B1 B2)"
)
_SHOWN = (
    MAIN,
    "spark/body",
    "spark/panel",
    "mIoU/foreground",
    "IoU/body",
    "IoU/panel",
    "per_image/mIoU/foreground",
    "boundary_IoU/craft",
    "boundary_F1px/craft",
    "box_IoU",
    "ECE",
    "NLL",
)


def main(argv: list[str] | None = None) -> int:
    """Parses, compares, prints the table and the verdict; returns the exit code."""
    parser = Parser(
        prog="compare", description="Compare two evaluations by a paired bootstrap over images."
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="A, and B which should be better: output folders of tools/test.py, or their counts.npz; with --to all "
        "are A's, one for each seed",
    )
    parser.add_argument("--to", nargs="+", metavar="RUN", help="B's runs, one for each seed")
    parser.add_argument(
        "--key", default=MAIN, help=f"the score that the verdict is about (default: {MAIN})"
    )
    parser.add_argument("--all", action="store_true", help="show every score")
    parser.add_argument("--resamples", type=int, default=10_000, help="default: 10000")
    parser.add_argument("--seed", type=int, default=0, help="of the resampling (default: 0)")
    parser.add_argument("--json", metavar="FILE", help="write all numbers into this file")
    add_rule(parser, "Without any of these the rule by which the runs were scored holds.")
    args = parser.parse_args(argv)
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: give a number from 0 up")

    if args.to is None and len(args.runs) != 2:
        raise UserError(
            f"give two runs, A and B, not {len(args.runs)}; for several seeds of each: A1 A2 --to B1 B2"
        )
    a, b = (args.runs, args.to) if args.to else (args.runs[:1], args.runs[1:])
    from spark_seg.evaluation.compare import compare, counts_file, load_counts, rule_of_all

    for side in (a, b):
        files = [counts_file(path).resolve() for path in side]
        for path, file in zip(side, files, strict=True):
            if files.count(file) > 1:
                raise UserError(f"{path} is given twice on one side: each run counts once")

    found = compare(
        [load_counts(path) for path in a],
        [load_counts(path) for path in b],
        chosen_rule(args, lambda: rule_of_all(*a, *b)),
        resamples=args.resamples,
        seed=args.seed,
    )
    if args.key not in found.rows:
        raise UserError(f"--key {args.key}: no such score{nearest(args.key, found.rows)}")
    print("\n".join(report_lines(found, ", ".join(a), ", ".join(b), args.key, args.all)))
    if args.json:
        _write(args.json, found)
    return 0


def report_lines(
    found: "Comparison", name_a: str, name_b: str, key: str = MAIN, every: bool = False
) -> list[str]:
    """The comparison as lines of text: images, table, verdict."""
    from spark_seg.evaluation.table import grid

    keys = [k for k in found.rows if every or k in _SHOWN or k == key]
    keys.sort(key=lambda k: (k != key, _SHOWN.index(k) if k in _SHOWN else len(_SHOWN)))
    rows = [["score", "A", "B", "B - A", f"{found.level:.0%}".replace("%", " %"), "p", "B is"]]
    rows += [[k, *_cells(k, found.rows[k])] for k in keys]
    several = max(found.runs) > 1
    shared = f"{found.images} image{'s' * (found.images != 1)} in {'all' if several else 'both'}"
    alone = [
        f"{len(ids)} in {run} only (first {ids[0]})"
        for run, ids in (("A", found.only_a), ("B", found.only_b))
        if ids
    ]
    seeds = [f"means of {found.runs[0]} and {found.runs[1]} runs; intervals hold images and seeds"]
    return [
        f"A: {name_a}",
        f"B: {name_b}",
        ", ".join([shared, *alone]) + ("; those are left out" if alone else ""),
        *(seeds if several else [_ONE_EACH]),
        "",
        *grid(rows),
        "scores in percent, NLL in nats; lower is better for ECE and NLL",
        "",
        verdict(key, found.rows[key], found.level),
    ]


def _cells(key: str, row: "Difference") -> list[str]:
    def shown(value: float, sign: str = "") -> str:
        return f"{value:{sign}.4f}" if key.startswith("NLL") else f"{100 * value:{sign}.2f}"

    span = f"{shown(row.low, '+')} to {shown(row.high, '+')}"
    return [
        shown(row.a),
        shown(row.b),
        shown(row.difference, "+"),
        span,
        f"{row.p:.4f}",
        row.verdict,
    ]


def verdict(key: str, row: "Difference", level: float) -> str:
    """One plain sentence: whether B is better, worse, or nobody can tell."""
    _, _, difference, span, _, _ = _cells(key, row)
    ends = f"{level:.0%} interval {span}".replace("%", " %")
    if row.verdict == "better":
        return f"B is better than A by {key}: {difference} ({ends})"
    if row.verdict == "worse":
        return f"B is worse than A by {key}: {difference} ({ends})"
    share = f"{row.share_worse:.0%}".replace("%", " %")
    return (
        f"These images do not tell whether B is better than A by {key}: {difference} ({ends}); "
        f"B is not better in {share} of the resamplings"
    )


def _write(path: str, found: "Comparison") -> None:
    import json
    from dataclasses import asdict

    from spark_seg.atomic import make_folder, write_bytes

    make_folder(Path(path).parent)
    write_bytes(path, (json.dumps(asdict(found), indent=1, allow_nan=False) + "\n").encode())
