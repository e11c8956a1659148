"""Steps whose gradient is not finite are skipped, on all processes together, without waiting for the GPU.

Who decides, where:

- ZeRO 1 to 3: DeepSpeed looks at the norm itself before every step (`is_invalid_grad_norm`, which waits for the GPU
  inside DeepSpeed) and says so in `overflow`. Ours only reads that flag.
- ZeRO 0 and plain PyTorch with torch's fused Adam or AdamW (what `spark_seg.engine.build` asks for): the optimizer's
  kernels are given `found_inf` and leave everything as it is, as under `torch.amp.GradScaler`. The host reads a step's
  norm one step later, when the GPU has the next step's work in its queue already.
- Any other optimizer there: the norm is looked at before the step, which waits for the GPU.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.logging import print_log

from spark_seg.errors import UserError


class NotFiniteError(UserError):
    """Too many steps in a row had a loss or gradient that is not finite."""


class LaggedNumber:
    """A number that the device computes and the host reads a step later.

    The copy to the host is queued behind the computation; reading waits for that copy alone, not for what was queued
    after it.
    """

    def __init__(self) -> None:
        self._host: torch.Tensor | None = None
        self._view: Any = None
        self._event: Any = None
        self._due = False

    def push(self, value: torch.Tensor) -> None:
        """Queues the copy of a scalar; the former one must have been taken."""
        if self._host is None:
            self._host = torch.zeros((), dtype=value.dtype, pin_memory=value.is_cuda)
            self._view = self._host.numpy()
        self._host.copy_(value, non_blocking=True)
        if value.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()
        self._due = True

    def take(self) -> float | None:
        """The number last pushed, or None where it was taken already."""
        if not self._due:
            return None
        self._due = False
        if self._event is not None:
            self._event.synchronize()
        return float(self._view)


class StepGuard:
    """Clips gradients and keeps an optimizer from stepping where their norm is not finite.

    The norm is the same on every process, so all skip together.

    Args:
        limit: After so many skipped steps in a row `check` raises.
        clip_grad: Largest gradient norm, for a guarded optimizer; None for no clipping.

    Attributes:
        applied: Whether the last step was made: a bool where the host knows it, else a bool tensor on the device.
        unscale: What the next step's gradients are multiplied by first (1 / loss scale), for a guarded optimizer.
        scale: The loss scale under fp16, told of each step; None without.
        lag: Whether the host reads a norm one step late; None: on a GPU.
    """

    def __init__(self, limit: int = 10, clip_grad: float | None = None) -> None:
        self.limit, self.clip_grad = limit, clip_grad
        self.applied: bool | torch.Tensor = True
        self.unscale = 1.0
        self.scale: LossScale | None = None
        self.lag: bool | None = None
        self._skipped = 0
        self._in_a_row = 0
        self._norm: torch.Tensor | None = None
        self._late = LaggedNumber()
        self._samples: tuple[Sequence[str], Sequence[str]] = (
            (),
            (),
        )  # of the step before, of the last
        self._told_late = False

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Guards a torch optimizer; its gradients must be whole and averaged when `step` is called."""
        step = optimizer.step
        gated = gates_itself(optimizer)

        def guarded(*args: Any, **kwargs: Any) -> Any:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            if self.unscale != 1.0:
                torch._foreach_mul_(
                    [p.grad for p in parameters if p.grad is not None], self.unscale
                )
            limit = float("inf") if self.clip_grad is None else self.clip_grad
            self._norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
            if not gated:
                self.applied = math.isfinite(float(self._norm))
                return step(*args, **kwargs) if self.applied else None
            self.applied = torch.isfinite(self._norm)
            optimizer.found_inf = (~self.applied).float()  # type: ignore[attr-defined]
            try:
                return step(*args, **kwargs)
            finally:
                del optimizer.found_inf  # type: ignore[attr-defined]

        optimizer.step = guarded  # type: ignore[method-assign]

    def after_step(self, norm: Any = None, applied: bool = True) -> torch.Tensor:
        """Takes note of a finished step.

        Args:
            norm: The gradient norm, where DeepSpeed computed it.
            applied: Whether DeepSpeed made the step, likewise.

        Returns:
            The step's gradient norm before clipping, fp32, not finite where the step was skipped.
        """
        self._told_late = False
        if norm is not None:
            self.applied = applied
            self._count(applied)
            value = torch.as_tensor(norm, dtype=torch.float32)
            # DeepSpeed puts -1 for a norm that is not finite
            return value if applied else torch.full_like(value, float("inf"))
        assert self._norm is not None
        if isinstance(self.applied, bool):
            self._count(self.applied)
        else:
            self.settle()
            self._told_late = True
            self._late.push(self._norm)
            if not (self._norm.is_cuda if self.lag is None else self.lag):
                self._told_late = False
                self.settle()
        return self._norm.to(torch.float32)

    def settle(self) -> None:
        """Takes note of a step that the host has not looked at yet; waits for that step."""
        norm = self._late.take()
        if norm is not None:
            self._count(math.isfinite(norm))

    def _count(self, applied: bool) -> None:
        if self.scale is not None:
            self.scale.update(applied)
        if applied:
            self._in_a_row = 0
            return
        self._skipped += 1
        self._in_a_row += 1
        print_log(
            f"step skipped: its gradient is not finite ({self._skipped} so far, {self._in_a_row} in a row)",
            logger="current",
            level=logging.WARNING,
        )

    @property
    def skipped(self) -> int:
        """How many steps were skipped in all; asking waits for the last one."""
        self.settle()
        return self._skipped

    @skipped.setter
    def skipped(self, value: int) -> None:
        self._skipped = value

    @property
    def last_was_skipped(self) -> bool:
        """Whether the last step that the host knows of was skipped."""
        return self._in_a_row > 0

    def check(self, samples: Sequence[str]) -> None:
        """Raises when too many steps in a row were skipped, on all processes at once.

        Args:
            samples: Ids of the samples in this process's last batch, for the message, which names those of all.

        Raises:
            NotFiniteError: The limit is reached.
        """
        self._samples = (self._samples[1], samples)
        if self._in_a_row >= self.limit:
            batch = self._samples[0] if self._told_late and self._samples[0] else samples
            raise NotFiniteError(
                f"{self._in_a_row} steps in a row had a loss or gradient that is not finite; the last batch "
                f"held {', '.join(_of_all(batch))}: look at these frames, lower the learning rate, or use "
                "precision=fp32"
            )


