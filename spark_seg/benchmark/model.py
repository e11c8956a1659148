"""A forward pass from normalised images to logits: ours against stock mmseg, Hugging Face, ONNX Runtime, OpenVINO.

All compete in turn in one process, with the same allocator settings. Ours is what predictions run: accelerated, with
frozen weights. `stock` in an `infer_bf16` row is mmseg under bf16 autocast; `ratio_to_stock` compares with mmseg in
fp32 in both cases (on a GPU: with mmseg in the row's own precision, as fp32 is nobody's choice there).
"""

import argparse
from collections.abc import Callable
from typing import Any

PURPOSE = "the network's forward pass, against stock mmseg and other runtimes"
CASES = ("infer_fp32", "infer_bf16")
IMPLS = ("stock", "ours", "hf_eager", "hf_sdpa", "onnxruntime", "openvino")
_BASE = "stock fp32"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    from spark_seg.benchmark import contestants

    contestants.add_options(parser, CASES)
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[1], help="images at a time (default: 1)"
    )
    parser.add_argument(
        "--impls", nargs="+", help=f"of {' '.join(IMPLS)} (default: what is installed)"
    )


def main(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures every case, variant, size and batch.

    Returns:
        Rows of `case`, `variant`, `size`, `batch`, `impl`, what `timing.race` returns (for the whole batch),
        `images_per_s`, `ratio_to_stock`, `memory_to_stock` and `mfu` (None off known GPUs).

    Raises:
        UserError: An option that makes no sense.
    """
    import torch

    from spark_seg.benchmark import contestants
    from spark_seg.benchmark.timing import race
    from spark_seg.datasets.memory import reuse_memory
    from spark_seg.models.summary import count_flops

    contestants.check_options(args, CASES, IMPLS)
    reuse_memory()  # as training and prediction do
    cuda = args.device != "cpu" and torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    torch.backends.cudnn.benchmark = cuda  # as the configs have it
    rows: list[dict[str, Any]] = []
    with contestants.threads(args.threads):
        for variant in args.variants:
            stock = contestants.stock_model(variant).eval()
            for size in args.sizes:
                flops = count_flops(stock, size)
                for case in args.cases:
                    for batch in args.batches:
                        calls = _calls(stock, case, size, batch, device, args.impls)
                        found = race(calls, args.repeat, cuda=cuda)
                        about = {"case": case, "variant": variant, "size": size, "batch": batch}
                        rows += _rows(about, found, flops, device)
    return rows


def _rows(
    about: dict[str, Any], found: dict[str, dict[str, float]], flops: int, device: str
) -> list[dict[str, Any]]:
    from spark_seg.benchmark.contestants import utilisation

    base = found.get(_BASE if _BASE in found else "stock")
    rows = []
    for impl, stats in found.items():
        if impl == _BASE and about["case"] != "infer_fp32":
            continue
        batch, median = about["batch"], stats["median_ms"]
        rows.append(
            {
                **about,
                "impl": "stock" if impl == _BASE else impl,
                **stats,
                "images_per_s": 1e3 * batch / median,
                "ratio_to_stock": base["median_ms"] / median if base else None,
                "memory_to_stock": stats["peak_mb"] / base["peak_mb"] if base else None,
                "mfu": utilisation(flops * batch, median, device),
            }
        )
    return rows


def _calls(
    stock: Any, case: str, size: int, batch: int, device: str, impls: list[str] | None
) -> dict[str, Callable[[], Any]]:
    import copy

    import torch

    from spark_seg.benchmark import contestants
    from spark_seg.models.fast_inference import freeze_weights

    bf16 = case == "infer_bf16"
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)

    def call(model: Any, low: bool = bf16) -> Callable[[], Any]:
        run = contestants.logits_of(model.to(device).eval())

        def forward() -> Any:
            with torch.inference_mode(), contestants.autocast(device, low):
                return run(x)

        return forward

    def ours() -> Any:
        model = contestants.fast_model(stock).to(device).eval()
        forward = call(model)
        freeze_weights(model, torch.bfloat16 if bf16 else torch.float32)
        return forward

    calls: dict[str, Callable[[], Any]] = {}
    if device == "cpu" or not bf16:
        calls[_BASE] = call(copy.deepcopy(stock), False)
    makers: dict[str, Callable[[], Any]] = {
        "stock": lambda: call(copy.deepcopy(stock)),
        "ours": ours,
        "hf_eager": lambda: call(contestants.hugging_face_model(stock, "eager")),
        "hf_sdpa": lambda: call(contestants.hugging_face_model(stock, "sdpa")),
        "onnxruntime": lambda: _exported(stock, x, "onnxruntime", "fp32"),
        "openvino": lambda: _exported(stock, x, "openvino", "bf16" if bf16 else "fp32"),
    }
    for name in impls or IMPLS:
        if name == "stock" and not bf16:
            continue  # the base
        package = "transformers" if name.startswith("hf_") else name
        if package not in ("stock", "ours") and not contestants.installed(package):
            contestants.require(package, named=impls is not None)
            continue
        if package in ("onnxruntime", "openvino") and device != "cpu":
            continue  # measured where they compute: on the CPU
        if name == "onnxruntime" and bf16:
            continue  # its CPU kernels have no bf16
        calls[name] = makers[name]()
    return calls


def _exported(stock: Any, x: Any, backend: str, precision: str) -> Callable[[], Any]:
    import tempfile
    from pathlib import Path

    from spark_seg.export.backends import load_backend
    from spark_seg.export.graph import Graph, export_onnx, save_openvino, to_openvino

    graph, size = Graph(stock, normalise=False), x.shape[-1]
    with tempfile.TemporaryDirectory() as folder:
        if backend == "openvino":
            path = save_openvino(to_openvino(graph, size), Path(folder) / "model.xml")
        else:
            path = export_onnx(graph, size, Path(folder) / "model.onnx")
        run = load_backend(path, backend, precision)
    images = x.numpy()
    return lambda: run(images)
