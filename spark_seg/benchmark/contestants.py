"""Who competes in `benchmark.py model` and `train`: SegFormer as others and we build it, of the same widths."""

import argparse
import contextlib
import copy
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from spark_seg.errors import UserError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from spark_seg.benchmark.apart import Ways

VARIANTS = ("b0", "b1", "b2", "b3", "b4", "b5")
CLASSES = 3
# Their users' processes have the allocator's settings as they come; `stock_kept` is stock with ours.
FOREIGN = ("stock", "hf_eager", "hf_sdpa")
# Dense bf16 FLOP/s without sparsity, from the vendors' data sheets.
_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}


def add_options(
    parser: argparse.ArgumentParser, cases: tuple[str, ...], more: tuple[str, ...] = ()
) -> None:
    """What `model` and `train` share; `more` are cases that are measured where they are named."""
    add = parser.add_argument
    add("--variants", nargs="+", default=["b0", "b2"], help="b0 to b5 (default: b0 b2)")
    add("--sizes", nargs="+", type=int, default=[512], help="of the image (default: 512)")
    add(
        "--cases",
        nargs="+",
        default=list(cases),
        help=f"of {' '.join((*cases, *more))} (default: {' '.join(cases)})",
    )
    add("--repeat", type=int, default=7, help="rounds (default: 7)")
    add("--threads", type=int, help="of the CPU (default: torch's)")
    add("--profile", action="store_true", help="also print where each way's time goes")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    add(
        "--together",
        action="store_true",
        help="all ways in one process, the allocator set as ours has it (default: on the CPU each in its own)",
    )


def check_options(args: argparse.Namespace, cases: tuple[str, ...], impls: tuple[str, ...]) -> None:
    """Raises a UserError for values that make no sense, with the nearest name."""
    for option, given, known in (
        ("--variants", args.variants, VARIANTS),
        ("--cases", args.cases, cases),
        ("--impls", args.impls or (), impls),
    ):
        for name in given:
            if name not in known:
                raise UserError(f"{option} {name}: no such name{nearest(name, known)}")
    import torch

    if min(args.sizes) < 32 or any(size % 32 for size in args.sizes):
        raise UserError("--sizes wants multiples of 32")
    if args.repeat < 1 or min(args.batches) < 1 or (args.threads or 1) < 1:
        raise UserError("--repeat, --batches and --threads want 1 or more")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU; leave --device out")


def stock_model(variant: str) -> "nn.Module":
    """mmseg's segmentor with random weights, as the configs describe it."""
    import torch
    from mmengine.registry import DefaultScope

    import spark_seg.register  # noqa: F401
    from spark_seg.config import load_config

    from mmseg.registry import MODELS  # isort: skip  # after the shims

    cfg = load_config(f"segformer_{variant}_spark.py", {"pretrained": None}, [])
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmseg"):
        return MODELS.build(cfg.model)


def fast_model(stock: "nn.Module", compiled: bool = False, training: bool = False) -> "nn.Module":
    """Ours, of the same weights; `compiled` as by the config's `compile`."""
    from spark_seg.models.compiling import compile_regions
    from spark_seg.models.fast_segformer import accelerate

    model = copy.deepcopy(stock)
    accelerate(model)
    compile_regions(model, compiled, training)
    return model