def _of_all(samples: Sequence[str]) -> list[str]:
    """The samples of every process, by rank; every process must call it."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return list(samples)
    told: list[Sequence[str]] = [()] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(told, list(samples))
    return [name for names in told for name in names]


def gates_itself(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer leaves out a step on the device where it is given `found_inf`.

    torch's fused Adam and AdamW. Not its fused SGD: a first step that is left out leaves the momentum uninitialised.
    """
    fused = all(group.get("fused") for group in optimizer.param_groups)
    return fused and type(optimizer) in (torch.optim.Adam, torch.optim.AdamW)


class LossScale:
    """Dynamic loss scaling for fp16 (Micikevicius et al. 2018, arXiv:1710.03740), numbers as in `torch.amp.GradScaler`.

    DeepSpeed 0.19's own for fp16 autocast never lowers its scale under ZeRO (a step whose norm overflows returns before
    the scaler hears of it) and clips gradients that are still scaled; here the scale is handed to it from outside.

    Args:
        value: The scale to begin with.
        growth_interval: After so many steps in a row that were made, the scale is doubled; after each skipped one
            halved.
    """

    def __init__(self, value: float = 65536.0, growth_interval: int = 2000) -> None:
        self.value, self.growth_interval = value, growth_interval
        self._good = 0

    def update(self, applied: bool) -> None:
        """After a step."""
        if not applied:
            self.value, self._good = max(1.0, self.value / 2), 0
            return
        self._good += 1
        if self._good >= self.growth_interval:
            self.value, self._good = min(2.0**24, self.value * 2), 0

    def state(self) -> list[float]:
        """For a checkpoint."""
        return [self.value, float(self._good)]

    def load(self, state: Sequence[float]) -> None:
        """Takes what `state` gave."""
        self.value, self._good = float(state[0]), int(state[1])


def mean_logs(logs: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of each log value over the micro batches of a step."""
    if len(logs) == 1:
        return {key: value.detach() for key, value in logs[0].items()}
    return {key: torch.stack([log[key].detach() for log in logs]).mean() for key in logs[0]}


def pinned(data: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch whose labels lie in pinned memory, as the loader puts its images there; for a GPU alone.

    mmseg's samples do not tell the loader how to pin them, and a copy of 16 MB from ordinary memory waits for all that
    the GPU has in its queue.
    """
    if device.type == "cuda":
        for sample in data.get("data_samples") or ():
            labels = getattr(sample, "gt_sem_seg", None)
            if labels is not None and not labels.data.is_cuda:
                labels.data = labels.data.pin_memory()
            coarse = getattr(sample, "coarse", None)  # two passes' other picture
            if coarse is not None and not coarse.image.is_cuda:
                coarse.image, coarse.labels = (
                    t.pin_memory() for t in (coarse.image, coarse.labels)
                )
    return data
