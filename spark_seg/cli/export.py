"""`export.py CONFIG [CHECKPOINT] --out DIR`: files for other runtimes, each compared with PyTorch."""

from spark_seg.cli.common import (
    Parser,
    add_checkpoint,
    add_common,
    find_checkpoint,
    prepare,
    tell_unused,
)
from spark_seg.errors import UserError, nearest

FORMATS = ("onnx", "openvino-fp32", "openvino-bf16", "openvino-int8", "torch")


def main(argv: list[str] | None = None) -> int:
    """Parses, exports, prints a line for each file; returns the exit code."""
    parser = Parser(
        prog="export",
        description="Write a trained model for ONNX Runtime, OpenVINO or plain torch.",
    )
    add_common(parser)
    add_checkpoint(parser)
    parser.add_argument("--out", required=True, help="folder of the files")
    parser.add_argument(
        "--formats", nargs="+", default=["onnx"], help=f"of {' '.join(FORMATS)} (default: onnx)"
    )
    parser.add_argument(
        "--frames", type=int, default=100, help="of the val split to compare on (default: 100)"
    )
    parser.add_argument(
        "--calibrate", type=int, help="training frames for int8's ranges (default: 64)"
    )
    args = parser.parse_args(argv)
    for name in args.formats:
        if name not in FORMATS:
            hint = nearest(name.lower(), FORMATS)
            raise UserError(f"--formats {name}: there are {', '.join(FORMATS)}{hint}")
    if args.frames < 1 or (args.calibrate is not None and args.calibrate < 1):
        raise UserError("--frames and --calibrate want 1 or more")
    if args.calibrate is not None and "openvino-int8" not in args.formats:
        raise UserError("--calibrate is for --formats openvino-int8")
    if args.device == "cuda":
        raise UserError("export computes on the CPU: leave --device out")
    cfg = prepare(args)
    tell_unused(args, cfg, "export")
    checkpoint = find_checkpoint(args.checkpoint, cfg.work_dir)

    from spark_seg.export.record import ALLOWED
    from spark_seg.export.run import CALIBRATION, export

    rows = export(
        cfg,
        checkpoint,
        args.out,
        formats=args.formats,
        frames=args.frames,
        calibrate=args.calibrate or CALIBRATION,
        trust=args.trust_checkpoint,
    )
    for row in rows:
        text = (
            f"{row['format']}: {row['file']}, {row['frames']} frames: logits differ by {row['logits']:.1e}, "
            f"{100 * row['labels']:.4f} % of the labels"
        )
        if row["change"] is not None:
            text += f", mIoU {row['miou']:.3f} ({row['change']:+.3f})"
        print(text)
        if row["change"] is not None and row["change"] < -ALLOWED:
            print(
                f"warning: {row['format']} costs {-row['change']:.2f} points of mIoU, more than {ALLOWED}: "
                "do not use it for this model"
            )
    print(f"exported: {args.out}")
    return 0
