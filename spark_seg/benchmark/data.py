"""The input pipeline on one core: from JPEG files to a normalised training batch, ours against stock mmseg's.

Stock is mmsegmentation's recipe for SegFormer (`configs/segformer`): LoadImageFromFile, LoadAnnotations from PNGs of
class indices, RandomResize 0.5 to 2, RandomCrop with `cat_max_ratio=0.75`, RandomFlip, PhotoMetricDistortion,
PackSegInputs, SegDataPreProcessor. Ours is the default recipe. All files are in the page cache.
"""

import argparse
import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_seg.errors import UserError

if TYPE_CHECKING:
    from spark_seg.datasets.layout import Frame

PURPOSE = "the input pipeline on one core: images to training batches, against stock mmseg"
_STOCK, _NO_RETRIES = "stock", "stock, cat_max_ratio=1"
_NORM = {
    "mean": [123.675, 116.28, 103.53],
    "std": [58.395, 57.12, 57.375],
    "bgr_to_rgb": True,
    "pad_val": 0,
    "seg_pad_val": 255,
}
# Our rows: the data set's cache, and what the recipe changes.
_OURS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "ours, no cache": (None, {}),
    "ours, labels cached": ("labels", {}),
    "ours, half-size JPEG": ("labels+half", {}),
    "ours, half-size raw": ("labels+half_raw", {}),
}
_STEPS = ("pipeline", "preprocessor")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    add = parser.add_argument
    add("--data-root", metavar="DIR", help="a SPARK tree (default: frames rendered for this)")
    add(
        "--jpeg-kb",
        type=float,
        help="write the rendered frames again, at the JPEG quality whose mean size comes nearest to this",
    )
    add(
        "--pictures",
        metavar="DIR",
        help="take this folder's JPEGs, of 1024 px, in place of the rendered ones (the rendered masks stay)",
    )
    add("--split", default="train", help="of the tree (default: train)")
    add("--frames", type=int, default=24, help="how many frames take turns (default: 24)")
    add(
        "--sizes",
        type=int,
        nargs="+",
        default=[512],
        help="of the training pictures (default: 512)",
    )
    add("--batch", type=int, default=8, help="pictures in a batch (default: 8)")
    add("--repeat", type=int, default=15, help="batches of each way (default: 15)")
    add(
        "--reduce",
        type=float,
        default=1.25,
        help="largest enlargement of a JPEG decoded small, 1.0: no detail lost (default: 1.25)",
    )
    add("--space", choices=("hsv", "yiq"), default="yiq", help="of ColorJitter (default: yiq)")
    add("--profile", action="store_true", help="also print each transform's share")


