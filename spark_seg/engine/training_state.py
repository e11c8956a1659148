"""The optimizer's state by parameter name, whole, whatever partitioned it.

DeepSpeed's own checkpoints hold flat partitions that fit one ZeRO stage and one number of processes. Here the state is
gathered parameter by parameter (DeepSpeed's tensor-fragment and ZeRO-3 accessors,
https://deepspeed.readthedocs.io/en/latest/zero3.html#modifying-partitioned-states) and put back the same way, so that a
training goes on under another stage or number of processes, bit for bit where nothing else changes: gathering and
scattering copy fp32 numbers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spark_seg.engine.checkpoints import load_safetensors
from spark_seg.engine.folder import OPTIMIZER_FILE
from spark_seg.errors import UserError

SEPARATOR = "//"
_STEP = "step"
# Of torch's own optimizers those whose state depends on the parameter, or was left out of checkpoints once.
_STATE_KEYS: dict[str, Callable[[torch.Tensor], Sequence[str]]] = {
    "NAdam": lambda p: ("exp_avg", "exp_avg_sq", "mu_product"),
    "ASGD": lambda p: ("ax", "eta", "mu"),
    "Adafactor": lambda p: ("row_var", "col_var") if p.dim() > 1 else ("variance",),
}
_ADAMS = ("Adam", "AdamW", "DeepSpeedCPUAdam", "FusedAdam")


def named_trainable(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that an optimizer sees, in the model's order: the same on every process."""
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


def gather_optimizer_state(
    optimizer: Any, module: nn.Module, keep: bool
) -> dict[str, torch.Tensor]:
    """Full fp32 state of every trainable parameter, on the CPU. Every process must call it.

    Args:
        optimizer: torch's optimizer, or DeepSpeed's ZeRO optimizer around one.
        module: The bare model.
        keep: Whether this process wants the result; others take part in the gathering and get an empty dict.

    Returns:
        `<parameter>//<key>` -> tensor of the parameter's shape (`exp_avg` ...; without ZeRO of others too, as Adafactor
        and NAdam have them), and `step`, the optimizer's step count, where it has one. Empty before the first step.
    """
    state: dict[str, torch.Tensor] = {}
    _link(optimizer)
    keys = _keys(optimizer)
    for name, parameter in named_trainable(module):
        for key in keys:
            value = _get(optimizer, parameter, key)
            if keep and value is not None:
                state[f"{name}{SEPARATOR}{key}"] = value.detach().float().cpu().clone()
    steps = [s[_STEP] for s in _base(optimizer).state.values() if _STEP in s] if keep else []
    if steps:
        step = max(steps, key=float)
        state[_STEP] = torch.as_tensor(step, dtype=torch.float32).detach().cpu().clone()
    return state


def scatter_optimizer_state(
    optimizer: Any, module: nn.Module, state: Mapping[str, torch.Tensor]
) -> None:
    """Puts back what `gather_optimizer_state` gave, before the first step. Every process must call it with all of it.

    Raises:
        KeyError: The state lacks a trainable parameter, or a part of its state.
    """
    keys = sorted({name.split(SEPARATOR)[1] for name in state if SEPARATOR in name})
    if not keys and _STEP not in state:
        return
    base = _base(optimizer)
    # an optimizer that keeps other state for some parameters says so; all others have every key for each
    known = _STATE_KEYS.get(type(base).__name__, lambda parameter: keys)
    state_keys = getattr(base, "state_keys", known)
    own = {name: list(state_keys(p)) for name, p in named_trainable(module)}
    if any(group.get("amsgrad") for group in base.param_groups):
        own = {name: [*wanted, "max_exp_avg_sq"] for name, wanted in own.items()}
    for name, wanted in own.items():  # before anything is changed
        for key in wanted:
            if f"{name}{SEPARATOR}{key}" not in state:
                raise KeyError(f"{name}{SEPARATOR}{key}")
    _create(optimizer, module, own, state)
    for name, parameter in named_trainable(module):
        for key in own[name]:
            _set(optimizer, parameter, key, state[f"{name}{SEPARATOR}{key}"])


