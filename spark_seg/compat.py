"""Every shim over the frozen upstream libraries, in one place.

mmengine, mmcv and mmsegmentation are no longer released. What newer torch, DeepSpeed and setuptools broke is
mended here, guarded so that a library that does not need the shim is left alone. Each shim names its reason and a
link; `tests/test_compat.py` has a test for each that fails when the shim is no longer needed.
"""

import contextlib
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Collection, Iterator
from typing import Any

from spark_seg.errors import UserError


class _ExtStub(types.ModuleType):
    """Stands in for mmcv's compiled operators; any use of one says what to install."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: object, **__: object) -> None:
            raise RuntimeError(
                f"the compiled operator {name!r} of mmcv is not in mmcv-lite; SegFormer needs none of "
                "them: for models that do, install the full package mmcv"
            )

        return missing


def install_mmcv_ext_stub() -> bool:
    """Lets `mmseg` import with `mmcv-lite`.

    mmseg imports `mmcv.ops` unguarded (`san_head`, `point_sample` ...), which needs the compiled `mmcv._ext`;
    no wheels of it exist for today's torch (https://github.com/open-mmlab/mmcv/issues/3224). SegFormer calls
    none of these operators. A real `mmcv._ext` is left alone. The module's spec has no loader, so that
    `mmcv.utils.ext_loader`'s and `mmcv_full_available()`'s answer stays "not there".

    Returns:
        Whether the stub is in place.
    """
    present = sys.modules.get("mmcv._ext")
    if present is not None:
        return isinstance(present, _ExtStub)
    mmcv = importlib.util.find_spec("mmcv")
    if mmcv is None or mmcv.submodule_search_locations is None:
        return False
    if importlib.machinery.PathFinder.find_spec("mmcv._ext", mmcv.submodule_search_locations):
        return False
    stub = _ExtStub("mmcv._ext")
    stub.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
    sys.modules["mmcv._ext"] = stub
    return True


def register_deepspeed_optimizers() -> list[str]:
    """Registers DeepSpeed's optimizers with mmengine as far as the installed DeepSpeed has them, any number of times.

    mmengine's own function imports `deepspeed.runtime.fp16.onebit`, removed in DeepSpeed 0.19.7
    (https://github.com/deepspeedai/DeepSpeed/pull/8489), and raises KeyError when a second strategy is
    built in one process.
    """
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
    from deepspeed.ops.lamb import FusedLamb
    from mmengine.registry import OPTIMIZERS

    found = [DeepSpeedCPUAdam, FusedAdam, FusedLamb]
    if importlib.util.find_spec("deepspeed.runtime.fp16.onebit"):
        from deepspeed.runtime.fp16 import onebit

        found += [onebit.OnebitAdam, onebit.OnebitLamb, onebit.ZeroOneAdam]
    for optimizer in found:
        OPTIMIZERS.register_module(module=optimizer, force=True)
    return [optimizer.__name__ for optimizer in found]


def patch_deepspeed_strategy() -> None:
    """Makes `mmengine._strategy.deepspeed` use `register_deepspeed_optimizers` from here."""
    from mmengine._strategy import deepspeed as module

    module.register_deepspeed_optimizers = register_deepspeed_optimizers


def skip_deepspeed_cpu_build() -> None:
    """Keeps DeepSpeed from compiling its shared-memory collective on the CPU.

    `deepspeed.init_distributed` with gloo builds `deepspeed_shm_comm` with g++ (minutes, and an error where
    there is no compiler) for a faster all-reduce between the processes of one host. It is optional: marked
    incompatible, DeepSpeed goes through torch.distributed
    (https://github.com/deepspeedai/DeepSpeed/blob/v0.19.6/deepspeed/comm/torch.py, `build_shm_op`).
    """
    from deepspeed import ops

    ops.__compatible_ops__["deepspeed_shm_comm"] = False


def forget_deepspeed_autocast() -> None:
    """Lets a second training in one process have a precision of its own.

    DeepSpeed keeps autocast's dtype in two global variables that nothing resets: an fp32 training after an fp16 one
    would scale its losses
    (https://github.com/deepspeedai/DeepSpeed/blob/v0.19.6/deepspeed/runtime/torch_autocast.py, `TODO: Avoid using
    global variables`).
    """
    with contextlib.suppress(ImportError):
        from deepspeed.runtime import torch_autocast

        torch_autocast.TORCH_AUTOCAST_INITIALIZED = False
        torch_autocast.TORCH_AUTOCAST_DTYPE = None


def _argmax(pred: Any) -> Any:
    # On the CPU torch's argmax over a few strided channels took 7.5 ms of a training step of 130; the same classes
    # (the lowest of equals; NaN aside) by comparing maps take 1. pred [B, C, H, W] -> int64 [B, H, W].
    import torch

    if pred.device.type != "cpu" or pred.dim() != 4 or pred.size(1) > 8:
        return pred.argmax(1)
    best = pred[:, 0]
    found = torch.zeros_like(best, dtype=torch.long)
    for index in range(1, pred.size(1)):
        better = pred[:, index] > best
        best = torch.where(better, pred[:, index], best)
        found = found.masked_fill(better, index)
    return found


def patch_accuracy() -> bool:
    """Lets mmseg's decode heads count right pixels without waiting for the GPU.

    `BaseDecodeHead.loss_by_feat` logs `acc_seg`, whose stock function picks the valid pixels by boolean indexing: the
    GPU is waited for twice in every step
    (https://github.com/open-mmlab/mmsegmentation/blob/v1.2.2/mmseg/models/losses/accuracy.py). The same number follows
    from a mask.

    Returns:
        Whether ours is in place.
    """
    import torch
    from mmseg.models.decode_heads import decode_head
    from mmseg.models.losses import accuracy as stock

    def accuracy(
        pred: Any, target: Any, topk: Any = 1, thresh: Any = None, ignore_index: Any = None
    ) -> Any:
        if topk != 1 or thresh is not None or ignore_index is None or pred.size(0) == 0:
            return stock(pred, target, topk, thresh, ignore_index)
        valid = target != ignore_index
        right = (_argmax(pred) == target) & valid
        eps = torch.finfo(torch.float32).eps
        return (100.0 * (right.sum().float() + eps) / (valid.sum().float() + eps)).reshape(1)

    if getattr(decode_head, "accuracy", None) is stock:
        decode_head.accuracy = accuracy
    return decode_head.accuracy is not stock


def patch_checkpointing() -> bool:
    """Says how mmseg's MiT computes blocks again (`with_cp`): the re-entrant way, as it always did.

    It calls `torch.utils.checkpoint` without `use_reentrant`, which torch warns of in every training and means to
    refuse (https://docs.pytorch.org/docs/stable/checkpoint.html). The other way compares shapes with those of the
    first pass, which ZeRO-3 has emptied in between.

    Returns:
        Whether ours is in place.
    """
    import functools

    from mmseg.models.backbones import mit
    from torch.utils import checkpoint

    if getattr(mit, "cp", None) is checkpoint:
        explicit = functools.partial(checkpoint.checkpoint, use_reentrant=True)
        mit.cp = types.SimpleNamespace(checkpoint=explicit)
    return mit.cp is not checkpoint


@contextlib.contextmanager
def hidden(module: str) -> Iterator[None]:
    """Makes `import module` an ImportError inside the block, unless it is imported already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # Python's own way of saying "not to be found"
    try:
        yield
    finally:
        sys.modules.pop(module, None)


def import_mmengine_optim() -> None:
    """Imports `mmengine.optim`, which mmseg needs, without transformers: seconds for its Adafactor.

    mmengine goes on without by an `except ImportError` of its own; `optim_wrapper.optimizer.type="Adafactor"` is then
    unknown (https://github.com/open-mmlab/mmengine/blob/v0.10.7/mmengine/optim/optimizer/builder.py).
    """
    if "mmengine.optim.optimizer.builder" not in sys.modules:
        with hidden("transformers"):
            importlib.import_module("mmengine.optim")


_MUON = "deepspeed.runtime.zero.muon.muon_optimizer"


def import_deepspeed_muon() -> None:
    """Imports DeepSpeed's Muon without `torch.compile`, which would load all of Inductor: seconds.

    DeepSpeed's engine and ZeRO import it in every training, to ask whether the optimizer is one; it decorates a
    function with `torch.compile` as it is imported. That one runs uncompiled then, for whoever chooses that optimizer
    (https://github.com/deepspeedai/DeepSpeed/blob/v0.19.6/deepspeed/runtime/zero/muon/original_muon.py).
    """
    if _MUON in sys.modules:
        return
    import torch

    def as_it_is(function: Any = None, **_: Any) -> Any:
        return (lambda given: given) if function is None else function

    stock = torch.compile
    torch.compile = as_it_is  # type: ignore[assignment]
    try:
        with contextlib.suppress(ImportError):  # a DeepSpeed without
            importlib.import_module(_MUON)
    finally:
        torch.compile = stock


def install() -> None:
    """Installs what must be there before mmseg is imported. Cheap, and may be called any number of times."""
    install_mmcv_ext_stub()


@contextlib.contextmanager
def capture_in_this_thread() -> Iterator[None]:
    """Lets `torch.cuda.make_graphed_callables` record while other threads use the GPU: a loader's, which pins memory.

    `torch.cuda.graph` has an argument for that, `make_graphed_callables` does not hand it on, and one call of another
    thread ends its recording (https://docs.pytorch.org/docs/stable/generated/torch.cuda.graph.html).
    """
    import torch

    stock = torch.cuda.graph
    torch.cuda.graph = functools.partial(stock, capture_error_mode="thread_local")  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        torch.cuda.graph = stock  # type: ignore[misc]


@contextlib.contextmanager
def groups_replace_values(
    may: Callable[[str], bool], choices: Collection[str] = ()
) -> Iterator[None]:
    """Lets a config file's dict take the place of a base's value that is no dict, for files read inside the block.

    Only of those top-level values that are judged later, and of None anywhere: elsewhere a dict where a name or a
    number belongs stays mmengine's error. Of the top level's `choices` a dict of another `type` takes the place of a
    base's dict too: keys of one loss are none of another's.

    mmengine raises TypeError unless the dict says `_delete_=True`
    (https://github.com/open-mmlab/mmengine/blob/v0.10.7/mmengine/config/config.py, `_merge_a_into_b`), which is also
    what is put into it here. It protects structure that a value would not fit; our choices are a value or a dict. The
    method is called by its class' name and not through the object: no subclass can change it.

    Args:
        may: Whether a group may be tried in place of a top-level value of that name.
        choices: See above.

    Raises:
        UserError: The base's value is a `'$name'`, whose other keys would be lost.
    """
    from mmengine.config import Config

    stock = vars(Config).get("_merge_a_into_b")
    if stock is None:  # another mmengine
        yield
        return
    before = Config._merge_a_into_b
    depth = 0

    def marked(key: str, value: Any, base: Any, top: bool) -> Any:
        if not isinstance(value, dict) or "_delete_" in value:
            return value
        if isinstance(base, str) and base.startswith("$"):
            raise UserError(
                f"{key}={dict(value)!r} would replace {base!r} of the base: change {base[1:]} at the top level, or "
                "say that you mean it by _delete_=True in the group"
            )
        if isinstance(base, dict):
            replaces = top and key in choices and value.get("type") not in (None, base.get("type"))
        else:
            replaces = base is None or (top and may(key))
        return {**value, "_delete_": True} if replaces else value

    def merge(a: Any, b: Any, allow_list_keys: bool = False) -> Any:
        nonlocal depth
        if isinstance(b, dict) and not allow_list_keys:  # that is for overrides
            top = depth == 0
            a = {k: marked(k, value, b[k], top) if k in b else value for k, value in a.items()}
        depth += 1
        try:
            return before(a, b, allow_list_keys)
        finally:
            depth -= 1

    Config._merge_a_into_b = staticmethod(merge)
    try:
        yield
    finally:
        Config._merge_a_into_b = stock
