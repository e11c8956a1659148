"""The optimizer's parameter groups and the learning rate schedule."""

import logging
import math
from collections.abc import Sequence
from typing import Any

from mmengine.logging import MMLogger, print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, PARAM_SCHEDULERS
from torch import nn

from spark_seg.errors import UserError


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Few parameter groups, no weight decay on anything with fewer than two dimensions, nothing frozen.

    mmengine's constructor makes one group for each parameter as soon as an option is given (317 groups for b2, each
    a flat buffer of its own under ZeRO) and misses `in_proj_bias`, which it does not know to be a bias. Here
    parameters with equal settings share a group. `paramwise_cfg` works as upstream.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        # without any option upstream skips `add_params`, and would decay and optimize everything
        super().__init__(optim_wrapper_cfg, paramwise_cfg or {"bypass_duplicate": False})

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = "", is_dcn_module: Any = None
    ) -> None:
        if prefix:  # mmengine recurses through this method: merge once, at the top
            super().add_params(params, module, prefix, is_dcn_module)
            return
        single: list[dict] = []
        logger = MMLogger.get_current_instance()
        level = logger.level
        logger.setLevel(logging.ERROR)  # upstream prints a line for each parameter
        try:
            super().add_params(single, module, prefix, is_dcn_module)
        finally:
            logger.setLevel(level)
        groups: dict[tuple, dict] = {}
        for group in single:
            (param,) = group.pop("params")
            if param.ndim < 2 and self.base_wd is not None:
                group["weight_decay"] = 0.0
            group.setdefault("lr", self.base_lr)
            if self.base_wd is not None:
                group.setdefault("weight_decay", self.base_wd)
            key = tuple(sorted(group.items()))
            groups.setdefault(key, {"params": [], **group})["params"].append(param)
        params.extend(groups.values())


@PARAM_SCHEDULERS.register_module()
class WarmupCosineLR(_ParamScheduler):
    """Linear warm-up, then half a cosine down to `min_lr` (Loshchilov & Hutter, 2017), step by step.

    At step t of T, with W warm-up steps and each group's own base value `lr`:
    `warmup_lr + (lr - warmup_lr) * t / W` for t < W, then
    `min_lr + (lr - min_lr) * (1 + cos(pi * (t - W) / (T - W))) / 2`. In a group whose base is a multiple of the
    optimizer's `lr`, both ends are scaled alike.

    Args:
        optimizer: What to schedule.
        end: Epochs of the training; the runner fills it in.
        epoch_length: Steps in an epoch; the runner fills it in.
        warmup_epochs: Epochs of warm-up; below 1 a fraction of all epochs. A warm-up of more than half the training
            is cut to half of it, with a warning.
        warmup_lr: Where the warm-up starts.
        min_lr: Where the cosine ends.
    """

    def __init__(
        self,
        optimizer: Any,
        end: int,
        epoch_length: int,
        warmup_epochs: float = 5,
        warmup_lr: float = 1e-7,
        min_lr: float = 1e-6,
        last_step: int = -1,
        verbose: bool = False,
    ) -> None:
        if warmup_epochs < 0:
            raise UserError(f"warmup_epochs must not be negative, not {warmup_epochs}")
        wanted = warmup_epochs * end if 0 < warmup_epochs < 1 else warmup_epochs
        if wanted > end / 2:
            print_log(
                f"warmup_epochs={warmup_epochs} is more than half of the {end} epochs: warming up for "
                f"{end / 2:g}",
                logger="current",
                level=logging.WARNING,
            )
            wanted = end / 2
        self.total = max(1, end * epoch_length)
        self.warmup = round(wanted * epoch_length)
        self.warmup_lr, self.min_lr = warmup_lr, min_lr
        settings = getattr(optimizer, "base_param_settings", None) or getattr(
            optimizer, "defaults", {}
        )
        self._reference = settings.get("lr")
        super().__init__(
            optimizer, "lr", begin=0, last_step=last_step, by_epoch=False, verbose=verbose
        )

    @classmethod
    def build_iter_from_epoch(
        cls, optimizer: Any, end: int, epoch_length: int, **kwargs: Any
    ) -> "WarmupCosineLR":
        """What mmengine calls for `convert_to_iter_based=True`, with the runner's epochs."""
        return cls(optimizer, end, epoch_length, **kwargs)

    def _get_value(self) -> Sequence[float]:
        reference = self._reference or max(self.base_values)
        step = self.last_step
        values = []
        for base in self.base_values:
            scale = base / reference if reference else 1.0
            low, start = self.min_lr * scale, self.warmup_lr * scale
            if step < self.warmup:
                values.append(start + (base - start) * step / self.warmup)
            else:
                done = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
                values.append(low + (base - low) * (1 + math.cos(math.pi * done)) / 2)
        return values
