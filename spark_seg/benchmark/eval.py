"""What evaluation adds to the model's time for one image, on one core."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from spark_seg.errors import UserError

PURPOSE = "what evaluation adds per image: confusion, boundaries, boxes, calibration"
# The craft's box as a share of the frame: 5th percentile, median and largest of SPARK 2024.
_BOXES = {"small craft (3 %)": 0.03, "median craft (9 %)": 0.09, "largest craft (75 %)": 0.75}
_TYPICAL = "median craft (9 %)"
_LOGITS = (128, 256)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    parser.add_argument("--size", type=int, default=1024, help="of the frame (default: 1024)")
    parser.add_argument("--repeat", type=int, default=50, help="measurements (default: 50)")


def draw(size: int, share: float) -> np.ndarray:
    """A craft whose box fills `share` of the frame: two panels on booms, a body; uint8 [S, S]."""
    import cv2

    labels = np.zeros((size, size), np.uint8)
    half = int(size * share**0.5 / 2)
    middle, boom = size // 2, max(1, size // 512)

    def fill(x0: float, y0: float, x1: float, y1: float, value: int) -> None:
        low, high = (
            (middle + int(half * x), middle + int(half * y)) for x, y in ((x0, y0), (x1, y1))
        )
        cv2.rectangle(labels, low, high, value, -1)

    cv2.line(labels, (middle - half, middle), (middle + half, middle), 1, boom)
    cv2.line(labels, (middle, middle - half), (middle, middle + half), 1, boom)
    for side in (-1, 1):
        fill(side * 0.45, -0.3, side * 1.0, 0.3, 2)
    fill(-0.35, -0.5, 0.35, 0.5, 1)
    return labels


def found(truth: np.ndarray) -> np.ndarray:
    """A prediction of the truth: shifted by two pixels, with ragged edges."""
    import cv2

    noise: Any = np.random.default_rng(0).normal(0, 2, (*truth.shape, 2)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 3) * 4
    rows, cols = np.indices(truth.shape, dtype=np.float32)
    return cv2.remap(truth, cols + noise[..., 0] + 2, rows + noise[..., 1], cv2.INTER_NEAREST)


def cases(size: int) -> dict[str, Callable[[], Any]]:
    """What is measured, by name."""
    import torch

    import spark_seg.register  # noqa: F401
    from spark_seg.evaluation.calibration import calibration_counts
    from spark_seg.evaluation.counts import confusion
    from spark_seg.evaluation.frame import count_frame

    truths = {name: draw(size, share) for name, share in _BOXES.items()}
    typical = truths[_TYPICAL]
    made: dict[str, Callable[[], Any]] = {"confusion": partial(confusion, found(typical), typical)}
    for name, truth in truths.items():
        made[f"confusion, boxes, boundaries: {name}"] = partial(count_frame, found(truth), truth)
    generator = torch.Generator().manual_seed(0)
    for side in _LOGITS:
        logits = torch.randn(1, 3, side, side, generator=generator)
        target = torch.from_numpy(typical)
        made[f"calibration: {side} x {side} logits"] = partial(
            calibration_counts, logits[0], target
        )
        for name, truth in truths.items():
            made[f"all: {name}, {side} x {side} logits"] = whole(truth, logits)
    return made


def whole(truth: np.ndarray, logits: Any) -> Callable[[], Any]:
    """All that the metric does with one image; labels are uint8, as the model and the configs' pipeline leave them."""
    import torch
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    from spark_seg.evaluation.metric import SparkMetric

    metric, sample = SparkMetric(), SegDataSample()
    sample.pred_sem_seg = PixelData(data=torch.from_numpy(found(truth))[None])
    sample.gt_sem_seg = PixelData(data=torch.from_numpy(truth)[None])

    def run() -> None:
        metric.results.clear()
        metric.observe_logits(logits, [sample])
        metric.process(None, [sample.to_dict()])

    return run


def main(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures each case on one thread.

    Returns:
        Rows of `case` and what `timing.measure` returns.

    Raises:
        UserError: An option that makes no sense.
    """
    if args.size < 16 or args.repeat < 1:
        raise UserError("--size wants 16 or more, --repeat 1 or more")
    import cv2
    import torch

    from spark_seg.benchmark.timing import measure
    from spark_seg.datasets.memory import reuse_memory

    reuse_memory()  # as the metric does
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        return [
            {"case": name, **measure(call, args.repeat)} for name, call in cases(args.size).items()
        ]
    finally:
        cv2.setNumThreads(threads[0])
        torch.set_num_threads(threads[1])
