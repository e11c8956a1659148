"""`report.py RUN [RUN_B]`: a report again from saved results, or two runs side by side."""

from pathlib import Path

from spark_seg.cli.common import Parser


def main(argv: list[str] | None = None) -> int:
    """Parses, writes the HTML file; returns the exit code."""
    parser = Parser(
        prog="report",
        description="One HTML file from the results that tools/test.py left, without running the model again.",
    )
    parser.add_argument(
        "run",
        metavar="RUN",
        help="folder of an evaluation (test.py's --out), or the run's work folder",
    )
    parser.add_argument(
        "other", metavar="RUN_B", nargs="?", help="another one, to be set beside it"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="the HTML file (default: RUN/report.html, or report_compare.html in RUN_B)",
    )
    parser.add_argument(
        "--names", nargs="+", metavar="NAME", help="what to call the runs (default: their folders)"
    )
    args = parser.parse_args(argv)
    paths = [args.run] if args.other is None else [args.run, args.other]
    names = args.names or [None] * len(paths)
    if len(names) != len(paths):
        parser.error(f"--names takes {len(paths)} for {len(paths)} runs, not {len(names)}")

    from spark_seg.evaluation.report.build import write_report
    from spark_seg.evaluation.report.data import load_run

    runs = [load_run(path, name) for path, name in zip(paths, names, strict=True)]
    default = "report.html" if len(runs) == 1 else "report_compare.html"
    out = Path(args.out) if args.out else runs[-1].folder / default
    told = [line for run in runs for line in run.left_out]
    print("\n".join([*told, f"report: {write_report(runs, out)}"]))
    return 0
