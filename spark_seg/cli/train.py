"""`train.py CONFIG`: trains a config; see the README for what it writes."""

from spark_seg.cli.common import Parser, add_common, prepare


def main(argv: list[str] | None = None) -> int:
    """Parses, builds, trains; returns the exit code."""
    parser = Parser(prog="train", description="Train a config.")
    add_common(parser)
    parser.add_argument("--seed", type=int, help="the random seed (default: the config's, 42)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="CHECKPOINT",
        help="go on from a checkpoint folder (default: the newest whole one of the work folder)",
    )
    args = parser.parse_args(argv)
    cfg = prepare(args)

    from spark_seg.engine.train import train

    train(cfg, strategy=args.strategy, resume=args.resume)
    return 0
