"""A training step: forward, cross-entropy at full size, backward, AdamW; ours against stock mmseg and Hugging Face.

They take turns; on the CPU each in a process of its own, with the allocator's settings as in `benchmark.model`. Ours
steps torch's fused AdamW, as a training without ZeRO's partition does, the others its default; `stock_fused` is stock
with the fused one. `ours_compiled` is ours with `compile=True`, built before it is timed. `ratio_to_stock` compares
with mmseg in the row's own precision.
"""

import argparse
from collections.abc import Callable
from typing import Any

PURPOSE = "a training step on images in memory, against stock mmseg and Hugging Face"
CASES = ("train_fp32", "train_bf16")
IMPLS = ("stock", "stock_kept", "ours", "ours_graphs", "hf_eager", "hf_sdpa")
NAMED = ("stock_fused", "ours_compiled")  # measured where they are named


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    from spark_seg.benchmark import contestants

    contestants.add_options(parser, CASES)
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[2], help="images in a step (default: 2)"
    )
    parser.add_argument(
        "--impls",
        nargs="+",
        help=f"of {' '.join((*IMPLS, *NAMED))} (default: what is installed of all but the last {len(NAMED)})",
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
    from spark_seg.benchmark.apart import Ways
    from spark_seg.benchmark.profile import show
    from spark_seg.datasets.memory import reuse_memory
    from spark_seg.models.summary import count_flops

    contestants.check_options(args, CASES, (*IMPLS, *NAMED))
    cuda = args.device != "cpu" and torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    apart = contestants.is_apart(args, device)
    if not apart:
        reuse_memory()
    torch.backends.cudnn.benchmark = cuda  # as the configs have it
    impls = contestants.compete(tuple(args.impls or IMPLS), args.impls is not None, apart, device)
    rows: list[dict[str, Any]] = []
    with (
        contestants.threads(args.threads),
        Ways(make, apart, contestants.FOREIGN, args.threads) as ways,
    ):
        for variant in args.variants:
            for size in args.sizes:
                flops = 3 * count_flops(contestants.stock_model(variant), size)
                for case in args.cases:
                    about = {"case": case, "variant": variant, "size": size}
                    races = contestants.races(args, ways, about, impls, "stock", device)
                    for batch, found in races:
                        rows += _rows({**about, "batch": batch}, found, flops, device)
                        if args.profile:
                            show({**about, "batch": batch}, found, make, device)
    return contestants.some(rows)


def _rows(
    about: dict[str, Any], found: dict[str, dict[str, float]], flops: int, device: str
) -> list[dict[str, Any]]:
    from spark_seg.benchmark.contestants import utilisation

    base, batch = found.get("stock"), about["batch"]
    return [
        {
            **about,
            "impl": impl,
            **stats,
            "images_per_s": 1e3 * batch / stats["median_ms"],
            "ratio_to_stock": base["median_ms"] / stats["median_ms"] if base else None,
            "memory_to_stock": stats["peak_mb"] / base["peak_mb"] if base else None,
            "mfu": utilisation(flops * batch, stats["median_ms"], device),
        }
        for impl, stats in found.items()
    ]


def make(
    impl: str, variant: str, case: str, size: int, batch: int, device: str
) -> Callable[[], Any]:
    """One way's step."""
    from spark_seg import register  # noqa: F401
    from spark_seg.benchmark import contestants
    from spark_seg.models.graphs import record_training

    model: Any = contestants.stock_model(variant)
    ours = impl.startswith("ours")
    if ours:
        model = contestants.fast_model(model, impl == "ours_compiled", training=True)
    elif impl.startswith("hf_"):
        model = contestants.hugging_face_model(model, impl.removeprefix("hf_"))
    model = model.to(device).train()
    if impl == "ours_graphs":
        record_training(model)
    return step(
        model, case == "train_bf16", size, batch, device, fused=ours or impl == "stock_fused"
    )


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
