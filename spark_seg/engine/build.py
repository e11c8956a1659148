"""From a loaded config to a runner for training or for prediction."""

import copy
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mmengine.evaluator import Evaluator
from mmengine.logging import print_log
from torch import nn

from spark_seg.engine.checkpoints import apply_state_dict, load_safetensors
from spark_seg.engine.combinations import ELEMENTWISE, require_possible, zero_stage
from spark_seg.engine.folder import WEIGHTS_FILE
from spark_seg.engine.launch import this_process
from spark_seg.engine.runner import SparkRunner
from spark_seg.engine.strategy import resolve_precision
from spark_seg.errors import UserError
from spark_seg.models.compiling import compile_regions, require_compilable
from spark_seg.models.freeze import freeze_backbone
from spark_seg.models.pretrained import load_pretrained
from spark_seg.models.tta import make_tta
from spark_seg.recipe import from_data

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.evaluator import BaseMetric

STRATEGIES = ("deepspeed", "single")


def training_runner(
    cfg: "Config", strategy: str = "deepspeed", resume: Path | None = None
) -> SparkRunner:
    """A runner whose `train()` trains what the config says.

    Args:
        cfg: As from `spark_seg.config.load_config`, with `work_dir` set.
        strategy: `deepspeed`, or `single` for plain PyTorch on one device.
        resume: A whole checkpoint folder to go on from; None to begin.
    """
    world_size = this_process().world_size
    require_possible(cfg, strategy, world_size, torch.cuda.is_available())
    stage = zero_stage(cfg, world_size) if strategy == "deepspeed" else 0
    require_compilable(cfg, stage, True)
    cfg = copy.deepcopy(cfg)
    cfg.pop("test_dataloader", None)
    from_data(cfg)
    init = partial(
        _init_for_training,
        pretrained=cfg.get("pretrained"),
        variant=cfg.get("variant"),
        freeze=cfg.get("freeze_backbone", False),
        fast=cfg.get("accelerate", True),
        compiled=cfg.get("compile", False),
        graphs=bool(cfg.get("cuda_graphs", False)),
        resume=resume,
    )
    _set_strategy(cfg, strategy, init)
    runner = _build(cfg)
    runner.resume_from = resume
    return runner


def prediction_runner(
    cfg: "Config",
    weights: "dict[str, torch.Tensor]",
    source: str | Path,
    dataloader: dict,
    metric: "BaseMetric",
    strategy: str = "deepspeed",
    test_cfg: dict | None = None,
) -> SparkRunner:
    """A runner whose `test()` predicts with given weights: DeepSpeed at stage 0 without an optimizer, or `single`.

    Args:
        cfg: As from `load_config`.
        weights: A state dict, loaded before DeepSpeed starts.
        source: Where the weights come from, for messages.
        dataloader: The loader's config.
        metric: What receives the predictions.
        strategy: `deepspeed` or `single`.
        test_cfg: Another loop than `SparkTestLoop`.
    """
    cfg = copy.deepcopy(cfg)
    for key in ("train_dataloader", "optim_wrapper", "param_scheduler", "train_cfg"):
        cfg.pop(key, None)
    for key in ("val_dataloader", "val_evaluator", "val_cfg"):
        cfg.pop(key, None)
    cfg.test_dataloader = dataloader
    cfg.test_cfg = test_cfg or dict(type="SparkTestLoop")
    hooks = ("timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")
    cfg.default_hooks = dict.fromkeys(hooks)
    cfg.custom_hooks = [dict(type="ProgressHook")]
    # mmengine wants a folder for logs and config; a prediction's results go elsewhere, and its log is the terminal.
    scratch = tempfile.TemporaryDirectory(prefix="spark_seg_")
    cfg.work_dir, cfg.log_level = scratch.name, "WARNING"
    fast = cfg.get("accelerate", True)
    init = partial(
        _init_for_prediction,
        weights=weights,
        source=source,
        fast=fast,
        compiled=cfg.get("compile", False),
    )
    _set_strategy(cfg, strategy, init)
    runner = _build(cfg, test_evaluator=Evaluator([metric]))
    runner.scratch = scratch  # removed with the runner
    runner.tta = make_tta(cfg.get("tta"))
    return runner


def _init_for_training(
    model: nn.Module,
    pretrained: str | None,
    variant: str,
    freeze: bool,
    fast: bool,
    compiled: Any,
    graphs: bool,
    resume: Path | None,
) -> None:
    if resume is not None:
        apply_state_dict(model, load_safetensors(resume / WEIGHTS_FILE), resume)
    else:
        load_pretrained(model, pretrained, variant)
    if freeze:
        freeze_backbone(model)
    if fast:
        _accelerate(model)
    told = synchronise_norms(model, this_process().world_size, torch.cuda.is_available())
    if told:
        print_log(told, logger="current")
    _compile(model, compiled, training=True)
    if graphs:
        from spark_seg.models.graphs import record_training

        record_training(model)