def hugging_face_model(stock: Any, attention: str) -> "nn.Module":
    """transformers' SegFormer of a stock model's widths, with random weights."""
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    backbone = stock.backbone
    build: Any = SegformerConfig
    config = build(
        num_labels=CLASSES,
        depths=list(backbone.num_layers),
        hidden_sizes=[backbone.embed_dims * heads for heads in backbone.num_heads],
        num_attention_heads=list(backbone.num_heads),
        sr_ratios=list(backbone.sr_ratios),
        mlp_ratios=[4, 4, 4, 4],
        decoder_hidden_size=stock.decode_head.channels,
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    return SegformerForSemanticSegmentation(config)


def installed(name: str) -> bool:
    """Whether an optional package is there."""
    return importlib.util.find_spec(name) is not None


def logits_of(model: "nn.Module") -> "Callable[[Tensor], Tensor]":
    """A model's forward from normalised images [B, 3, H, W] to logits [B, classes, H / 4, W / 4]."""
    if type(model).__module__.startswith("transformers."):
        return lambda x: model(x).logits
    return model


def autocast(device: str, bf16: bool) -> contextlib.AbstractContextManager[Any]:
    """bf16 as a training or prediction of ours would compute in it; else nothing."""
    import torch

    return torch.autocast(device, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()


def utilisation(flops: float, milliseconds: float, device: str) -> float | None:
    """Share of a GPU's peak that `flops` in a time are, where its peak is known."""
    if device != "cuda":
        return None
    import torch

    name = torch.cuda.get_device_name()
    peaks = [peak for key, peak in _PEAKS.items() if key in name]
    return flops / (milliseconds / 1e3) / peaks[0] if peaks else None


@contextlib.contextmanager
def threads(count: int | None) -> Any:
    """torch on so many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compete(impls: tuple[str, ...], named: bool, apart: bool, device: str) -> list[str]:
    """Those of `impls` that can run here: all that were named, or an error; of all there are, what is installed.

    Raises:
        UserError: One cannot run that was asked for by name; with what to do.
    """
    found = []
    for impl in impls:
        package = "transformers" if impl.startswith("hf_") else impl.split("_")[0]
        ours = impl.startswith(("stock", "ours"))
        why = None
        if not ours and not installed(package):
            why = f"{package} is not installed: pip install {package}"
        elif impl == "stock_kept" and not apart:
            why = "--impls stock_kept: in one process it is stock; only on the CPU, without --together"
        elif impl == "ours_graphs" and device == "cpu":
            why = "--impls ours_graphs: CUDA graphs need a GPU"
        elif impl.startswith(("onnxruntime", "openvino")) and device != "cpu":
            why = f"--impls {impl}: measured on the CPU only, add --device cpu"
        if why and named:
            raise UserError(why)
        if not why:
            found.append(impl)
    return found


def is_apart(args: argparse.Namespace, device: str) -> bool:
    """Whether each way has a process of its own.

    Raises:
        UserError: `--together` on a GPU, where there is nothing else.
    """
    if args.together and device != "cpu":
        raise UserError("--together is for the CPU; on a GPU all ways run in one process anyway")
    return device == "cpu" and not args.together


def sweep(
    batches: Iterable[int],
    ways: Sequence[str],
    base: str,
    measure: Callable[[Sequence[str], int], dict[str, dict[str, float]]],
) -> Iterator[tuple[int, dict[str, dict[str, float]]]]:
    """Races at every size of batch, the smallest first.

    A way that runs out of memory is tried again with half the batch, and so on, beside whom it is compared with, until
    it fits or a size is reached that it was measured at before; larger batches go on without it.

    Args:
        batches: Images at a time.
        ways: Who competes.
        base: Whom the others are compared with.
        measure: `measure(ways, batch)` races them; returns those that fit, as `timing.race`.

    Yields:
        `(batch, what measure returned)`.
    """
    racing, before = list(ways), 0
    for batch in sorted(set(batches)):
        size, trying = batch, list(racing)
        while trying and size > before:
            found = measure(trying, size)
            yield size, found
            lost = [way for way in trying if way not in found]
            racing = [way for way in racing if way not in lost]
            trying, size = lost, size // 2
            if lost and size > before and base not in lost and base in found:
                trying = [base, *lost]
        before = batch


def races(
    args: argparse.Namespace,
    ways: "Ways",
    about: Mapping[str, Any],
    names: Sequence[str],
    base: str,
    device: str,
) -> Iterator[tuple[int, dict[str, dict[str, float]]]]:
    """`sweep` over `args.batches` of one `variant`, `case` and `size`, by `timing.race`."""
    from spark_seg.benchmark.timing import race

    def measure(names: Sequence[str], batch: int) -> dict[str, dict[str, float]]:
        calls = ways.calls(names, about["variant"], about["case"], about["size"], batch, device)
        return race(calls, args.repeat, cuda=device == "cuda")

    return sweep(args.batches, names, base, measure)


def some(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows.

    Raises:
        UserError: There are none.
    """
    if not rows:
        raise UserError("nothing was measured: no way of --impls runs in --cases, or memory lacks")
    return rows
