"""Strategies for FlexibleRunner: DeepSpeed in one process without a launcher, and plain PyTorch.

What stock `DeepSpeedStrategy` lacks and ours adds: it runs on the CPU and without a launcher; its micro batch follows
the loader; weights are loaded before DeepSpeed starts (afterwards ZeRO's fp32 copies would not see them), which
also makes an evaluation without optimizer possible; a checkpoint is a folder that holds the full weights as
`weights.safetensors` beside DeepSpeed's own files and nothing that `torch.load(weights_only=True)` refuses.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine._strategy import DeepSpeedStrategy, SingleDeviceStrategy
from mmengine.registry import STRATEGIES
from torch import nn

from spark_seg import compat
from spark_seg.engine.checkpoints import WEIGHTS_FILE, save_safetensors
from spark_seg.engine.launch import start_process_group, this_process
from spark_seg.engine.provenance import plain
from spark_seg.errors import UserError

TRAINING_STATE_FILE = "training_state.pth"


def resolve_precision(precision: str) -> str:
    """`auto` becomes `bf16` on a GPU that computes in it, `fp32` elsewhere; others stay."""
    if precision != "auto":
        return precision
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"


class _Weights:
    """What both strategies share: initial weights, precision, and the full fp32 weights on demand.

    Args:
        init_model: Called with the model after its own initialisation and before the strategy wraps it: loads
            weights, freezes. The engine does not care which.
        precision: `fp32`, or `bf16` for autocast with fp32 weights.
    """

    precision: str
    _init_model: Callable[[nn.Module], object] | None

    def _init_model_weights(self, model: nn.Module) -> nn.Module:
        model = super()._init_model_weights(model)  # type: ignore[misc]
        if self._init_model is not None:
            self._init_model(model)
        return model

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which forwards of this run compute."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.autocast(device, dtype=torch.bfloat16)

    def plain_state(self, extra: dict[str, Any]) -> dict[str, Any]:
        """The training state beside the weights: schedules and what the runner adds."""
        state = copy.copy(extra)
        state["seed"] = self.seed  # type: ignore[attr-defined]
        if hasattr(self, "param_schedulers"):
            state["param_schedulers"] = self.scheduler_state_dict()  # type: ignore[attr-defined]
        return state


@STRATEGIES.register_module()
class SparkSingleDeviceStrategy(_Weights, SingleDeviceStrategy):
    """One device, no DeepSpeed (`--strategy single`)."""

    def __init__(
        self,
        *,
        init_model: Callable[[nn.Module], object] | None = None,
        precision: str = "fp32",
        **kwargs: Any,
    ) -> None:
        if (count := this_process().world_size) > 1:
            raise UserError(
                f"--strategy single runs in one process and {count} were started: leave it out for DeepSpeed, or "
                "start without torchrun and srun"
            )
        self._init_model, self.precision = init_model, precision
        super().__init__(**kwargs)

    @property
    def module(self) -> nn.Module:
        """The bare model."""
        return self.model

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        """All weights and buffers on the CPU, floating point ones in fp32."""
        return _to_cpu(self.model.state_dict())

    def save_folder(self, folder: str | Path, extra: dict[str, Any]) -> None:
        """Writes weights and training state into an existing folder."""
        save_safetensors(self.full_state_dict(), Path(folder) / WEIGHTS_FILE)
        state = self.plain_state(extra)
        state["optimizer"] = self.optim_wrapper.optimizer.state_dict()
        torch.save(state, Path(folder) / TRAINING_STATE_FILE)


@STRATEGIES.register_module()
class SparkDeepSpeedStrategy(_Weights, DeepSpeedStrategy):
    """DeepSpeed ZeRO 0 to 3, on GPU and on CPU, in one process without any launcher."""

    def __init__(
        self,
        *,
        init_model: Callable[[nn.Module], object] | None = None,
        precision: str = "fp32",
        **kwargs: Any,
    ) -> None:
        self._init_model, self.precision = init_model, precision
        compat.patch_deepspeed_strategy()
        super().__init__(**kwargs)
        # Plain types: DeepSpeed pickles its config into every checkpoint, and mmengine's would not pass weights_only.
        self.config: dict[str, Any] = plain(self.config)
        if precision == "bf16":
            # Weights and buffers stay fp32; DeepSpeed's own `bf16` section would cast the weights only, and
            # BatchNorm then meets mixed types (https://github.com/deepspeedai/DeepSpeed/pull/8066).
            self.config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}

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
            self.config = {
                key: value for key, value in self.config.items() if key != "gradient_clipping"
            } | {"zero_optimization": {"stage": 0}}
        return super().prepare(model, **kwargs)

    @property
    def module(self) -> nn.Module:
        """The bare model inside DeepSpeed's engine."""
        return self.model.model.module

    @property
    def zero_stage(self) -> int:
        """The ZeRO stage in force."""
        return int(self.config.get("zero_optimization", {}).get("stage", 0))

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        """All weights and buffers on the CPU, floating point ones in fp32; gathered first under stage 3."""
        with self._gathered():
            return _to_cpu(self.module.state_dict())

    @contextlib.contextmanager
    def _gathered(self) -> Iterator[None]:
        if self.zero_stage < 3:
            yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self.module.parameters())):
            yield

    def save_folder(self, folder: str | Path, extra: dict[str, Any]) -> None:
        """Writes the full weights and DeepSpeed's own files into an existing folder."""
        folder = Path(folder)
        save_safetensors(self.full_state_dict(), folder / WEIGHTS_FILE)
        state = self.plain_state(extra)
        state["optim_wrapper"] = self.optim_state_dict()
        self.model.save_checkpoint(
            str(folder.parent), tag=folder.name, client_state=state, save_latest=False
        )
        for script in (
            "zero_to_fp32.py",
            "zero_to_torch.py",
        ):  # DeepSpeed's converters: weights are there already
            (folder.parent / script).unlink(missing_ok=True)


def _to_cpu(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: (t.detach().float() if t.is_floating_point() else t.detach()).cpu().clone()
        for name, t in state.items()
    }
