"""A training's scalars stay on the device until a line is logged."""

from typing import Any

import torch
from mmengine.hooks import RuntimeInfoHook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class StepScalarsHook(RuntimeInfoHook):
    """mmengine's RuntimeInfoHook, which would wait for the GPU at every scalar of every step.

    Losses and gradient norms of the steps are kept as they are; every `log_every` steps they go to the host in one
    copy, averaged over the processes, and into mmengine's message hub: one value a step, as upstream. In between the
    hub lacks the last steps; `bring` has them brought.

    Args:
        log_every: Steps between two copies.
    """

    priority = "VERY_HIGH"  # before the timer, so that the wait is in the logged step's time

    def __init__(self, log_every: int = 20) -> None:
        self.log_every = log_every
        self._steps: list[dict[str, Any]] = []

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if outputs:
            self._steps.append(dict(outputs))
        finished = runner.iter + 1
        if finished % self.log_every == 0 or finished == runner.max_iters:
            self.bring(runner)

    def bring(self, runner: Any) -> None:
        """Brings what the hub lacks. Every process must call it, after the same step."""
        steps, self._steps = self._steps, []
        if not steps:
            return
        names = list(steps[0])
        values = [
            torch.as_tensor(step[name]).detach().reshape(()) for step in steps for name in names
        ]
        device = next((v.device for v in values if v.device.type != "cpu"), torch.device("cpu"))
        table = torch.stack([v.to(device, torch.float32) for v in values])
        if runner.world_size > 1:
            torch.distributed.all_reduce(table)
            table /= runner.world_size
        numbers = iter(table.tolist())
        for _ in steps:
            for name in names:
                runner.message_hub.update_scalar(f"train/{name}", next(numbers))


def bring_scalars(runner: Any) -> None:
    """Has the runner's StepScalarsHook, where it has one, bring what is still on the device."""
    for hook in runner.hooks:
        if isinstance(hook, StepScalarsHook):
            hook.bring(runner)
