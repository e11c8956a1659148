"""`browse_dataset.py CONFIG`: a sheet of samples as a training sees them, to check augmentation by eye."""

from spark_seg.cli.common import Parser
from spark_seg.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Parses, makes the samples, writes the sheet; returns the exit code.

    Raises:
        UserError: A wrong config or option, no data, or a folder that cannot be written.
    """
    args = _parser().parse_args(argv)
    for name, least in (("count", 1), ("draws", 1), ("seed", 0), ("tile", 32)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: give a whole number from {least} on")
    if args.ids and args.count is not None:
        raise UserError("--count says how many frames, --ids says which: give one of them")
    if args.draws is not None and (args.pipeline or args.split) == "val":
        raise UserError(
            "--draws: validation's transforms draw nothing; leave it out, or add --pipeline train"
        )

    from spark_seg.cli.common import choose_device, quiet_libraries, render_demo_data
    from spark_seg.config import find_config, load_config, parse_options

    path = find_config(args.config)  # a wrong name is told before seconds of imports
    options = parse_options(args.cfg_options)
    quiet_libraries()
    choose_device("auto")  # DeepSpeed would tell that it chose
    cfg = load_config(args.config, options)
    render_demo_data(cfg, path, options)
    from spark_seg.datasets.browse import browse_sheet
    from spark_seg.visual import save_png

    sheet, shown = browse_sheet(
        cfg,
        split=args.split,
        pipeline=args.pipeline,
        count=8 if args.count is None else args.count,
        draws=3 if args.draws is None else args.draws,
        ids=args.ids,
        seed=args.seed,
        tile=args.tile,
    )
    save_png(args.out, sheet)
    print(f"{args.out}: {shown}, {sheet.shape[1]}x{sheet.shape[0]} pixels")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="browse_dataset",
        description="Write a sheet (PNG) of samples as the model sees them: a frame's row has several draws of its "
        "augmentation, each as image | labels over it (red: body, blue: panel, grey: ignored). Draw k is what epoch k "
        "of a training with this seed sees.",
    )
    add = parser.add_argument
    add("config", help="a config file, or the name of one that comes with spark_seg")
    add(
        "--cfg-options",
        nargs="+",
        action="extend",
        metavar="KEY=VALUE",
        help="change the config: mosaic=0.5 camera_faults=2",
    )
    add("--out", default="browse.png", metavar="PNG", help="the sheet (default: %(default)s)")
    add("--split", default="train", help="of the data: train or val (default: %(default)s)")
    add(
        "--pipeline",
        choices=("train", "val"),
        help="whose transforms (default: the split's own)",
    )
    add("--count", type=int, metavar="N", help="frames, spread over the split (8)")
    add("--draws", type=int, metavar="K", help="of each frame (3; val: 1)")
    add("--ids", nargs="+", metavar="ID", help="these frames: Cheops/train/image_00001")
    add("--seed", type=int, help="of the augmentation (default: the config's, or 0)")
    add("--tile", type=int, default=256, metavar="PX", help="side of a picture (256)")
    return parser