def synchronise_norms(model: nn.Module, world_size: int, cuda: bool) -> str | None:
    """Lets BatchNorm see the batch of all processes: on GPUs. Elsewhere each sees its own share, which is told.

    Parameters, buffers and state-dict keys stay as they are.

    Returns:
        What the reader of the log should know, or None.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    if world_size == 1 or not norms:
        return None
    if cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return f"{len(norms)} batch norm(s) synchronised over {world_size} processes"
    return (
        f"{len(norms)} batch norm(s) not synchronised: torch's SyncBatchNorm is for GPUs; each of the {world_size} "
        "processes sees its own share of the batch, and the first one's statistics are kept"
    )


def _init_for_prediction(
    model: nn.Module,
    weights: "dict[str, torch.Tensor]",
    source: str | Path,
    fast: bool,
    compiled: Any,
) -> None:
    apply_state_dict(model, state=weights, path=source)
    if fast:
        _accelerate(model)
    _compile(model, compiled, training=False)


def _compile(model: nn.Module, value: Any, training: bool) -> None:
    told = compile_regions(model, value, training)
    if told:
        print_log(told, logger="current")


def _accelerate(model: nn.Module) -> None:
    from spark_seg.models.fast_segformer import accelerate  # imports mmseg, which needs our shims

    accelerate(model)


def _set_strategy(cfg: "Config", strategy: str, init: Any) -> None:
    precision = resolve_precision(cfg.get("precision", "auto"))
    tf32 = cfg.get("allow_tf32")
    if tf32 is not None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    if tf32 and not torch.cuda.is_available() and this_process().is_main:
        # a training is refused; a run from a GPU may be evaluated here
        print("warning: allow_tf32=True changes nothing without a GPU", file=sys.stderr)
    if precision == "fp16" and not cfg.get("optim_wrapper") and not torch.cuda.is_available():
        precision = "fp32"  # trained on a GPU, evaluated on a CPU
    given = {
        "precision": precision,
        "init_model": init,
    }
    if strategy == "deepspeed":
        cfg.strategy.update(given)
        zero = cfg.strategy.get("zero_optimization") or {}
        stage = zero_stage(cfg, this_process().world_size)
        cfg.strategy.zero_optimization = {**zero, "stage": stage}
        if cfg.get("optim_wrapper"):
            _fit_optimizer(cfg)
        if not cfg.get("optim_wrapper"):
            cfg.strategy.ema_decay = None
        return
    if strategy != "single":
        raise UserError(f"no strategy {strategy!r}: there are {', '.join(STRATEGIES)}")
    kept = {key: cfg.strategy[key] for key in ("ema_decay", "max_skipped") if key in cfg.strategy}
    cfg.strategy = {
        "type": "SparkSingleDeviceStrategy",
        "clip_grad": cfg.get("clip_grad"),
        **kept,
        **given,
    }
    if cfg.get("optim_wrapper"):
        cfg.optim_wrapper.type = "OptimWrapper"
        _fuse(cfg)
    else:
        cfg.strategy["ema_decay"] = None


def _fit_optimizer(cfg: "Config") -> None:
    """What the ZeRO stage and offloading ask of the optimizer."""
    zero = cfg.strategy.zero_optimization
    if zero.stage == 0:
        _fuse(cfg)
        return
    optimizer = cfg.optim_wrapper.optimizer
    if optimizer.type in ELEMENTWISE:
        cfg.strategy.setdefault("config", {})  # returns what it was given, and keeps a copy
        cfg.strategy.config.setdefault("zero_allow_untested_optimizer", True)
    offload = cfg.get("offload")
    if offload is None:
        return
    place = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    zero["offload_optimizer"] = dict(place)
    if offload == "optimizer+parameters":
        zero["offload_param"] = dict(place)
    if optimizer.type in ("Adam", "AdamW"):
        optimizer.adamw_mode = optimizer.type == "AdamW"
        optimizer.type = "DeepSpeedCPUAdam"
        for key in ("fused", "foreach", "capturable", "maximize", "amsgrad"):
            optimizer.pop(key, None)


def _fuse(cfg: "Config") -> None:
    """torch's fused Adam and AdamW leave out a step on the device (`spark_seg.engine.stepping`)."""
    optimizer = cfg.get("optim_wrapper") and cfg.optim_wrapper.optimizer
    if optimizer and optimizer.type in ("Adam", "AdamW") and not optimizer.get("foreach"):
        optimizer.setdefault("fused", True)


def _build(cfg: "Config", **objects: Any) -> SparkRunner:
    from spark_seg.datasets.memory import reuse_memory

    reuse_memory()  # every step makes the same large tensors anew
    # The function in it can neither be printed nor saved: kept out of the config that the runner records.
    strategy = dict(cfg.pop("strategy"))
    strategy["_scope_"] = (
        "mmengine"  # mmseg has no registry of strategies, and mmengine warns of it
    )
    recorded = copy.deepcopy(cfg)
    recorded.strategy = {k: v for k, v in strategy.items() if k not in ("init_model", "_scope_")}
    names = [
        "work_dir",
        "experiment_name",
        "train_dataloader",
        "optim_wrapper",
        "param_scheduler",
        "train_cfg",
        "val_dataloader",
        "val_evaluator",
        "val_cfg",
        "test_dataloader",
        "test_cfg",
        "default_hooks",
        "custom_hooks",
        "env_cfg",
        "log_processor",
        "log_level",
        "visualizer",
        "default_scope",
        "randomness",
    ]
    given = {name: cfg[name] for name in names if cfg.get(name) is not None} | objects
    return SparkRunner(cfg["model"], strategy=strategy, launcher="none", cfg=recorded, **given)
