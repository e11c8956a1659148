"""torch.compile by config: region by region, for fixed shapes.

Each transformer block, and the head's fusion, is a graph of its own: blocks of a stage share their code and their
shapes, so that Inductor compiles a handful of graphs and not one that grows with the variant. Inductor's cache on disk
serves the next start. Weights, names and state-dict keys stay as they are.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from spark_seg.errors import UserError, nearest

OPTIONS = ("backend", "mode", "fullgraph", "options")
# All blocks are one code to torch, which counts their graphs together and leaves blocks uncompiled beyond its limit. At
# most each block has its own (without `accelerate`): for training, for validation, and again for smaller last batches.
_TIMES = 4


def compile_options(value: Any) -> dict[str, Any] | None:
    """The config's `compile` as arguments of `torch.compile`, or None for off.

    Args:
        value: False, True, or a group of `OPTIONS`.

    Raises:
        UserError: Another key or type.
    """
    if value is None or value is False:
        return None
    if value is True:
        return {"dynamic": False}
    if not isinstance(value, Mapping):
        raise UserError(
            f"compile={value!r}: False, True, or a group such as dict(mode='max-autotune')"
        )
    for key in value:
        if key not in OPTIONS:
            raise UserError(f"compile has no key {key!r}{nearest(key, OPTIONS)}")
    return {"dynamic": False, **value}


def require_compilable(cfg: Any, stage: int, training: bool) -> None:
    """Refuses what cannot be compiled, with the reason.

    Args:
        cfg: A loaded config.
        stage: The ZeRO stage in force, 0 without DeepSpeed.
        training: Whether the model would be trained.

    Raises:
        UserError: One line that says what to change.
    """
    if compile_options(cfg.get("compile")) is None:
        return
    if not training:
        return
    if stage == 3:
        raise UserError(
            "compile with zero_stage=3: weights are gathered by hooks in the middle of each graph, which break it up; "
            "use zero_stage 0 to 2, or compile=False"
        )
    if cfg.get("activation_checkpointing"):
        raise UserError(
            "compile with activation_checkpointing: mmseg's checkpoints cannot be traced; turn one of them off"
        )
    if cfg.get("multi_scale"):
        raise UserError(
            "compile with multi_scale: every size would be compiled anew, minutes each; turn one of them off"
        )


def compile_regions(model: nn.Module, value: Any, training: bool) -> str | None:
    """Compiles the blocks of a segmentor and its head's fusion, in place; they are built at their first call.

    Args:
        model: On any device, before it is wrapped.
        value: The config's `compile`.
        training: Whether the model will be trained.

    Returns:
        A line for the log, or None where compilation is off.
    """
    options = compile_options(value)
    if options is None:
        return None
    from mmcv.cnn.bricks.drop import DropPath
    from mmseg.models.backbones.mit import TransformerEncoderLayer
    from mmseg.models.decode_heads import SegformerHead

    from spark_seg.models.fast_segformer import TensorDropPath

    count = 0
    for module in list(model.modules()):
        if training and type(module) is DropPath and module.drop_prob:
            TensorDropPath.convert(module)
        if isinstance(module, TransformerEncoderLayer):
            module.compile(**options)
            count += 1
        elif isinstance(module, SegformerHead):
            module.fusion_conv.compile(
                **options
            )  # the head itself is entered by `loss` and `predict`
            count += 1
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, _TIMES * count)
    dynamo.accumulated_recompile_limit = max(
        dynamo.accumulated_recompile_limit, 2 * dynamo.recompile_limit
    )
    text = f"compile: {count} regions are built at the first steps"
    if training and not torch.cuda.is_available():
        text += "; on a CPU Inductor makes training slower than the accelerated model: compile=False is faster here"
    return text


def is_compiled(model: nn.Module) -> bool:
    """Whether `compile_regions` has compiled this model."""
    return any(getattr(m, "_compiled_call_impl", None) is not None for m in model.modules())
