"""`infer.py CONFIG [CHECKPOINT] [--out DIR]`: predicts images and writes the submission zip."""

import argparse
from pathlib import Path

from spark_seg.cli.common import (
    Parser,
    add_checkpoint,
    add_common,
    find_checkpoint,
    prepare,
    tell_unused,
)
from spark_seg.cli.which_run import results_folder, tell_differences
from spark_seg.errors import UserError, UserFileNotFoundError

PRECISIONS = {"onnxruntime": ("fp32",), "openvino": ("fp32", "bf16", "int8")}


def main(argv: list[str] | None = None) -> int:
    """Parses, predicts, prints where the zip is; returns the exit code."""
    parser = Parser(
        prog="infer", description="Predict a folder of images and write submission.zip."
    )
    add_common(parser)
    add_checkpoint(parser)
    parser.add_argument(
        "--out",
        help="folder of submission.zip (default: <work dir>/submission; of another run's weights: "
        "submission_<its name>)",
    )
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
    parser.add_argument(
        "--backend",
        choices=("pytorch", *PRECISIONS),
        default="pytorch",
        help="what computes the network (default: pytorch)",
    )
    parser.add_argument(
        "--backend-precision",
        choices=("fp32", "bf16", "int8"),
        help="of openvino; pytorch's is the config's `precision` (default: fp32)",
    )
    parser.add_argument(
        "--exported",
        metavar="DIR",
        help="files that tools/export.py wrote, for --backend (default: exported for this run)",
    )
    args = parser.parse_args(argv)
    check_backend(args)
    if args.overlays < 0:
        raise UserError(f"--overlays {args.overlays}: give a number from 0 up")
    cfg = prepare(args)
    checkpoint = _checkpoint(args, cfg.work_dir)
    args.out = args.out or str(results_folder(cfg.work_dir, checkpoint, "submission"))
    if args.images:
        cfg.test_dataloader.dataset.images = args.images

    from spark_seg.engine.failures import forget_first, recorded
    from spark_seg.engine.launch import this_process
    from spark_seg.submission.run import infer

    if this_process().is_main:
        forget_first(args.out)
        if checkpoint is not None:
            tell_differences(cfg, checkpoint, args.config)

    segmentor = None
    if args.backend != "pytorch":
        from spark_seg.export.run import load_segmentor

        tell_unused(args, cfg, f"--backend {args.backend}")
        segmentor = load_segmentor(
            cfg,
            checkpoint,
            args.backend,
            args.backend_precision or "fp32",
            exported=args.exported,
            trust=args.trust_checkpoint,
        )
    with recorded(args.out):
        writer = infer(
            cfg,
            checkpoint,
            out=args.out,
            dtype=args.dtype,
            overlays=args.overlays,
            keep_npz=args.keep_npz,
            strategy=args.strategy,
            trust=args.trust_checkpoint,
            segmentor=segmentor,
        )
    if writer.report is None:  # not the first of several processes
        return 0
    print(writer.report.summary())
    print(f"submission: {writer.zip_path}")
    return 0


def _checkpoint(args: argparse.Namespace, work_dir: str) -> Path | None:
    """The checkpoint; files that were exported need none."""
    try:
        return find_checkpoint(args.checkpoint, work_dir)
    except UserFileNotFoundError:
        if args.exported is None or args.checkpoint is not None:
            raise
        return None


def check_backend(args: argparse.Namespace) -> None:
    """Raises a UserError for options that would have no effect together."""
    given = args.backend_precision
    if args.backend == "pytorch":
        if given is not None:
            raise UserError(
                "--backend-precision is for --backend openvino; PyTorch's is --cfg-options precision=bf16"
            )
        if args.exported is not None:
            raise UserError("--exported is for --backend onnxruntime or openvino")
        return
    if given is not None and given not in PRECISIONS[args.backend]:
        raise UserError(f"--backend {args.backend} computes in fp32 only, not in {given}")
    if args.device != "cuda":
        return
    if args.backend == "openvino":
        raise UserError("--backend openvino computes on the CPU: leave --device out")
    from spark_seg.export.graph import require

    require("onnxruntime")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise UserError(
            "--backend onnxruntime --device cuda: this onnxruntime computes on the CPU only: install "
            "onnxruntime-gpu, or leave --device out"
        )