def stock_steps(size: int, cat_max_ratio: float) -> list[dict[str, Any]]:
    """mmseg's training pipeline for crops of `size`."""
    return [
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations"),
        dict(type="RandomResize", scale=(4 * size, size), ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(type="RandomCrop", crop_size=(size, size), cat_max_ratio=cat_max_ratio),
        dict(type="RandomFlip", prob=0.5),
        dict(type="PhotoMetricDistortion"),
        dict(type="PackSegInputs"),
    ]


def our_steps(size: int, reduce: float | None, space: str) -> list[dict[str, Any]]:
    """The default recipe's training pipeline."""
    return [
        dict(type="LoadSparkImage", reduce=reduce),
        dict(type="LoadSparkMask"),
        dict(type="RandomWarp", size=size, rotation=30, scale=0.2, shift=0.1),
        dict(
            type="ColorJitter", brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1, space=space
        ),
        dict(type="PackSparkInputs"),
    ]


class Way:
    """One way from files to a batch.

    Args:
        get: A packed sample by its index.
        steps: The transforms that `get` runs, which `profile` times.
        preprocess: The data preprocessor.
    """

    def __init__(self, get: Callable[[int], Any], steps: Sequence[Any], preprocess: Any) -> None:
        self.get, self.steps, self.preprocess = get, steps, preprocess

    def run(self, indices: Sequence[int], seed: int) -> tuple[float, float]:
        """CPU seconds of pipeline and preprocessor for one batch; the same numbers are drawn for one seed."""
        import random

        import numpy as np
        from mmengine.dataset import pseudo_collate

        np.random.seed(seed)  # noqa: NPY002 - what mmcv's transforms draw from
        random.seed(seed)
        start = time.process_time()
        batch = pseudo_collate([self.get(index) for index in indices])
        middle = time.process_time()
        self.preprocess(batch, True)
        return middle - start, time.process_time() - middle


def stock_way(frames: "Sequence[Frame]", masks: Path, size: int, cat_max_ratio: float) -> Way:
    """Stock mmseg over the frames; writes their masks as PNGs of class indices into `masks`."""
    import cv2
    from mmengine.dataset import Compose
    from mmseg.registry import MODELS, TRANSFORMS

    from spark_seg.labels import read_mask

    masks.mkdir(exist_ok=True)
    samples = []
    for number, frame in enumerate(frames):
        path = masks / f"{number:05d}.png"
        if not path.exists():
            cv2.imwrite(str(path), read_mask(str(frame.mask)))
        samples.append((frame.image, str(path)))
    steps = [TRANSFORMS.build(step) for step in stock_steps(size, cat_max_ratio)]
    pipeline = Compose(steps)

    def get(index: int) -> Any:
        image, mask = samples[index]
        return pipeline(
            dict(
                img_path=image,
                seg_map_path=mask,
                label_map=None,
                reduce_zero_label=False,
                seg_fields=[],
            )
        )

    norm = MODELS.build(dict(type="SegDataPreProcessor", size=(size, size), **_NORM))
    return Way(get, pipeline.transforms, norm)


def our_way(
    args: argparse.Namespace, root: str, ids: list[str], cache_dir: str, size: int, name: str
) -> Way:
    """Our default recipe over the frames."""
    from mmseg.registry import DATASETS, MODELS, TRANSFORMS

    cache, changes = _OURS[name]
    steps = our_steps(size, **{"reduce": args.reduce, "space": args.space, **changes})
    dataset = DATASETS.build(
        dict(
            type="SparkDataset",
            data_root=root,
            split=args.split,
            subset=ids,
            cache=cache,
            cache_dir=cache_dir,
            pipeline=[TRANSFORMS.build(step) for step in steps],
        )
    )
    norm = MODELS.build(dict(type="SparkDataPreProcessor", size_divisor=1, **_NORM))
    return Way(dataset.__getitem__, dataset.pipeline.transforms, norm)


def main(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures every way, turn by turn, on one thread.

    Returns:
        Rows of `case` (`train_batch`: with the preprocessor; `train_batch_uint8`: without, as it is where the device
        normalises), `variant` (mean size of the JPEGs), `size`, `impl`, `median_ms` of CPU time for each image with
        the quartiles, `images_per_s`, and `ratio_to_stock` (median of the rounds' ratios, with quartiles).

    Raises:
        UserError: An option that makes no sense, or no SPARK tree.
    """
    if min(args.frames, args.batch, args.repeat) < 1 or min(args.sizes) < 32:
        raise UserError("--frames, --batch and --repeat want 1 or more, --sizes 32 or more")
    if args.jpeg_kb is not None and (args.jpeg_kb <= 0 or args.data_root):
        raise UserError(
            "--jpeg-kb is for rendered frames, and above 0: leave it or --data-root out"
        )
    if args.pictures and (args.jpeg_kb is not None or args.data_root):
        raise UserError("--pictures: leave --jpeg-kb and --data-root out")
    if (args.pictures or args.jpeg_kb is not None) and args.split != "train":
        raise UserError("--pictures and --jpeg-kb are for the training frames: leave --split out")
    import cv2
    import torch

    import spark_seg.register  # noqa: F401
    from spark_seg.datasets.memory import reuse_memory

    reuse_memory()  # as training does, and its workers with it
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="spark_seg_benchmark") as folder:
            return [row for size in args.sizes for row in _one_size(args, size, Path(folder))]
    finally:
        cv2.setNumThreads(threads[0])
        torch.set_num_threads(threads[1])


def _one_size(args: argparse.Namespace, size: int, folder: Path) -> list[dict[str, Any]]:
    from spark_seg.datasets.layout import find_root, list_frames
    from spark_seg.datasets.spark import take_subset

    root = find_root(args.data_root or _rendered(folder, args))
    frames = list_frames(root, args.split)
    frames = take_subset(frames, min(args.frames, len(frames)))
    jpeg = statistics.mean(Path(frame.image).stat().st_size for frame in frames)
    ids = [frame.id for frame in frames]
    ways = {
        _STOCK: stock_way(frames, folder / "masks", size, 0.75),
        _NO_RETRIES: stock_way(frames, folder / "masks", size, 1.0),
    }
    for name in _OURS:
        ways[name] = our_way(args, str(root), ids, str(folder / "cache"), size, name)
    times = _measure(ways, len(frames), args.batch, args.repeat)
    if args.profile:
        print("\n".join(_profile(ways, len(frames), args.batch)) + "\n")
    return [
        _row(case, f"{jpeg / 1000:.0f} kB JPEGs", size, name, times, parts)
        for case, parts in (("train_batch", _STEPS), ("train_batch_uint8", _STEPS[:1]))
        for name in ways
    ]


def _rendered(folder: Path, args: argparse.Namespace) -> str:
    from spark_seg.datasets.demo import ensure_demo_data

    data = folder / "data"
    if data.exists():  # once for all sizes: written again, frames would be others than the cache's
        return str(data)
    pictures = _pictures(args.pictures, args.frames) if args.pictures else None
    ensure_demo_data(str(data), images=args.frames, val=1, test=1)
    files = sorted((data / "images").glob("*/train/*.jpg"))
    if args.jpeg_kb is not None:
        encode_anew(files, args.jpeg_kb)
    for file, picture in zip(files, itertools.cycle(pictures or ())):
        shutil.copyfile(picture, file)
    return str(data)


def _pictures(folder: str, most: int) -> list[Path]:
    """A folder's first JPEGs, which are to be as large as the rendered frames."""
    from spark_seg.datasets.jpeg import jpeg_info

    found = sorted(Path(folder).glob("*.jpg"))[:most]
    if not found:
        raise UserError(f"--pictures {folder}: no .jpg in it")
    for path in found:
        info = jpeg_info(path.read_bytes())
        if info is None or (info.width, info.height) != (1024, 1024):
            raise UserError(f"--pictures: {path} is no JPEG of 1024 x 1024 pixels")
    return found


def encode_anew(files: Sequence[Path], kilobytes: float) -> int:
    """Writes JPEGs again at one quality, that whose mean size comes nearest to `kilobytes`; returns the quality."""
    import cv2

    pictures: list[Any] = [cv2.imread(str(file)) for file in files]

    def encoded(quality: int) -> list[bytes]:
        flags = [cv2.IMWRITE_JPEG_QUALITY, quality]
        return [cv2.imencode(".jpg", picture, flags)[1].tobytes() for picture in pictures]

    def mean(quality: int) -> float:
        return statistics.mean(map(len, encoded(quality))) / 1000

    low, high = 1, 100  # sizes grow with the quality
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if mean(middle) <= kilobytes else (low, middle)
    best = min((low, high), key=lambda quality: abs(mean(quality) - kilobytes))
    for file, data in zip(files, encoded(best), strict=True):
        file.write_bytes(data)
    return best


def _measure(
    ways: dict[str, Way], frames: int, batch: int, repeat: int
) -> dict[str, list[dict[str, float]]]:
    """Milliseconds for each image of every round, by way and then by part."""
    times: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for turn in range(-2, repeat):  # two to warm up
        indices = [(turn * batch + k) % frames for k in range(batch)]
        for name, way in ways.items():
            spent = way.run(indices, seed=turn + 2)
            if turn >= 0:
                parts = {k: 1e3 * v / batch for k, v in zip(_STEPS, spent, strict=True)}
                times[name].append(parts)
    return times


def _row(
    case: str,
    variant: str,
    size: int,
    name: str,
    times: dict[str, list[dict[str, float]]],
    parts: Sequence[str],
) -> dict[str, Any]:
    own, stock, mild = (
        [sum(turn[part] for part in parts) for turn in times[way]]
        for way in (name, _STOCK, _NO_RETRIES)
    )
    low, median, high = _quartiles(own)
    less, ratio, more = _quartiles([a / b for a, b in zip(stock, own, strict=True)])
    _, ratio_mild, _ = _quartiles([a / b for a, b in zip(mild, own, strict=True)])
    return {
        "case": case,
        "variant": variant,
        "size": size,
        "impl": name,
        "median_ms": median,
        "low_ms": low,
        "high_ms": high,
        "images_per_s": 1e3 / median,
        "ratio_to_stock": ratio,
        "ratio_low": less,
        "ratio_high": more,
        "ratio_to_stock_cat_max_ratio_1": ratio_mild,
    }


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


class _Timed:
    """A transform that adds up its CPU time."""

    def __init__(self, step: Any) -> None:
        self.step, self.spent = step, 0.0

    def __call__(self, results: Any) -> Any:
        start = time.process_time()
        results = self.step(results)
        self.spent += time.process_time() - start
        return results


def _profile(ways: dict[str, Way], frames: int, batch: int) -> list[str]:
    """A Markdown table of each way's transforms: milliseconds for each image, and the share of it."""
    from spark_seg.benchmark.timing import markdown

    rows = []
    for name, way in ways.items():
        steps: Any = way.steps
        original, rounds = list(steps), 4
        steps[:] = [_Timed(step) for step in original]  # the list that the pipeline itself runs
        try:
            rest = sum(
                way.run([(t * batch + k) % frames for k in range(batch)], t)[1]
                for t in range(rounds)
            )
            spent = {type(timed.step).__name__: timed.spent for timed in steps}
        finally:
            steps[:] = original
        spent[type(way.preprocess).__name__] = rest
        total = sum(spent.values())
        rows += [
            {"impl": name, "stage": k, "ms": 1e3 * v / rounds / batch, "share": v / total}
            for k, v in spent.items()
        ]
    return markdown(rows)
