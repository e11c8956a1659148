"""What comes after the network for one image, on one core: labels, scores, the submission's file; against stock."""

import argparse
from pathlib import Path
from typing import Any

from spark_seg.errors import UserError

PURPOSE = "what comes after the network, per image: labels, scores, zip; and a label's way in"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    parser.add_argument("--size", type=int, default=1024, help="of the frame (default: 1024)")
    parser.add_argument("--repeat", type=int, default=50, help="measurements (default: 50)")


def main(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures each case on one thread; the ways of a case take turns.

    Returns:
        Rows of `case`, `variant` (the craft, as `eval_ways.CRAFT`), `size`, `impl`, `median_ms`, `low_ms`, `high_ms`
        (quartiles) and `cpu_ms` for one image, `ratio_to_stock` (None where stock has nothing like it) and `bytes` (of
        what a case makes: a member, a zip's share, a cached label; else None).

    Raises:
        UserError: An option that makes no sense.
    """
    if args.size < 32 or args.size % 8 or args.repeat < 1:
        raise UserError("--size wants a multiple of 8 from 32 up, --repeat 1 or more")
    import tempfile

    import cv2
    import torch

    from spark_seg.benchmark.eval_ways import cases
    from spark_seg.benchmark.timing import race
    from spark_seg.datasets.memory import reuse_memory

    reuse_memory()  # as the metric does
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    rows = []
    try:
        with tempfile.TemporaryDirectory(prefix="spark_seg_benchmark") as folder:
            for case in cases(args.size, Path(folder)):
                found = race(case.ways, args.repeat)
                base = found.get("stock")
                for impl, stats in found.items():
                    own = {k: v / case.images for k, v in stats.items() if k != "peak_mb"}
                    ratio = base["median_ms"] / stats["median_ms"] if base else None
                    about = {"case": case.name, "variant": case.variant, "size": args.size}
                    size = case.sizes.get(impl)
                    rows.append(
                        {**about, "impl": impl, **own, "ratio_to_stock": ratio, "bytes": size}
                    )
    finally:
        cv2.setNumThreads(threads[0])
        torch.set_num_threads(threads[1])
    return rows
