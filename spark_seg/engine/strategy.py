"""Strategies for FlexibleRunner: DeepSpeed with or without a launcher, and plain PyTorch.

What stock `DeepSpeedStrategy` lacks and ours adds: it runs on the CPU and without a launcher; its micro batch follows
the loader; weights are loaded before DeepSpeed starts (afterwards ZeRO's fp32 copies would not see them), which also
makes an evaluation without optimizer possible; averaged weights (EMA) under every stage; steps that are not finite are
skipped; checkpoints fit any stage and number of processes and hold nothing that is unpickled.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine._strategy import DeepSpeedStrategy, SingleDeviceStrategy
from mmengine.registry import STRATEGIES
from torch import nn

from spark_seg import compat
from spark_seg.engine.checkpoints import load_safetensors, save_safetensors, with_norms
from spark_seg.engine.ema import ModelEma
from spark_seg.engine.folder import EMA_FILE, OPTIMIZER_FILE, WEIGHTS_FILE
from spark_seg.engine.launch import require_one_process, start_process_group
from spark_seg.engine.optim import take_up_schedules
from spark_seg.engine.provenance import plain
from spark_seg.engine.stepping import LossScale, StepGuard, mean_logs, pinned
from spark_seg.engine.training_state import (
    gather_optimizer_state,
    kind_of,
    restore_optimizer,
)
from spark_seg.errors import UserError
from spark_seg.models.compiling import is_compiled
from spark_seg.models.convert import norms_of


def resolve_precision(precision: str) -> str:
    """`auto` becomes `bf16` on a GPU that computes in it, `fp32` elsewhere; others stay."""
    if precision != "auto":
        return precision
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"


AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class _Common:
    """What both strategies share.

    Args:
        init_model: Called with the model after its own initialisation and before the strategy wraps it: loads
            weights, freezes. The engine does not care which.
        precision: `fp32`, or `bf16` or `fp16` for autocast with fp32 weights; `fp16` with dynamic loss scaling.
        ema_decay: Decay of the averaged weights; None for none.
        max_skipped: After so many steps in a row whose loss or gradient is not finite, training stops.
    """

    precision: str
    ema: ModelEma | None = None
    guard: StepGuard
    _init_model: Callable[[nn.Module], object] | None
    _loss_scale = 1.0
    zero_stage = 0

    def _set_common(
        self,
        init_model: Callable[[nn.Module], object] | None,
        precision: str,
        ema_decay: float | None,
        max_skipped: int,
    ) -> None:
        self._init_model, self.precision = init_model, precision
        self._ema_decay = ema_decay
        self.guard = StepGuard(max_skipped)
        if precision == "fp16":
            self.guard.scale = LossScale()

    def _init_model_weights(self, model: nn.Module) -> nn.Module:
        model = super()._init_model_weights(model)  # type: ignore[misc]
        if self._init_model is not None:
            self._init_model(model)
        # the loader pins its images: their copies to the GPU need not be waited for
        model.data_preprocessor._non_blocking = True  # type: ignore[union-attr]
        return model

    def _after_prepare(self) -> None:
        """Once the model is wrapped and there is an optimizer."""
        if hasattr(self, "optim_wrapper"):
            if isinstance(self.optim_wrapper.optimizer, torch.optim.Optimizer):
                self.guard.attach(self.optim_wrapper.optimizer)
            if self._ema_decay is not None:
                self.ema = ModelEma(
                    self.module, self._ema_decay, self.zero_stage, self._release_gathered()
                )
        else:
            self._freeze_weights()

    def _freeze_weights(self) -> None:
        # A prediction's weights stay as they are. What is not accelerated is left alone; fp16 is a GPU's autocast.
        from spark_seg.models.fast_inference import freeze_weights

        if is_compiled(self.module):
            return
        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        self.module.eval()
        freeze_weights(self.module, dtypes[self.precision])

    def _release_gathered(self) -> Callable[[], object] | None:
        """What lets go of gathered parameters; None where none are partitioned."""
        return None

    @property
    def module(self) -> nn.Module:
        """The bare model."""
        raise NotImplementedError

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which forwards of this run compute."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.autocast(device, dtype=AUTOCAST[self.precision])

    def train_step(self, micro_batches: Sequence[Any]) -> dict[str, torch.Tensor]:
        """One optimizer step over one or several micro batches; returns the mean of their log values."""
        scale = 1.0 if self.guard.scale is None else self.guard.scale.value
        self._scale_losses(scale)
        logs = mean_logs([self._micro_step(b, len(micro_batches)) for b in micro_batches])
        logs["grad_norm"] = self.guard.after_step(*self._finish_step())
        if self.ema is not None:
            self.ema.update(self.guard.applied)
        return logs

    def _scale_losses(self, scale: float) -> None:
        """Before a step: what its losses are multiplied by, and its gradients divided by again."""
        self._loss_scale, self.guard.unscale = scale, 1 / scale

    def _micro_step(self, data: Any, count: int) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def _finish_step(self) -> tuple[Any, bool]:
        """Steps the optimizer, where the micro steps have not; returns gradient norm and whether the step was made.

        Without a norm (None) it is the guard that knows both.
        """
        raise NotImplementedError

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        """All weights and buffers on the CPU, floating point ones in fp32. Every process must call it."""
        with gathered(self.module, self.zero_stage):
            return with_norms(_to_cpu(self.module.state_dict()), norms_of(self.module))

    def evaluated_state_dict(self) -> dict[str, torch.Tensor]:
        """The weights that validation scores: the averaged ones where there are any."""
        with self.evaluation_weights():
            return self.full_state_dict()

    def share_buffers(self) -> None:
        """Gives every process the first one's buffers (the norms' running statistics), as DDP does.

        On the CPU norms are not synchronised over processes while training: each sees its own share of the batch. What
        is saved and what is validated are the first process's statistics.
        """
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            for buffer in self.module.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def evaluation_weights(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which the model holds the weights that are evaluated."""
        return contextlib.nullcontext() if self.ema is None else self.ema.swapped_in()

    def schedule_state(self) -> list[dict[str, Any]]:
        """The learning rate schedules, in plain types."""
        if not hasattr(self, "param_schedulers"):
            return []
        states = plain(self.scheduler_state_dict())  # type: ignore[attr-defined]
        names = [type(schedule).__name__ for schedule in self.param_schedulers]
        return [state | {"type": name} for state, name in zip(states, names, strict=True)]

    def save_tensors(self, folder: str | Path) -> None:
        """Writes weights, EMA and optimizer into a folder. Every process must call it; the first one writes."""
        first = self.rank == 0  # type: ignore[attr-defined]
        folder = Path(folder)
        weights = self.full_state_dict()
        averaged = self.evaluated_state_dict() if self.ema is not None else None
        optimizer = gather_optimizer_state(self.optim_wrapper.optimizer, self.module, keep=first)  # type: ignore[attr-defined]
        if first:
            save_safetensors(weights, folder / WEIGHTS_FILE)
            save_safetensors(optimizer, folder / OPTIMIZER_FILE)
            if averaged is not None:
                save_safetensors(averaged, folder / EMA_FILE)

    def optimizer_kind(self) -> str:
        """Which optimizer's state this is, for `state.json`."""
        return kind_of(self.optim_wrapper.optimizer)  # type: ignore[attr-defined]

    def load_tensors(self, folder: str | Path, state: Mapping[str, Any], step: int) -> None:
        """Takes optimizer, EMA and schedules from a checkpoint folder; the weights were loaded before wrapping.

        Args:
            folder: A whole checkpoint.
            state: Its `state.json`.
            step: Optimizer steps that lie behind, counted as this run counts them.

        Raises:
            UserError: It is of another optimizer, or of other parameters, than the config's.
        """
        folder = Path(folder)
        optimizer = self.optim_wrapper.optimizer  # type: ignore[attr-defined]
        restore_optimizer(optimizer, self.module, folder, state.get("optimizer"))
        if self.ema is not None and (folder / EMA_FILE).is_file():
            self.ema.load(load_safetensors(folder / EMA_FILE), state["ema_steps"])
        if hasattr(self, "param_schedulers"):
            take_up_schedules(self.param_schedulers, list(state["schedules"]), step)
        self.guard.skipped = state.get("skipped", 0)
        if self.guard.scale is not None and state.get("loss_scale"):
            self.guard.scale.load(state["loss_scale"])


