"""`benchmark.py PART`: what a part of the product costs, as a Markdown table and JSON."""

import importlib
from pathlib import Path

from spark_seg.cli.common import Parser, choose_device, quiet_libraries

# Modules of spark_seg.benchmark: PURPOSE, add_options(parser), main(args) -> rows of one form.
PARTS = ("data", "eval", "infer", "model", "train")


def main(argv: list[str] | None = None) -> int:
    """Parses, measures, prints the table; returns the exit code."""
    parser = Parser(prog="benchmark", description="Measure what parts of spark_seg cost.")
    kinds = parser.add_subparsers(dest="part", required=True, metavar="PART", parser_class=Parser)
    modules = {name: importlib.import_module(f"spark_seg.benchmark.{name}") for name in PARTS}
    for name, module in modules.items():
        part = kinds.add_parser(name, help=module.PURPOSE, description=module.PURPOSE)
        module.add_options(part)
        part.add_argument("--json", metavar="FILE", help="write the rows, a list, into this file")
    args = parser.parse_args(argv)

    quiet_libraries()
    choose_device("auto")
    from spark_seg.atomic import make_folder
    from spark_seg.benchmark.timing import machine, markdown, write_json

    if args.json:
        make_folder(
            Path(args.json).parent
        )  # what cannot be written is told before hours of measuring
    about = machine()
    rows = modules[args.part].main(args)
    if args.json:  # before the table, whose reader may have gone
        write_json(args.json, rows, {"part": args.part, "machine": about})
    print("\n".join(f"{key}: {value}" for key, value in about.items()) + "\n")
    print("\n".join(markdown(rows)))
    return 0
