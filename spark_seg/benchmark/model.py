"""A forward pass from normalised images to logits: ours against stock mmseg, Hugging Face, ONNX Runtime, OpenVINO.

They take turns; on the CPU each in a process of its own, where the C library's allocator is set as predictions of ours
set it for our ways, and left alone for stock mmseg and Hugging Face (`stock_kept` is stock with our setting). Ours is
what predictions run: accelerated, with frozen weights; `ours_compiled` what they run under `compile=True`.
`openvino_streams` takes a batch as `tools/infer.py` does, one image a core. `infer_int8`, measured where named, is
OpenVINO's, quantised on noise: for its time alone, as `tools/export.py` tells what it does to a trained network's mIoU.
`stock` in an `infer_bf16` row is mmseg under bf16 autocast; `ratio_to_stock` compares with mmseg in fp32 in all cases,
`stock_fp32` there (on a GPU: with mmseg in the row's own precision, as fp32 is nobody's choice there).
"""

import argparse
from collections.abc import Callable
from typing import Any

from spark_seg.errors import UserError

PURPOSE = "the network's forward pass, against stock mmseg and other runtimes"
CASES = ("infer_fp32", "infer_bf16")
INT8 = "infer_int8"
IMPLS = (
    "stock",
    "stock_kept",
    "ours",
    "hf_eager",
    "hf_sdpa",
    "onnxruntime",
    "openvino",
    "openvino_streams",
)
NAMED = ("ours_compiled",)  # measured where it is named
_BASE = "stock fp32"
_CALIBRATION = 4  # pictures, all of them noise


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    from spark_seg.benchmark import contestants

    contestants.add_options(parser, CASES, (INT8,))
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[1], help="images at a time (default: 1)"
    )
    parser.add_argument(
        "--impls",
        nargs="+",
        help=f"of {' '.join((*IMPLS, *NAMED))} (default: what is installed of all but the last)",
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
    from spark_seg.benchmark.apart import Ways
    from spark_seg.benchmark.profile import show
    from spark_seg.datasets.memory import reuse_memory
    from spark_seg.models.summary import count_flops

    contestants.check_options(args, (*CASES, INT8), (*IMPLS, *NAMED))
    cuda = args.device != "cpu" and torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    apart = contestants.is_apart(args, device)
    if not apart:
        reuse_memory()
    torch.backends.cudnn.benchmark = cuda  # as the configs have it
    if "onnxruntime" in (args.impls or ()) and "infer_fp32" not in args.cases:
        raise UserError(
            "--impls onnxruntime: its CPU kernels have no bf16, add infer_fp32 to --cases"
        )
    if INT8 in args.cases:
        from spark_seg.export.graph import require

        require("openvino", "nncf", "onnx", "onnxscript")
    impls = contestants.compete(tuple(args.impls or IMPLS), args.impls is not None, apart, device)
    rows: list[dict[str, Any]] = []
    with (
        contestants.threads(args.threads),
        Ways(make, apart, contestants.FOREIGN, args.threads) as ways,
    ):
        for variant in args.variants:
            for size in args.sizes:
                flops = count_flops(contestants.stock_model(variant).eval(), size)
                for case in args.cases:
                    names = _names(impls, case, device)
                    base = _BASE if _BASE in names else "stock"
                    about = {"case": case, "variant": variant, "size": size}
                    races = contestants.races(args, ways, about, names, base, device)
                    for batch, found in races:
                        rows += _rows({**about, "batch": batch}, found, base, flops, device)
                        if args.profile:
                            show({**about, "batch": batch}, found, make, device)
    return contestants.some(rows)


def _rows(
    about: dict[str, Any],
    found: dict[str, dict[str, float]],
    compared: str,
    flops: int,
    device: str,
) -> list[dict[str, Any]]:
    from spark_seg.benchmark.contestants import utilisation

    base = found.get(compared)
    rows = []
    for impl, stats in found.items():
        batch, median = about["batch"], stats["median_ms"]
        rows.append(
            {
                **about,
                "impl": {"infer_fp32": "stock"}.get(about["case"], "stock_fp32")
                if impl == _BASE
                else impl,
                **stats,
                "images_per_s": 1e3 * batch / median,
                "ratio_to_stock": base["median_ms"] / median if base else None,
                "memory_to_stock": stats["peak_mb"] / base["peak_mb"] if base else None,
                "mfu": utilisation(flops * batch, median, device),
            }
        )
    return rows


def _names(impls: list[str], case: str, device: str) -> list[str]:
    """Who competes in a case; `stock fp32` is whom all others are compared with, and stock itself in fp32."""
    bf16, base = case == "infer_bf16", [_BASE]
    if case == INT8:
        return base + [name for name in impls if name.startswith("openvino")]
    if device != "cpu" and bf16:
        base = []
    if bf16:
        return base + [name for name in impls if name != "onnxruntime"]  # its CPU kernels have none
    return base + [name for name in impls if name != "stock"]


def make(
    impl: str, variant: str, case: str, size: int, batch: int, device: str
) -> Callable[[], Any]:
    """One way's call."""
    import torch

    from spark_seg import register  # noqa: F401
    from spark_seg.benchmark import contestants
    from spark_seg.models.fast_inference import freeze_weights

    bf16 = case == "infer_bf16" and impl != _BASE
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    model: Any = contestants.stock_model(variant).eval()
    if impl.startswith(("onnxruntime", "openvino")):
        return _exported(model, x, impl, case.removeprefix("infer_"))
    if impl.startswith("ours"):
        model = contestants.fast_model(model, impl == "ours_compiled")
    elif impl.startswith("hf_"):
        model = contestants.hugging_face_model(model, impl.removeprefix("hf_"))
    model = model.to(device).eval()
    run = contestants.logits_of(model)
    if impl == "ours":
        freeze_weights(model, torch.bfloat16 if bf16 else torch.float32)

    def forward() -> Any:
        with torch.inference_mode(), contestants.autocast(device, bf16):
            return run(x)

    return forward


def _exported(stock: Any, x: Any, impl: str, precision: str) -> Callable[[], Any]:
    import tempfile
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    from spark_seg.export.backends import default_streams, load_backend
    from spark_seg.export.graph import Graph, export_onnx, quantise, save_openvino, to_openvino

    backend, _, several = impl.partition("_")
    streams = default_streams() if several else 1
    graph, size = Graph(stock, normalise=False), x.shape[-1]
    with tempfile.TemporaryDirectory() as folder:
        if backend == "openvino":
            network = to_openvino(graph, size)
            if precision == "int8":
                network = quantise(network, [x[:1].numpy()] * _CALIBRATION)
            path = save_openvino(network, Path(folder) / "model.xml")
        else:
            path = export_onnx(graph, size, Path(folder) / "model.onnx")
        run = load_backend(path, backend, precision, streams)
    images = x.numpy()
    if not several:
        return lambda: run(images)
    pool = ThreadPoolExecutor(streams)
    return lambda: list(pool.map(run, images[:, None]))
