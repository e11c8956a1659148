"""Steps whose gradient is not finite are skipped, on all processes together."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.logging import print_log

from spark_seg.errors import UserError


class NotFiniteError(UserError):
    """Too many steps in a row had a loss or gradient that is not finite."""


class StepGuard:
    """Clips gradients and keeps an optimizer from stepping where their norm is not finite.

    The norm is the same on every process, so all skip together. ZeRO 1 to 3 look at it themselves (they leave out the
    step and report an infinite norm); torch's optimizers, which ZeRO 0 and the single-device strategy step, are guarded
    here. Looking at the norm waits for the GPU once a step; DeepSpeed's does too.

    Args:
        limit: After so many skipped steps in a row `check` raises.
        clip_grad: Largest gradient norm, for a guarded optimizer; None for no clipping.

    Attributes:
        skipped: How many steps were skipped in all.
    """

    def __init__(self, limit: int = 10, clip_grad: float | None = None) -> None:
        self.limit, self.clip_grad = limit, clip_grad
        self.skipped = 0
        self._in_a_row = 0
        self._norm: torch.Tensor | None = None

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Guards a torch optimizer; its gradients must be whole and averaged when `step` is called."""
        step = optimizer.step

        def guarded(*args: Any, **kwargs: Any) -> Any:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            limit = float("inf") if self.clip_grad is None else self.clip_grad
            self._norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
            return step(*args, **kwargs) if _is_finite(self._norm) else None

        optimizer.step = guarded  # type: ignore[method-assign]

    def after_step(self, norm: Any = None) -> torch.Tensor:
        """Takes note of a finished step.

        Args:
            norm: The gradient norm, where DeepSpeed computed it.

        Returns:
            The step's gradient norm before clipping, fp32.
        """
        value = torch.as_tensor(self._norm if norm is None else norm, dtype=torch.float32)
        if _is_finite(value):
            self._in_a_row = 0
        else:
            self.skipped += 1
            self._in_a_row += 1
            print_log(
                f"step skipped: its gradient is not finite ({self.skipped} so far, "
                f"{self._in_a_row} in a row)",
                logger="current",
                level=logging.WARNING,
            )
        return value

    @property
    def last_was_skipped(self) -> bool:
        """Whether the last step was skipped."""
        return self._in_a_row > 0

    def check(self, samples: Sequence[str]) -> None:
        """Raises when too many steps in a row were skipped.

        Args:
            samples: Ids of the samples in the last batch, for the message.

        Raises:
            NotFiniteError: The limit is reached.
        """
        if self._in_a_row >= self.limit:
            raise NotFiniteError(
                f"{self._in_a_row} steps in a row had a loss or gradient that is not finite; the last batch "
                f"held {', '.join(samples)}: look at these frames, lower the learning rate, or use "
                "precision=fp32"
            )


def _is_finite(norm: Any) -> bool:
    value = float(norm)
    # DeepSpeed puts -1 for a norm that is not finite
    return value >= 0 and value != float("inf")


def mean_logs(logs: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of each log value over the micro batches of a step."""
    if len(logs) == 1:
        return {key: value.detach() for key, value in logs[0].items()}
    return {key: torch.stack([log[key].detach() for log in logs]).mean() for key in logs[0]}
