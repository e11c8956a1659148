"""`infer.py CONFIG [CHECKPOINT] --out DIR`: predicts images and writes the submission zip."""

from spark_seg.cli.common import Parser, add_checkpoint, add_common, find_checkpoint, prepare
from spark_seg.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Parses, predicts, prints where the zip is; returns the exit code."""
    parser = Parser(
        prog="infer", description="Predict a folder of images and write submission.zip."
    )
    add_common(parser)
    add_checkpoint(parser)
    parser.add_argument("--out", required=True, help="folder of submission.zip")
    parser.add_argument(
        "--images",
        help="folder of images (default: the config's, SPARK_TEST_ROOT, or beside the data)",
    )
    parser.add_argument(
        "--dtype", choices=("bool", "uint8"), default="bool", help="of the arrays (default: bool)"
    )
    parser.add_argument(
        "--overlays",
        type=int,
        default=0,
        metavar="N",
        help="also draw N predictions into overlays/",
    )
    parser.add_argument(
        "--keep-npz", action="store_true", help="leave the zip's members in npz/ beside it"
    )
    args = parser.parse_args(argv)
    if args.overlays < 0:
        raise UserError(f"--overlays {args.overlays}: give a number from 0 up")
    cfg = prepare(args)
    checkpoint = find_checkpoint(args.checkpoint, cfg.work_dir)
    if args.images:
        cfg.test_dataloader.dataset.images = args.images

    from spark_seg.submission.run import infer

    writer = infer(
        cfg,
        checkpoint,
        out=args.out,
        dtype=args.dtype,
        overlays=args.overlays,
        keep_npz=args.keep_npz,
        strategy=args.strategy,
        trust=args.trust_checkpoint,
    )
    if writer.report is None:  # not the first of several processes
        return 0
    print(writer.report.summary())
    print(f"submission: {writer.zip_path}")
    return 0
