"""A training step: forward, cross-entropy at full size, backward, AdamW; ours against stock mmseg and Hugging Face.

All compete in turn in one process, with the same allocator settings; ours steps torch's fused AdamW, as a training
without ZeRO's partition does, the others its default. `ratio_to_stock` compares with mmseg in the row's own precision.
"""

import argparse
from collections.abc import Callable
from typing import Any

PURPOSE = "a training step on images in memory, against stock mmseg and Hugging Face"
CASES = ("train_fp32", "train_bf16")
IMPLS = ("stock", "ours", "ours_graphs", "hf_eager", "hf_sdpa")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    from spark_seg.benchmark import contestants

    contestants.add_options(parser, CASES)
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[2], help="images in a step (default: 2)"
    )
    parser.add_argument(
        "--impls", nargs="+", help=f"of {' '.join(IMPLS)} (default: what is installed)"
    )


def main(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures every case, variant, size and batch.

    Returns:
        Rows as `benchmark.model`'s; `mfu` counts three times the forward's operations.

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
            stock = contestants.stock_model(variant)
            for size in args.sizes:
                flops = 3 * count_flops(stock, size)
                for case in args.cases:
                    for batch in args.batches:
                        calls = _calls(stock, case, size, batch, device, args.impls)
                        found = race(calls, args.repeat, cuda=cuda)
                        base = found.get("stock")
                        for impl, stats in found.items():
                            median, peak = stats["median_ms"], stats["peak_mb"]
                            rows.append(
                                {
                                    "case": case,
                                    "variant": variant,
                                    "size": size,
                                    "batch": batch,
                                    "impl": impl,
                                    **stats,
                                    "images_per_s": 1e3 * batch / median,
                                    "ratio_to_stock": base["median_ms"] / median if base else None,
                                    "memory_to_stock": peak / base["peak_mb"] if base else None,
                                    "mfu": contestants.utilisation(flops * batch, median, device),
                                }
                            )
    return rows


def _calls(
    stock: Any, case: str, size: int, batch: int, device: str, impls: list[str] | None
) -> dict[str, Callable[[], Any]]:
    import copy

    from spark_seg.benchmark import contestants
    from spark_seg.models.graphs import record_training

    makers: dict[str, Callable[[], Any]] = {
        "stock": lambda: copy.deepcopy(stock),
        "ours": lambda: contestants.fast_model(stock),
        "ours_graphs": lambda: contestants.fast_model(stock),
        "hf_eager": lambda: contestants.hugging_face_model(stock, "eager"),
        "hf_sdpa": lambda: contestants.hugging_face_model(stock, "sdpa"),
    }
    calls = {}
    for name in impls or IMPLS:
        if name.startswith("hf_") and not contestants.installed("transformers"):
            contestants.require("transformers", named=impls is not None)
            continue
        if name == "ours_graphs" and device == "cpu":
            continue  # graphs are CUDA's
        model = makers[name]().to(device).train()
        if name == "ours_graphs":
            record_training(model)
        ours = name.startswith("ours")
        calls[name] = step(model, case == "train_bf16", size, batch, device, fused=ours)
    return calls


def step(
    model: Any, bf16: bool, size: int, batch: int, device: str, fused: bool
) -> Callable[[], Any]:
    """One optimizer step on the same random images and labels again and again."""
    import torch
    import torch.nn.functional as F

    from spark_seg.benchmark import contestants

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, size, size, generator=generator).to(device)
    labels = torch.randint(0, contestants.CLASSES, (batch, size, size), generator=generator)
    labels = labels.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=fused or None)
    run = contestants.logits_of(model)

    def once() -> None:
        with contestants.autocast(device, bf16):
            full = F.interpolate(run(x), size=(size, size), mode="bilinear", align_corners=False)
            loss = F.cross_entropy(full.float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return once
