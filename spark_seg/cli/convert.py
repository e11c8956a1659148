"""`convert.py SOURCE OUT --to FORM`: SegFormer weights in the form of mmsegmentation, Hugging Face or NVlabs."""

import sys
from pathlib import Path

from spark_seg.cli.common import Parser

_FORMS = ("mmseg", "safetensors", "huggingface", "nvlabs")


def main(argv: list[str] | None = None) -> int:
    """Parses, converts, says what was written; returns the exit code."""
    parser = Parser(
        prog="convert",
        description="Write SegFormer weights in another form: mmseg (.pth), safetensors (mmsegmentation's names), "
        "huggingface (a folder for from_pretrained), nvlabs (.pth). Every key is accounted for.",
        epilog="Licence: weights that derive from NVIDIA's SegFormer are for non-commercial use: "
        "https://github.com/NVlabs/SegFormer/blob/master/LICENSE",
    )
    parser.add_argument(
        "source",
        help="a file or folder in any of these forms, a run's folder, a Hugging Face repository (owner/name), or "
        "ade20k, cityscapes, imagenet with --variant",
    )
    parser.add_argument("out", help="the file, or for huggingface the folder")
    parser.add_argument("--to", required=True, choices=_FORMS, help="the form")
    parser.add_argument(
        "--variant",
        help="b0 to b5: which of mmsegmentation's published weights; of any other source, what it must be",
    )
    parser.add_argument(
        "--backbone-only",
        action="store_true",
        help="leave the decode head out (mmsegmentation's has norms that the others' have no place for)",
    )
    args = parser.parse_args(argv)

    from spark_seg.cli.common import choose_device, quiet_libraries

    quiet_libraries()
    choose_device("auto")  # DeepSpeed would tell that it chose
    from spark_seg.models.convert_files import check_variant, leftovers, write_weights
    from spark_seg.models.pretrained import read_weights, some

    check_variant(args.variant)
    weights = read_weights(args.source, args.variant)
    check_variant(args.variant, weights)
    count, notes = write_weights(weights, Path(args.out), args.to, args.backbone_only)
    if left_out := leftovers(weights.state):
        print(f"{weights.path}: left out: {some(left_out, 'of training alone')}", file=sys.stderr)
    unused = f", {len(weights.unused)} of an unused classifier left out" if weights.unused else ""
    print(f"{weights.path}: {len(weights.state)} tensors in {weights.family}'s names{unused}")
    for note in notes:
        print(f"note: {note}")
    print(f"{args.to}: {args.out}: {count} tensors")
    return 0
