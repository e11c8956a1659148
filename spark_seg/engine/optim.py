"""The optimizer's parameter groups and the learning rate schedule."""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import numpy as np
from mmengine.logging import MMLogger, print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, PARAM_SCHEDULERS
from torch import nn

from spark_seg.errors import UserError, nearest


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Few parameter groups, no weight decay on anything with fewer than two dimensions, nothing frozen.

    mmengine's constructor makes one group for each parameter as soon as an option is given (317 groups for b2, each
    a flat buffer of its own under ZeRO) and misses `in_proj_bias`, which it does not know to be a bias. Here
    parameters with equal settings share a group. `paramwise_cfg` works as upstream, with two keys more:

    `layer_decay` (0 to 1): the learning rate falls by this factor from block to block going down from the head (Clark
    et al. 2020, arXiv:2003.10555; as BEiT numbers its layers). Of n blocks the k-th from below has
    `layer_decay ** (n - k)`, k from 0; a stage's patch embedding goes with its first block, its last norm with its
    last, the head has 1.

    `head_lr` (above 0): factor of the decode head's rate.

    Raises:
        UserError: An unknown key, or a value out of range.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        paramwise_cfg = dict(paramwise_cfg or {})
        for key in paramwise_cfg:
            if key not in _PARAMWISE:
                raise UserError(f"paramwise_cfg takes no {key!r}{nearest(key, _PARAMWISE)}")
        self.layer_decay = paramwise_cfg.pop("layer_decay", None)
        self.head_lr = paramwise_cfg.pop("head_lr", None)
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise UserError(f"layer_decay={self.layer_decay} must lie above 0 and up to 1")
        if self.head_lr is not None and not 0 < self.head_lr < float("inf"):
            raise UserError(f"head_lr={self.head_lr} must be above 0")
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
        factors = self._factors(module)
        groups: dict[tuple, dict] = {}
        for group in single:
            (param,) = group.pop("params")
            if param.ndim < 2 and self.base_wd is not None:
                group["weight_decay"] = 0.0
            rate = group.get("lr", self.base_lr)
            if rate is not None:  # else the optimizer's own
                group["lr"] = rate * factors.get(id(param), 1.0)
            if self.base_wd is not None:
                group.setdefault("weight_decay", self.base_wd)
            key = tuple(sorted(group.items()))
            groups.setdefault(key, {"params": [], **group})["params"].append(param)
        params.extend(groups.values())

    def _factors(self, module: nn.Module) -> dict[int, float]:
        """What the learning rate is multiplied by, by the parameter's `id`; those with 1 may be left out."""
        names = {name: id(p) for name, p in module.named_parameters()}
        factors = dict.fromkeys(names.values(), 1.0)
        if self.layer_decay is not None:
            places = layer_places(names)
            if not places:
                raise UserError(
                    "layer_decay: the model has no backbone of MixVisionTransformer's layers"
                )
            count = 1 + max(places.values())
            for name, place in places.items():
                factors[names[name]] *= self.layer_decay ** (count - place)
        if self.head_lr is not None:
            for name, key in names.items():
                if name.startswith("decode_head."):
                    factors[key] *= self.head_lr
        return factors


_PARAMWISE = frozenset(
    [
        "layer_decay",
        "head_lr",
        "custom_keys",
        "bias_lr_mult",
        "bias_decay_mult",
        "norm_decay_mult",
        "flat_decay_mult",
        "dwconv_decay_mult",
        "dcn_offset_lr_mult",
        "bypass_duplicate",
    ]
)


def layer_places(names: Sequence[str] | Mapping[str, Any]) -> dict[str, int]:
    """Which block each of a backbone's parameters belongs to, counted from 0 over all stages.

    Args:
        names: Parameters of mmseg's segmentor with `MixVisionTransformer`; others are left out of the result.
    """
    blocks: dict[int, int] = {}
    found = {
        name: re.match(r"backbone\.layers\.(\d+)\.([012])\.(?:(\d+)\.)?", name) for name in names
    }
    parts = {name: match for name, match in found.items() if match}
    for match in parts.values():
        if match[2] == "1" and match[3] is not None:
            stage = int(match[1])
            blocks[stage] = max(blocks.get(stage, 0), int(match[3]) + 1)
    places = {}
    for name, match in parts.items():
        stage = int(match[1])
        inside = {"0": 0, "1": int(match[3] or 0), "2": blocks.get(stage, 1) - 1}[match[2]]
        places[name] = sum(count for s, count in blocks.items() if s < stage) + inside
    return places


class WarmupLR(_ParamScheduler):
    """Linear warm-up, then what a subclass says, step by step.

    At step t of T, with W warm-up steps and each group's own base value `lr`:
    `warmup_lr + (lr - warmup_lr) * t / W` for t < W, then `after_warmup` with `done = (t - W) / (T - W)`. In a group
    whose base is a multiple of the optimizer's `lr`, `warmup_lr` and `min_lr` are scaled alike.

    Args:
        optimizer: What to schedule.
        end: Epochs of the training; the runner fills it in.
        epoch_length: Steps in an epoch; the runner fills it in.
        warmup_epochs: Epochs of warm-up; below 1 a fraction of all epochs. A warm-up of more than half the training
            is cut to half of it, with a warning.
        warmup_lr: Where the warm-up starts.
        min_lr: Where it ends; what ends by itself (step, constant) does not fall below.
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
    ) -> "WarmupLR":
        """What mmengine calls for `convert_to_iter_based=True`, with the runner's epochs."""
        return cls(optimizer, end, epoch_length, **kwargs)

    def after_warmup(self, base: float, low: float, done: float) -> float:
        """The rate of a group.

        Args:
            base: The group's own rate.
            low: Its `min_lr`.
            done: Share of the steps after the warm-up, 0 to 1.
        """
        raise NotImplementedError

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
                values.append(self.after_warmup(base, low, done))
        return values

    def go_to(self, step: int) -> None:
        """Stands where it would after so many steps of a training that always had these settings."""
        self.last_step = self._global_step = step
        self._last_value = self._get_value()
        for group, value in zip(self.optimizer.param_groups, self._last_value, strict=True):
            group[self.param_name] = value


