"""Who competes in `benchmark.py eval`: what this package does with a frame after the network, and what stock does.

labels      logits at a quarter of the size -> labels of the frame. Stock: `F.interpolate` and `argmax`, as mmseg.
confusion   labels and truth -> counts. Stock: mmseg's `IoUMetric`.
boundaries  the same with boxes and boundaries; stock has none.
calibration_N, all_N    of N x N logits: what calibration adds, and all that our metric does with an image.
npz         labels -> a member's bytes. Stock: the colour array through `np.savez_compressed`.
zip         labels -> a checked submission.zip, a frame's share. Stock: such members in a `zipfile`, unchecked.
label       a training label's way in: from our cache. Stock: mmseg's `LoadAnnotations` of a PNG of class indices;
            `colours` is our own reading of the colour mask that SPARK ships.
"""

import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

# The craft's box as a share of the frame: 5th percentile, median and largest of SPARK 2024.
CRAFT = {"small craft (3 %)": 0.03, "median craft (9 %)": 0.09, "largest craft (75 %)": 0.75}
TYPICAL = "median craft (9 %)"
_LOGITS = (128, 256)
_FRAMES = 16  # in a zip


@dataclass
class Case:
    """One race.

    Attributes:
        name: See the module.
        variant: A key of `CRAFT`.
        ways: Calls by the way's name.
        images: So many images is what one call does.
        sizes: Bytes of what a way makes of one image.
    """

    name: str
    variant: str
    ways: dict[str, Callable[[], Any]]
    images: int = 1
    sizes: dict[str, float] = field(default_factory=dict)


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


def cases(size: int, folder: Path) -> Iterator[Case]:
    """All races over frames of `size` pixels; files go into `folder`."""
    import torch

    import spark_seg.register  # noqa: F401
    from spark_seg.evaluation.calibration import calibration_counts
    from spark_seg.evaluation.counts import confusion
    from spark_seg.evaluation.frame import count_frame

    truths = {name: draw(size, share) for name, share in CRAFT.items()}
    for name, truth in truths.items():
        yield _labels(name, logits_of(found(truth), size // 8))
    typical = truths[TYPICAL]
    ours = partial(confusion, found(typical), typical)
    yield Case("confusion", TYPICAL, {"stock": _stock_counts(typical), "ours": ours})
    for name, truth in truths.items():
        yield Case("boundaries", name, {"ours": partial(count_frame, found(truth), truth)})
    generator = torch.Generator().manual_seed(0)
    for side in _LOGITS:
        logits = torch.randn(1, 3, side, side, generator=generator)
        target = torch.from_numpy(typical)
        call = partial(calibration_counts, logits[0], target)
        yield Case(f"calibration_{side}", TYPICAL, {"ours": call})
        for name, truth in truths.items():
            yield Case(f"all_{side}", name, {"ours": whole(truth, logits)})
    for name, truth in truths.items():
        yield _npz(name, found(truth))
    yield _zip(TYPICAL, found(typical), folder)
    yield _label(TYPICAL, typical, folder)


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


def logits_of(labels: np.ndarray, side: int) -> Any:
    """Logits float32 [1, 3, side, side] that a trained network could have for these labels: sure but at borders."""
    import cv2
    import torch

    planes = [
        cv2.resize((labels == k).astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
        for k in range(3)
    ]
    noise = np.random.default_rng(0).normal(0, 0.3, (3, side, side)).astype(np.float32)
    return torch.from_numpy(10 * np.stack(planes) + noise)[None]


def _labels(name: str, logits: Any) -> Case:
    import torch

    from spark_seg.models.predict import labels_from_logits

    size = (8 * logits.shape[-1],) * 2

    def stock() -> Any:
        full = torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)
        return full.argmax(1)

    return Case(
        "labels", name, {"stock": stock, "ours": lambda: labels_from_logits(logits, [size])}
    )


def _stock_counts(truth: np.ndarray) -> Callable[[], Any]:
    import torch
    from mmseg.evaluation.metrics import IoUMetric

    prediction, label = torch.from_numpy(found(truth)), torch.from_numpy(truth)
    return lambda: IoUMetric.intersect_and_union(prediction, label, 3, 255)


def _colours(labels: np.ndarray) -> np.ndarray:
    colours = np.zeros((*labels.shape, 3), bool)
    colours[labels == 1] = (True, False, False)
    colours[labels == 2] = (False, False, True)
    return colours


def _savez(labels: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, data=_colours(labels))
    return file.getvalue()


def _npz(name: str, labels: np.ndarray) -> Case:
    from spark_seg.labels import to_submission
    from spark_seg.submission.members import pack

    def ours() -> bytes:
        return pack(to_submission(labels))

    ways: dict[str, Callable[[], Any]] = {"stock": lambda: _savez(labels), "ours": ours}
    return Case("npz", name, ways, sizes={way: len(call()) for way, call in ways.items()})


def _zip(name: str, labels: np.ndarray, folder: Path) -> Case:
    from spark_seg.submission.writer import SubmissionWriter

    images = [f"test_{number:05d}_img.jpg" for number in range(_FRAMES)]
    rolled = [np.roll(labels, 3 * number, axis=1) for number in range(_FRAMES)]

    def stock() -> int:
        path = folder / "stock.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for image, one in zip(images, rolled, strict=True):
                archive.writestr(image.replace("_img.jpg", "_layer.npz"), _savez(one))
        return path.stat().st_size

    def ours() -> int:
        writer = SubmissionWriter(folder / "ours", images)
        for image, one in zip(images, rolled, strict=True):
            writer.add(image, one)
        return writer.finish().stat().st_size

    sizes = {"stock": stock() / _FRAMES, "ours": ours() / _FRAMES}
    return Case("zip", name, {"stock": stock, "ours": ours}, images=_FRAMES, sizes=sizes)


def _label(name: str, truth: np.ndarray, folder: Path) -> Case:
    import cv2
    from mmseg.registry import TRANSFORMS

    from spark_seg.datasets.cache import FrameCache, shards_of
    from spark_seg.datasets.cache_build import build_cache
    from spark_seg.datasets.layout import Frame
    from spark_seg.labels import read_mask

    mask, indices = folder / "mask.png", folder / "indices.png"
    cv2.imwrite(str(mask), 255 * _colours(truth)[..., ::-1].astype(np.uint8))
    cv2.imwrite(str(indices), truth)
    shards = shards_of(
        [Frame("Soho/train/0", "Soho", "train", str(mask), str(mask))],
        folder,
        folder / "cache",
        ["labels"],
    )
    build_cache(folder, shards, threads=1)
    cache = FrameCache(folder, shards)
    load = TRANSFORMS.build({"type": "mmseg.LoadAnnotations"})
    given = {"seg_map_path": str(indices), "label_map": None, "reduce_zero_label": False}
    ways: dict[str, Callable[[], Any]] = {
        "stock": lambda: load({**given, "seg_fields": []}),
        "ours": lambda: cache.labels(str(mask)),
        "colours": lambda: read_mask(str(mask)),
    }
    if cache.labels(str(mask)) is None:
        raise RuntimeError("the cache does not hold the label that it was built of")
    sizes = {
        "stock": indices.stat().st_size,
        "ours": shards[0].path.stat().st_size,
        "colours": mask.stat().st_size,
    }
    return Case("label", name, ways, sizes={way: float(size) for way, size in sizes.items()})