@STRATEGIES.register_module()
class SparkSingleDeviceStrategy(_Common, SingleDeviceStrategy):
    """One device, no DeepSpeed (`--strategy single`)."""

    def __init__(
        self,
        *,
        init_model: Callable[[nn.Module], object] | None = None,
        precision: str = "fp32",
        ema_decay: float | None = None,
        max_skipped: int = 10,
        clip_grad: float | None = None,
        **kwargs: Any,
    ) -> None:
        require_one_process()
        self._set_common(init_model, precision, ema_decay, max_skipped)
        self.guard.clip_grad = clip_grad
        super().__init__(**kwargs)

    def prepare(self, model: nn.Module | dict, **kwargs: Any) -> Any:
        prepared = super().prepare(model, **kwargs)
        self._after_prepare()
        return prepared

    @property
    def module(self) -> nn.Module:
        """The model itself."""
        return self.model

    def _micro_step(self, data: Any, count: int) -> dict[str, torch.Tensor]:
        model: Any = self.model
        data = model.data_preprocessor(pinned(data, model.data_preprocessor.device), True)
        with self.autocast():
            losses = model(**data, mode="loss")
        loss, logs = model.parse_losses(losses)
        loss = loss / count
        (loss if self._loss_scale == 1.0 else loss * self._loss_scale).backward()
        return logs

    def _finish_step(self) -> tuple[Any, bool]:
        self.optim_wrapper.step()
        self.optim_wrapper.zero_grad()
        return None, True


