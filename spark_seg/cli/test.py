"""`test.py CONFIG [CHECKPOINT]`: scores a checkpoint on a labelled split."""

import argparse
from pathlib import Path
from typing import Any

from spark_seg.cli.common import Parser, add_checkpoint, add_common, find_checkpoint, prepare
from spark_seg.cli.which_run import results_folder, tell_differences
from spark_seg.engine.launch import this_process
from spark_seg.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Parses, evaluates, prints the table; returns the exit code."""
    parser = Parser(prog="test", description="Evaluate a checkpoint at the masks' own resolution.")
    add_common(parser)
    add_checkpoint(parser)
    parser.add_argument("--split", default="val", help="train or val (default: val)")
    parser.add_argument(
        "--out",
        help="where metrics.json, counts.npz and all other results go (default: <work dir>/test_<split>; of another "
        "run's weights: test_<split>_<its name>)",
    )
    parser.add_argument(
        "--overlays",
        type=int,
        default=8,
        metavar="N",
        help="rows of overlays.png; 0: none (default: 8)",
    )
    _add_corruptions(parser)
    _add_report(parser)
    args = parser.parse_args(argv)
    if args.overlays < 0:
        raise UserError(f"--overlays {args.overlays}: give a number from 0 up")
    _check(args)
    cfg = prepare(args)
    checkpoint = find_checkpoint(args.checkpoint, cfg.work_dir)

    from spark_seg.engine.checkpoints import load_state_dict
    from spark_seg.engine.failures import forget_first, recorded
    from spark_seg.evaluation.run import evaluate

    out = Path(args.out or results_folder(cfg.work_dir, checkpoint, f"test_{args.split}"))
    if this_process().is_main:
        forget_first(out)
        tell_differences(cfg, checkpoint, args.config)
    with recorded(out):
        # once: a training that goes on replaces its best checkpoint
        weights = load_state_dict(checkpoint, args.trust_checkpoint)
        result = evaluate(
            cfg,
            checkpoint,
            split=args.split,
            out=out,
            overlays=args.overlays,
            strategy=args.strategy,
            weights=weights,
        )
    print("\n".join(result.table))
    print(f"metrics: {out / 'metrics.json'}")
    if args.overlays:
        print(f"overlays: {out / 'overlays.png'}")
    from spark_seg.engine.launch import is_first
    from spark_seg.evaluation.identity import identify
    from spark_seg.evaluation.report.data import write_record

    if not is_first():
        return 0
    # A folder can hold what an earlier evaluation left: by this a report tells them apart.
    evaluation = identify(cfg, weights, args.split, result.rule)
    write_record(out, cfg, checkpoint, evaluation)
    if args.corruptions is not None:
        _corruptions(args, cfg, checkpoint, weights, out, result.rule, evaluation)
    if args.report:
        _report(args, cfg, checkpoint, weights, out, result, evaluation)
    return 0


def _add_corruptions(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("robustness")
    group.add_argument(
        "--corruptions",
        nargs="*",
        metavar="KIND",
        help="also evaluate under the faults of a space camera, all kinds or those named (after "
        "CONFIG and CHECKPOINT): robustness.json, .npz, .png",
    )
    group.add_argument(
        "--severities",
        nargs="+",
        type=int,
        choices=(1, 2, 3, 4, 5),
        metavar="S",
        help="of --corruptions, 1 to 5 (default: 1 3 5)",
    )
    group.add_argument(
        "--corruption-images",
        metavar="N",
        help="how many images --corruptions takes, spread evenly; 'all' takes every one (default: 50)",
    )


def _add_report(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("report")
    group.add_argument(
        "--report",
        action="store_true",
        help="also write report.html, one file to look at in a browser; with --corruptions, or where "
        "robustness.json is there, faults are in it",
    )
    group.add_argument(
        "--report-images",
        type=int,
        metavar="N",
        help="how many of the worst and of the median images it shows (default: 6)",
    )


def _check(args: argparse.Namespace) -> None:
    """Settles the options of --corruptions and --report before anything is loaded."""
    if (args.corruptions is not None or args.report) and this_process().world_size > 1:
        raise UserError("--corruptions and --report run in one process: start without a launcher")
    if args.report_images is not None and not args.report:
        raise UserError("--report-images goes with --report")
    if args.report_images is not None and args.report_images < 0:
        raise UserError(f"--report-images {args.report_images}: give a number from 0 up")
    if args.corruptions is None:
        for option in ("severities", "corruption_images"):
            if getattr(args, option) is not None:
                raise UserError(f"--{option.replace('_', '-')} goes with --corruptions")
        return
    from spark_seg.corruptions import choose_kinds

    args.corruptions = choose_kinds(args.corruptions)
    args.severities = sorted(set(args.severities or (1, 3, 5)))
    text = args.corruption_images or "50"
    if text == "all":
        args.corruption_images = None
    elif text.isdecimal() and int(text) > 0:
        args.corruption_images = int(text)
    else:
        raise UserError(f"--corruption-images {text}: give a number of images, or 'all'")


def _corruptions(
    args: argparse.Namespace,
    cfg: Any,
    checkpoint: Path,
    weights: dict,
    out: Path,
    rule: Any,
    evaluation: dict,
) -> None:
    from spark_seg.evaluation.faults import table_lines, write
    from spark_seg.evaluation.robustness import measure

    counts = measure(
        cfg,
        checkpoint,
        args.corruptions,
        args.severities,
        images=args.corruption_images,
        split=args.split,
        strategy=args.strategy,
        weights=weights,
    )
    print("\n" + "\n".join(table_lines(write(out, counts, rule, evaluation))))
    print(f"robustness: {out / 'robustness.json'}, {out / 'robustness.png'}")


def _report(
    args: argparse.Namespace,
    cfg: Any,
    checkpoint: Path,
    weights: dict,
    out: Path,
    result: Any,
    evaluation: dict,
) -> None:
    from spark_seg.evaluation.report.build import write_report
    from spark_seg.evaluation.report.data import load_run, worst_first
    from spark_seg.evaluation.report.pictures import (
        PICTURES_FILE,
        choose,
        predict_pictures,
        save_pictures,
    )
    from spark_seg.evaluation.sums import image_values

    values = image_values(result.counts, result.rule)
    order = worst_first(result.counts, values)
    count = 6 if args.report_images is None else args.report_images
    chosen = choose(result.counts.ids.tolist(), order, count)
    pictures = []
    if chosen:
        pictures = predict_pictures(
            cfg, checkpoint, chosen, args.split, args.strategy, weights=weights
        )
    save_pictures(out / PICTURES_FILE, pictures, evaluation)
    run = load_run(out)
    print("\n".join([*run.left_out, f"report: {write_report([run], out / 'report.html')}"]))
