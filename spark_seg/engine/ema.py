"""Exponential moving average of the weights, right under every ZeRO stage.

mmengine's EMAHook is not saved under DeepSpeed and fails under ZeRO 3. Here the average is an fp32 shadow of what each
process holds: whole parameters below stage 3, its own partitions under it. It is updated after every optimizer step,
swapped in for validation, and saved with the checkpoint.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from spark_seg.errors import UserError


class ModelEma:
    """The averaged weights: `shadow = decay * shadow + (1 - decay) * weight` after each step.

    In the first steps the decay is smaller, `min(decay, (1 + t) / (10 + t))`, so that the random initial weights fade
    (as in TensorFlow's ExponentialMovingAverage). Buffers are not averaged: the model's own are used.

    Args:
        module: The bare model, wrapped already.
        decay: Between 0 and 1.
        zero_stage: The ZeRO stage.
        release: Under stage 3 lets go of the parameters that are gathered at the moment. DeepSpeed keeps those that it
            expects to be used again soon, over several processes as copies: a forward after a swap would compute with
            the weights of before it.
    """

    def __init__(
        self,
        module: nn.Module,
        decay: float,
        zero_stage: int,
        release: Callable[[], object] | None = None,
    ) -> None:
        if not 0 < decay < 1:
            raise UserError(f"ema_decay must lie between 0 and 1, not {decay}")
        self.module, self.decay, self.zero_stage = module, decay, zero_stage
        self._release = release
        self._steps: int | torch.Tensor = 0
        self.shadow = [t.detach().float().clone() for t in self._held()]

    def _held(self) -> list[torch.Tensor]:
        """What this process holds of each parameter."""
        if self.zero_stage == 3:
            return [getattr(p, "ds_tensor") for p in self.module.parameters()]  # noqa: B009
        return [p.data for p in self.module.parameters()]

    @property
    def steps(self) -> int:
        """How many steps were taken in; waits for the device where that is where they are counted."""
        return int(self._steps)

    @torch.no_grad()
    def update(self, applied: bool | torch.Tensor = True) -> None:
        """Takes in the weights after a step.

        Args:
            applied: Whether the step was made; where the host does not know yet, a bool tensor on the device. A step
                that was left out changes nothing.
        """
        held = [t.detach().float() for t in self._held()]
        if isinstance(applied, torch.Tensor):
            self._update_on_device(applied, held)
        elif applied:
            self._steps += 1
            decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(self.shadow, held, 1 - decay)

    def _update_on_device(self, applied: torch.Tensor, held: list[torch.Tensor]) -> None:
        if not isinstance(self._steps, torch.Tensor):
            self._steps = torch.full((), self._steps, dtype=torch.float64, device=applied.device)
        self._steps += applied
        decay = ((1 + self._steps) / (10 + self._steps)).clamp(max=self.decay)
        weight = ((1 - decay) * applied).float()
        torch._foreach_lerp_(self.shadow, held, [weight] * len(held))

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The context in which the model holds the averaged weights; its own come back bit for bit."""
        held = self._held()
        own = [t.detach().clone() for t in held]
        self._put(self.shadow)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: list[torch.Tensor]) -> None:
        if self._release is not None:
            self._release()
        for target, value in zip(self._held(), values, strict=True):
            target.copy_(value)

    @torch.no_grad()
    def load(self, state: Mapping[str, torch.Tensor], steps: int) -> None:
        """Takes the shadow from full averaged weights, as `evaluated_state_dict` gave them.

        Args:
            state: By parameter name, whole.
            steps: How many updates they had.
        """
        self._steps = steps
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        for shadow, (name, _) in zip(self.shadow, self.module.named_parameters(), strict=True):
            whole = state[name]
            if self.zero_stage < 3:
                shadow.copy_(whole)
                continue
            size = shadow.numel()  # of this process's partition; the last one's may be padded
            mine = whole.flatten()[size * rank : size * (rank + 1)]
            shadow.view(-1)[: mine.numel()].copy_(mine)
