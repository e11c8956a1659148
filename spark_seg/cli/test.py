"""`test.py CONFIG [CHECKPOINT]`: scores a checkpoint on a labelled split."""

from pathlib import Path

from spark_seg.cli.common import Parser, add_checkpoint, add_common, find_checkpoint, prepare


def main(argv: list[str] | None = None) -> int:
    """Parses, evaluates, prints the table; returns the exit code."""
    parser = Parser(prog="test", description="Evaluate a checkpoint at the masks' own resolution.")
    add_common(parser)
    add_checkpoint(parser)
    parser.add_argument("--split", default="val", help="train or val (default: val)")
    parser.add_argument(
        "--out",
        help="where metrics.json, counts.npz and overlays.png go (default: <work dir>/test_<split>)",
    )
    parser.add_argument(
        "--overlays",
        type=int,
        default=8,
        metavar="N",
        help="rows of overlays.png; 0: none (default: 8)",
    )
    args = parser.parse_args(argv)
    cfg = prepare(args)
    checkpoint = find_checkpoint(args.checkpoint, cfg.work_dir)

    from spark_seg.evaluation.run import evaluate

    out = Path(args.out or Path(cfg.work_dir) / f"test_{args.split}")
    result = evaluate(
        cfg,
        checkpoint,
        split=args.split,
        out=out,
        overlays=args.overlays,
        strategy=args.strategy,
        trust=args.trust_checkpoint,
    )
    print("\n".join(result.table))
    print(f"metrics: {out / 'metrics.json'}")
    if args.overlays:
        print(f"overlays: {out / 'overlays.png'}")
    return 0
