"""From image files to submission.zip: ours against the first project's way, with the same weights.

That way, as its inference script goes: PIL decodes, resizes bilinearly to the network's size and normalises; mmseg's
own model in fp32 with its own forwards; logits bilinearly to the network's size, `argmax`, a picture of colours, PIL's
nearest to the image's size, a threshold, `np.savez_compressed`, and all files into one zip; in a process of its own,
with the allocator's settings as they come. Ours is what `tools/infer.py` runs, the check of the finished zip and the
start of the loader's workers counted in; building the model is counted in neither.

`--roi` races two passes (`spark_seg.models.roi`) against whole frames of 1024 px; see `spark_seg.benchmark.roi`.

Without `--checkpoints` the network's weights are random but for the last layer, which is fitted to rendered frames: the
labels are then regions with borders, as a trained network's, and not noise.
"""

import argparse
import os
import statistics
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spark_seg.benchmark.infer_ways import FirstProjectAlone, Ours, OursExported, prepare
from spark_seg.errors import UserError

if TYPE_CHECKING:
    import torch
    from mmengine.config import Config
    from torch import nn

PURPOSE = "images to submission.zip, against the first project's way with the same weights"
STOCK = "first project's way"
_FITTED = 4  # frames that the last layer is fitted to


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    add = parser.add_argument
    add("--variants", nargs="+", default=["b0", "b2"], help="b0 to b5 (default: b0 b2)")
    add("--sizes", nargs="+", type=int, default=[512], help="of the network's input (default: 512)")
    add(
        "--precisions",
        nargs="+",
        default=["fp32"],
        help="of ours: fp32, bf16, with openvino int8 too (default: fp32)",
    )
    add(
        "--backends",
        nargs="+",
        default=["pytorch"],
        help="of ours: pytorch openvino onnxruntime (default: pytorch)",
    )
    add("--images", type=int, default=48, help="images in a pass (default: 48)")
    add("--repeat", type=int, default=3, help="passes of each way, in turn (default: 3)")
    add("--images-dir", help="folder of images to predict (default: rendered frames of 1024 px)")
    add("--checkpoints", nargs="+", metavar="FILE", help="weights, one file for each variant")
    add("--workers", type=int, help="processes that load images (default: the config's)")
    add("--threads", type=int, help="of the network (default: torch's)")
    add(
        "--roi",
        choices=("known", "found"),
        help="two passes against whole frames at 1024 px: crops of known boxes, as large as SPARK's, or of those that "
        "--checkpoints find; --sizes is the largest crop",
    )