def restore_optimizer(
    optimizer: Any, module: nn.Module, folder: Path, written_by: str | None
) -> None:
    """Takes an optimizer's state from a checkpoint folder. Every process must call it.

    Args:
        optimizer: As for `gather_optimizer_state`.
        module: The bare model.
        folder: A whole checkpoint.
        written_by: The `kind_of` the optimizer that wrote it, where that is known.

    Raises:
        UserError: It is of another optimizer, or of other parameters.
    """
    anew = f"or begin anew from its weights with pretrained={str(folder)!r}"
    kind = kind_of(optimizer)
    if written_by not in (None, kind):
        raise UserError(
            f"{folder} was written by {written_by}, the config has {kind}: keep the optimizer, {anew}"
        )
    try:
        scatter_optimizer_state(optimizer, module, load_safetensors(folder / OPTIMIZER_FILE))
    except KeyError as error:
        raise UserError(
            f"{folder} has no optimizer state for {error.args[0]}: keep optimizer and freeze_backbone as "
            f"they were, {anew}"
        ) from None


def kind_of(optimizer: Any) -> str:
    """The class of torch's optimizer; Adam's variants, whose state is one, are all `AdamW`."""
    name = type(_base(optimizer)).__name__
    return "AdamW" if name in _ADAMS else name


def _base(optimizer: Any) -> torch.optim.Optimizer:
    """torch's optimizer inside DeepSpeed's, or itself."""
    return optimizer.optimizer if _partitions(optimizer) is not None else optimizer


def _partitions(optimizer: Any) -> list[torch.Tensor] | None:
    """The flat fp32 partitions that a ZeRO optimizer steps; None for a plain optimizer."""
    for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    return None


def _keys(optimizer: Any) -> list[str]:
    """The optimizer's state keys; in partitions those that have their shape. Not every parameter need have each."""
    whole = _partitions(optimizer) is None
    return sorted(
        {
            key
            for parameter, values in _base(optimizer).state.items()
            for key, value in values.items()
            if torch.is_tensor(value) and (whole or value.shape == parameter.shape) and key != _STEP
        }
    )


def _get(optimizer: Any, parameter: nn.Parameter, key: str) -> torch.Tensor | None:
    if _partitions(optimizer) is None:
        return optimizer.state[parameter].get(key) if parameter in optimizer.state else None
    from deepspeed.utils import safe_get_full_optimizer_state

    return safe_get_full_optimizer_state(parameter, key)


def _create(
    optimizer: Any,
    module: nn.Module,
    own: Mapping[str, list[str]],
    state: Mapping[str, torch.Tensor],
) -> None:
    """Makes the state tensors that the optimizer would make at its first step: by parameter, in partitions of all."""
    base, partitions, step = _base(optimizer), _partitions(optimizer), state.get(_STEP)
    if partitions is None:
        for name, p in named_trainable(module):
            shapes = {key: state[f"{name}{SEPARATOR}{key}"].shape for key in own[name]}
            base.state[p] = {key: p.new_zeros(shape) for key, shape in shapes.items()}
    else:
        every = sorted({key for keys in own.values() for key in keys})
        for partition in partitions:
            base.state[partition] = {key: torch.zeros_like(partition) for key in every}
    counts_steps = getattr(base, "counts_steps", lambda parameter: True)
    for owner in list(base.state) if partitions is None else partitions:
        if step is not None and counts_steps(owner):
            base.state[owner][_STEP] = _own_step(base, owner, step)
    _link(optimizer)


def _own_step(base: torch.optim.Optimizer, owner: torch.Tensor, step: torch.Tensor) -> Any:
    """The step count as this optimizer keeps it."""
    if type(base).__name__ == "DeepSpeedCPUAdam":
        return int(step)
    on_device = any(group.get("fused") or group.get("capturable") for group in base.param_groups)
    return step.clone().to(owner.device) if on_device else step.clone()


def _link(optimizer: Any) -> None:
    """Lets parameters find their fragments of the optimizer's state under stages 1 and 2.

    DeepSpeed links them once, after the first step of the first parameter group, when the other groups have no state
    yet; their parameters then never find theirs. Linking again costs nothing.
    """
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state") and _keys(optimizer):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def _set(optimizer: Any, parameter: nn.Parameter, key: str, value: torch.Tensor) -> None:
    if _partitions(optimizer) is None:
        optimizer.state[parameter][key].copy_(value)
    elif hasattr(parameter, "ds_id"):
        # DeepSpeed's own setter fails where a parameter does not divide evenly over the processes
        zero: Any = parameter._z3_optimizer  # type: ignore[attr-defined]
        fragment, _ = zero._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=False, optim_state_key=key
        )
        rank = zero._get_param_partition_rank(parameter)
        first = fragment.numel() * rank
        mine = value.flatten()[first : first + fragment.numel()]
        fragment[: mine.numel()].copy_(mine)
    else:
        from deepspeed.utils import safe_set_full_optimizer_state

        safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)
