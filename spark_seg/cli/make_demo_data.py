"""Renders the demo data set; see `spark_seg.datasets.demo`."""

from functools import partial

from spark_seg.cli.common import Parser


def main(argv: list[str] | None = None) -> int:
    """Parses the command line, renders, prints what was made. Returns the exit code."""
    args = _parser().parse_args(argv)
    from spark_seg.datasets.demo import ensure_demo_data, make_demo_data

    make = make_demo_data if args.force else partial(ensure_demo_data, replace=False)
    made = make(
        args.out,
        args.images,
        args.size,
        args.seed,
        args.val,
        args.test,
        args.workers,
        args.train_size,
        args.domain,
    )
    total, seconds = made["images"] + made["val"] + made["test"], made["seconds"]
    print(
        f"{made['root']}: {made['images']} train, {made['val']} val, {made['test']} test frames of "
        f"{made['size']} px, "
        + (f"train {made['train_size']} px, " if "train_size" in made else "")
        + (f"{total / seconds:.1f} frames/s" if made["rendered"] else "already there")
    )
    m = made["measured"]
    print(
        f"pixels: background {m['background']:.2%}, body {m['body']:.2%}, panel {m['panel']:.2%}; "
        f"frames without a panel: {m['frames_without_panel']:.1%}; "
        f"boxes: mean {m['box_mean']:.1%}, median {m['box_median']:.1%} of the frame"
    )
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="make_demo_data",
        description="Render SPARK-like frames with their masks as a SPARK 2024 tree: train.csv, "
        "val.csv, images/, mask/, stream-1-test/ (no labels), stream-1-test-truth/ (its lossless "
        "masks), backgrounds.csv (for scores by background). "
        "The same options give the same files; a tree that is already there is kept.",
    )
    add = parser.add_argument
    add("--out", required=True, help="folder to make; never one that holds other files")
    add("--images", type=int, default=300, help="training frames, ten craft take turns (300)")
    add("--val", type=int, help="validation frames on top (a third of --images)")
    add("--test", type=int, help="test frames on top (a fifteenth of --images)")
    add("--size", type=int, default=1024, help="width and height in pixels (1024)")
    add("--train-size", type=int, help="of the training frames (as --size)")
    add("--seed", type=int, default=0, help="other seeds, other frames (0)")
    add(
        "--domain",
        default="standard",
        help="standard, or hard: the same scenes in other materials and light, through a worse "
        "camera, to test on what training has not seen (standard)",
    )
    add("--workers", type=int, help="processes (one per core)")
    add("--force", action="store_true", help="render anew, over whatever demo frames are there")
    return parser
