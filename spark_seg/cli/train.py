"""`train.py CONFIG`: trains a config; see the README for what it writes."""

import os

from spark_seg.cli.common import Parser, add_common, prepare
from spark_seg.engine.launch import leave_when_warned
from spark_seg.errors import UserError


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
    parser.add_argument(
        "--stage-to",
        metavar="DIR",
        default=os.environ.get("SPARK_STAGE_DIR") or None,
        help="copy the data to this node-local folder first, once for each node (default: SPARK_STAGE_DIR)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="train nothing: say what the training would be, for any number of GPUs",
    )
    parser.add_argument(
        "--world-size", type=int, metavar="N", help="GPUs of the dry run (default: 1)"
    )
    parser.add_argument(
        "--gpus-per-node", type=int, metavar="N", help="of the dry run (default: 8)"
    )
    args = parser.parse_args(argv)
    leave_when_warned()
    for option in ("world_size", "gpus_per_node"):
        if getattr(args, option) is not None and not args.dry_run:
            name = option.replace("_", "-")
            raise UserError(f"--{name} goes with --dry-run: torchrun and srun say it otherwise")
    cfg = prepare(args)
    if args.dry_run:
        from spark_seg.engine.plan import dry_run

        world_size = 1 if args.world_size is None else args.world_size
        gpus_per_node = 8 if args.gpus_per_node is None else args.gpus_per_node
        dry_run(cfg, world_size, gpus_per_node, args.strategy)
        return 0
    if args.stage_to:
        from spark_seg.engine.staging import use_staged

        use_staged(cfg, args.stage_to)

    from spark_seg.engine.train import train

    train(cfg, strategy=args.strategy, resume=args.resume)
    return 0