def take_up_schedules(
    schedules: Sequence[_ParamScheduler], saved: Sequence[Mapping[str, Any]], step: int
) -> None:
    """Sets schedules to where a training goes on.

    Ours follow the config of now: with more epochs, another batch or another rate, a formula from the checkpoint would
    end elsewhere, in silence. Others, whose values build on the step before, take their saved state without settings.

    Args:
        schedules: The config's.
        saved: Their states in the checkpoint.
        step: Steps that lie behind.

    Raises:
        UserError: A schedule that is not ours has no state in the checkpoint that fits.
    """
    for number, schedule in enumerate(schedules):
        state = saved[number] if number < len(saved) else {}
        values = list(state.get("_last_value", ()))
        if isinstance(schedule, WarmupLR):
            schedule.go_to(step)
            now = schedule.get_last_value()
            if values and (len(now) != len(values) or not np.allclose(now, values, 1e-9, 0)):
                print_log(
                    f"learning rate {max(now):.3g}, as the config has it at step {step}; it was {max(values):.3g} "
                    "in the checkpoint, with other settings",
                    logger="current",
                    level=logging.WARNING,
                )
            continue
        groups, name = schedule.optimizer.param_groups, type(schedule).__name__
        if len(values) != len(groups) or state.get("type", name) != name:
            raise UserError(
                f"the checkpoint has no state for {name} over {len(groups)} parameter group(s): "
                "keep param_scheduler, layer_decay and head_lr as they were"
            )
        own, settings = vars(schedule), _settings(schedule)
        plain = [key for key in settings if isinstance(own.get(key), int | float | str)]
        if any(state.get(key, own[key]) != own[key] for key in plain):
            print_log(
                f"{name} has other settings than in the checkpoint: the config's hold from here on",
                logger="current",
                level=logging.WARNING,
            )
        schedule.load_state_dict({k: v for k, v in state.items() if k not in settings})
        # a schedule's state holds the values, but the optimizer's groups are what steps use
        for group, value in zip(groups, schedule.get_last_value(), strict=True):
            group[schedule.param_name] = value


def _settings(schedule: _ParamScheduler) -> set[str]:
    """The attributes of a schedule that its config sets."""
    classes = type(schedule).__mro__[:-1]
    arguments = {name for cls in classes for name in signature(cls.__init__).parameters}  # type: ignore[misc]
    return (arguments | {"type", "base_values"}) - {"last_step"}


@PARAM_SCHEDULERS.register_module()
class WarmupCosineLR(WarmupLR):
    """Warm-up, then half a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983):
    `min_lr + (lr - min_lr) * (1 + cos(pi * done)) / 2`. See `WarmupLR`."""

    def after_warmup(self, base: float, low: float, done: float) -> float:
        return low + (base - low) * (1 + math.cos(math.pi * done)) / 2


@PARAM_SCHEDULERS.register_module()
class WarmupPolyLR(WarmupLR):
    """Warm-up, then `min_lr + (lr - min_lr) * (1 - done) ** power`; SegFormer's own with power 1. See `WarmupLR`."""

    def __init__(self, *args: Any, power: float = 1.0, **kwargs: Any) -> None:
        if not 0 < power < float("inf"):
            raise UserError(f"power={power} must be above 0")
        self.power = power
        super().__init__(*args, **kwargs)

    def after_warmup(self, base: float, low: float, done: float) -> float:
        return low + (base - low) * (1 - done) ** self.power


@PARAM_SCHEDULERS.register_module()
class WarmupStepLR(WarmupLR):
    """Warm-up, then `lr * gamma` for each milestone passed, never below `min_lr`. See `WarmupLR`.

    Args:
        *args: See `WarmupLR`.
        milestones: Shares of the steps after the warm-up, above 0 and below 1.
        gamma: The factor, above 0 and below 1.
        **kwargs: See `WarmupLR`.
    """

    def __init__(
        self,
        *args: Any,
        milestones: Sequence[float] = (0.6, 0.85),
        gamma: float = 0.1,
        **kwargs: Any,
    ) -> None:
        if not milestones or not all(0 < m < 1 for m in milestones) or not 0 < gamma < 1:
            raise UserError(
                f"milestones={list(milestones)} must be shares of the training and gamma={gamma} a factor, "
                "between 0 and 1"
            )
        self.milestones, self.gamma = tuple(milestones), gamma
        super().__init__(*args, **kwargs)

    def after_warmup(self, base: float, low: float, done: float) -> float:
        # a hair's breadth, so that rounding does not put a milestone off by a step
        passed = sum(done >= m - 1e-9 for m in self.milestones)
        return max(min(low, base), base * self.gamma**passed)


@PARAM_SCHEDULERS.register_module()
class WarmupConstantLR(WarmupLR):
    """Warm-up, then `lr` to the end. See `WarmupLR`."""

    def after_warmup(self, base: float, low: float, done: float) -> float:
        return base