def main(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures every variant at every size, each way in turn.

    Returns:
        Rows of `case`, `variant`, `size`, `impl`, `images_per_s`, `median_ms`, `low_ms` and `high_ms` (an image; median
        and extremes of the passes), `cpu_ms` (of all threads and processes), `ratio_to_stock` (of medians) and
        `equal_pixels` (share of labels that are those of the first project's way, which resizes twice and so differs
        a little).

    Raises:
        UserError: An option that makes no sense, a folder without images, weights that do not fit.
    """
    _check(args)
    import torch

    _check_device(args, torch.cuda.is_available())
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="spark_seg_benchmark_") as scratch:
        tree = Path(scratch) / "tree"
        if not (args.images_dir and args.checkpoints):
            _render(tree, 1 if args.images_dir else args.images)
        images = _images(args, tree)
        rows = []
        for index, variant in enumerate(args.variants):
            checkpoint = args.checkpoints[index] if args.checkpoints else None
            for size in args.sizes:
                cfg = _config(args, variant, size, tree, images)
                if args.roi:
                    from spark_seg.benchmark.roi import race

                    rows += race(args, cfg, checkpoint, tree, images, Path(scratch))
                else:
                    out = Path(scratch) / f"out_{variant}_{size}"
                    rows += _race(args, cfg, checkpoint, tree, images, out)
    return rows


def _check_device(args: argparse.Namespace, cuda: bool) -> None:
    if cuda and args.backends != ["pytorch"]:
        raise UserError(
            "--backends other than pytorch compute on the CPU, all else here on the GPU: start with "
            "CUDA_VISIBLE_DEVICES= before the command to compare on the CPU"
        )


def _check(args: argparse.Namespace) -> None:
    from spark_seg.errors import nearest

    known = [f"b{n}" for n in range(6)]
    for variant in args.variants:
        if variant not in known:
            raise UserError(f"--variants {variant}: unknown{nearest(variant, known)}")
    for precision in args.precisions:
        if precision not in ("fp32", "bf16", "int8"):
            raise UserError(f"--precisions {precision}: fp32, bf16 or int8")
    for backend in args.backends:
        if backend not in ("pytorch", "openvino", "onnxruntime"):
            raise UserError(f"--backends {backend}: pytorch, openvino or onnxruntime")
    if "onnxruntime" in args.backends and "fp32" not in args.precisions:
        raise UserError(
            "--backends onnxruntime: it computes in fp32 only, add that to --precisions"
        )
    if "int8" in args.precisions:
        from spark_seg.export.graph import require

        if "openvino" not in args.backends:
            raise UserError(
                "--precisions int8: OpenVINO computes in it, add openvino to --backends"
            )
        require("openvino", "nncf", "onnx", "onnxscript")
    if args.roi and args.backends != ["pytorch"]:
        raise UserError("--roi: two passes run in PyTorch only, leave --backends out")
    if args.images < 1 or args.repeat < 1 or min(args.sizes) < 32:
        raise UserError("--images and --repeat want 1 or more, --sizes 32 or more")
    if (args.workers or 0) < 0 or (args.threads is not None and args.threads < 1):
        raise UserError("--workers wants 0 or more, --threads 1 or more")
    if args.checkpoints and len(args.checkpoints) != len(args.variants):
        raise UserError(
            f"--checkpoints: {len(args.checkpoints)} files for {len(args.variants)} variants, give one each"
        )
    if args.roi == "found" and not args.checkpoints:
        raise UserError(
            "--roi found: random weights find no craft: give --checkpoints, or --roi known"
        )


def _render(tree: Path, images: int) -> None:
    from spark_seg.datasets.demo import make_demo_data

    make_demo_data(tree, images=_FITTED, val=0, test=images)


def _images(args: argparse.Namespace, tree: Path) -> list[str]:
    from spark_seg.datasets.layout import list_test_images

    folder = args.images_dir or str(tree / "stream-1-test")
    return [frame.image for frame in list_test_images(None, folder)][: args.images]


def _config(
    args: argparse.Namespace, variant: str, size: int, tree: Path, images: Sequence[str]
) -> "Config":
    from spark_seg.config import load_config

    options: dict[str, Any] = {
        "image_size": size,
        "pretrained": None,
        "data_root": str(tree),
        "test_images": os.path.dirname(images[0]),
    }
    if args.workers is not None:
        options["num_workers"] = args.workers
    cfg = load_config(f"segformer_{variant}_spark.py", options)
    cfg.test_dataloader.dataset.subset = len(images)
    return cfg


def _race(
    args: argparse.Namespace,
    cfg: "Config",
    checkpoint: str | None,
    tree: Path,
    images: Sequence[str],
    out: Path,
) -> list[dict[str, Any]]:
    """All ways, one pass of each in turn; the first turn warms up with fewer images."""
    model, weights = model_of(cfg, checkpoint, tree)
    ways: dict[tuple[str, str], Any] = {
        ("infer_fp32", STOCK): FirstProjectAlone(cfg, weights, images)
    }
    for precision in args.precisions:
        case = f"infer_{precision}"
        for backend in args.backends:
            if backend == "pytorch" and precision == "int8":
                continue
            if backend == "pytorch":
                cfg.precision = precision
                ways[case, f"spark_seg, PyTorch {precision}"] = Ours(cfg, weights, images)
            elif backend == "openvino":
                way = OursExported(cfg, model, images, backend, precision)
                ways[case, f"spark_seg, OpenVINO {precision}"] = way
            elif precision == "fp32":  # its CPU kernels have no bf16
                way = OursExported(cfg, model, images, backend, precision)
                ways[case, "spark_seg, ONNX Runtime fp32"] = way
    return in_turn(args, cfg, ways, images, out)


def in_turn(
    args: argparse.Namespace,
    cfg: "Config",
    ways: dict[tuple[str, str], Any],
    images: Sequence[str],
    out: Path,
) -> list[dict[str, Any]]:
    """Rows as `main` returns them, of ways by (case, name); the first is what the others are compared with."""
    times: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in ways}
    zips = {}
    for turn in range(args.repeat + 1):
        for key, way in ways.items():
            count = len(images) if turn else min(2, len(images))
            folder = out / f"{turn}_{'_'.join(key)}".replace(" ", "_")
            folder.mkdir(parents=True)
            spent, busy, zips[key] = way.timed(folder, count)
            if turn:
                times[key].append((1e3 * spent / count, 1e3 * busy / count))
    stock = next(iter(ways))
    base = statistics.median(wall for wall, _ in times[stock])
    rows = []
    for (case, impl), measured in times.items():
        walls = [wall for wall, _ in measured]
        median = statistics.median(walls)
        rows.append(
            {
                "case": case,
                "variant": cfg.variant,
                "size": cfg.image_size,
                "impl": impl,
                "images_per_s": 1e3 / median,
                "median_ms": median,
                "low_ms": min(walls),
                "high_ms": max(walls),
                "cpu_ms": statistics.median(busy for _, busy in measured),
                "ratio_to_stock": base / median,
                "equal_pixels": _equal_pixels(zips[stock], zips[case, impl]),
            }
        )
    return rows


def model_of(
    cfg: "Config", checkpoint: str | None, tree: Path
) -> "tuple[nn.Module, dict[str, torch.Tensor]]":
    """mmseg's own model with the weights, and those."""
    import torch

    from spark_seg import register  # noqa: F401

    from mmseg.registry import MODELS  # isort: skip

    from spark_seg.engine.checkpoints import apply_state_dict, load_state_dict

    torch.manual_seed(0)
    model: Any = MODELS.build(cfg.model)
    model.eval()
    if checkpoint is not None:
        apply_state_dict(model, load_state_dict(checkpoint), checkpoint)
    else:
        fit_last_layer(model, cfg, tree)
    return model, model.state_dict()


def fit_last_layer(model: Any, cfg: "Config", tree: Path) -> None:
    """Ridge regression of the classes on what the last layer sees, over a tree's training frames."""
    import cv2
    import torch

    from spark_seg.datasets.layout import list_frames
    from spark_seg.labels import read_mask

    last, seen = model.decode_head.conv_seg, []
    hook = last.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    classes = []
    for frame in list_frames(tree, "train"):
        assert frame.mask is not None
        with torch.no_grad():
            model(prepare(frame.image, cfg.image_size), mode="tensor")
        shape = seen[-1].shape
        small = cv2.resize(read_mask(frame.mask), shape[:1:-1], interpolation=cv2.INTER_NEAREST)
        classes.append(torch.from_numpy(small).long().flatten())
    hook.remove()
    x = torch.cat([f[0].flatten(1).T for f in seen]).double()
    x = torch.cat([x, torch.ones(len(x), 1)], 1)
    y = torch.nn.functional.one_hot(torch.cat(classes), last.out_channels).double()
    gram = x.T @ x
    ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    found = 20 * torch.linalg.solve(gram + ridge, x.T @ y)  # logits as large as a trained network's
    with torch.no_grad():
        last.weight.copy_(found[:-1].T[..., None, None])
        last.bias.copy_(found[-1])


def _equal_pixels(one: Path, other: Path) -> float:
    from spark_seg.submission.members import unpack

    with zipfile.ZipFile(one) as first, zipfile.ZipFile(other) as second:
        shares = [
            (unpack(first.read(name), name) == unpack(second.read(name), name)).all(2).mean()
            for name in first.namelist()
        ]
    return float(np.mean(shares))