@STRATEGIES.register_module()
class SparkDeepSpeedStrategy(_Common, DeepSpeedStrategy):
    """DeepSpeed ZeRO 0 to 3, on GPU and on CPU, in one process without any launcher or in many."""

    def __init__(
        self,
        *,
        init_model: Callable[[nn.Module], object] | None = None,
        precision: str = "fp32",
        ema_decay: float | None = None,
        max_skipped: int = 10,
        **kwargs: Any,
    ) -> None:
        self._set_common(init_model, precision, ema_decay, max_skipped)
        compat.patch_deepspeed_strategy()
        super().__init__(**kwargs)
        # Plain types: what comes from an mmengine config is of types of its own.
        self.config: dict[str, Any] = plain(self.config)
        if self.zero_stage == 0:
            self.guard.clip_grad = self.config.pop("gradient_clipping", None)
        if self.config.get("gradient_clipping") is None:
            self.config["gradient_clipping"] = 0.0  # DeepSpeed 0.19 would clip at 1
        # ZeRO steps element by element: any of torch's optimizers will do, SGD too
        self.config.setdefault("zero_allow_untested_optimizer", True)
        if precision in AUTOCAST:
            # Weights and buffers stay fp32; DeepSpeed's own `bf16` section would cast the weights only, and
            # BatchNorm then meets mixed types (https://github.com/deepspeedai/DeepSpeed/pull/8066).
            dtype = str(AUTOCAST[precision]).removeprefix("torch.")
            self.config["torch_autocast"] = {"enabled": True, "dtype": dtype}
        if self.zero_stage == 3:
            # DeepSpeed would replace torch's linear by one that rounds otherwise, for the rest of the process.
            self.config["zero_optimization"].setdefault("memory_efficient_linear", False)
        if ema_decay is not None and self.zero_stage == 3:
            # Small parameters that stay gathered would keep their raw values when the averaged ones are swapped in.
            self.config["zero_optimization"].setdefault("stage3_param_persistence_threshold", 0)

    def _setup_env(self, **kwargs: Any) -> None:
        start_process_group()
        super()._setup_env(**kwargs)

    def prepare(self, model: nn.Module | dict, **kwargs: Any) -> Any:
        # Stock sets this only where the strategy's type is named exactly `DeepSpeedStrategy`.
        dispatch = kwargs.get("dispatch_kwargs") or {}
        self.config["train_micro_batch_size_per_gpu"] = dispatch.get(
            "train_micro_batch_size_per_gpu", 1
        )
        if kwargs.get("optim_wrapper") is None:
            # Stages 1 to 3 partition an optimizer; without one there is nothing to partition.
            self.config = {k: v for k, v in self.config.items() if k != "gradient_clipping"} | {
                "zero_optimization": {"stage": 0},
                "gradient_accumulation_steps": 1,
            }
        compat.forget_deepspeed_autocast()
        compat.import_deepspeed_muon()
        prepared = super().prepare(model, **kwargs)
        if self.zero_stage == 0 and torch.distributed.get_world_size() == 1:
            # DeepSpeed would copy all gradients into a bucket, reduce it over nobody and copy them back
            self.model.model.enable_backward_allreduce = False
        self._after_prepare()
        return prepared

    @property
    def module(self) -> nn.Module:
        """The bare model inside DeepSpeed's engine."""
        return self.model.model.module

    def _release_gathered(self) -> Callable[[], object] | None:
        return self.model.model.empty_partition_cache if self.zero_stage == 3 else None

    @property
    def zero_stage(self) -> int:  # type: ignore[override]
        """The ZeRO stage in force."""
        return int(self.config.get("zero_optimization", {}).get("stage", 0))

    def _micro_step(self, data: Any, count: int) -> dict[str, torch.Tensor]:
        if count != self.config["gradient_accumulation_steps"]:
            raise UserError(
                f"{count} micro batches a step, but DeepSpeed was set up for "
                f"{self.config['gradient_accumulation_steps']}"
            )
        engine = self.model.model
        module: Any = self.module
        data = module.data_preprocessor(pinned(data, module.data_preprocessor.device), True)
        losses = engine(**data, mode="loss")
        loss, logs = module.parse_losses(losses)
        if self.zero_stage == 0 and self._loss_scale != 1.0:
            loss = loss * self._loss_scale  # the other stages' optimizers do it
        engine.backward(loss)
        self.optim_wrapper.step()  # not the engine's: the schedules count this one's calls
        return logs

    def _scale_losses(self, scale: float) -> None:
        super()._scale_losses(scale)
        if self.guard.scale is None:
            return
        engine = self.model.model
        engine.torch_autocast_z0_gradscaler = None  # `LossScale` says why not DeepSpeed's own
        if self.zero_stage > 0:
            engine.optimizer.torch_autocast_gradscaler = None
            engine.optimizer.override_loss_scale(scale)

    def _finish_step(self) -> tuple[Any, bool]:
        engine = self.model.model
        if self.zero_stage == 0:
            return None, True
        return engine.get_global_grad_norm(), not engine.optimizer.overflow


@contextlib.contextmanager
def gathered(module: nn.Module, zero_stage: int) -> Iterator[None]:
    """The context in which a model's parameters are whole; does nothing below ZeRO stage 3."""
    if zero_stage < 3:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(module.parameters())):
        yield


def _to_cpu(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: (t.detach().float() if t.is_floating_point() else t.detach()).cpu().clone()
        for name, t in state.items()
    }
