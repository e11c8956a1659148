"""Ends a training that has stopped getting better."""

from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from spark_seg.errors import UserError, nearest


@HOOKS.register_module()
class PatienceHook(Hook):
    """Ends training after `patience` validations in a row that beat the best by no more than `min_delta`.

    What it counts is in every checkpoint, so that a resumed training stops where the whole one would have. The loop
    ends after the validation, in good order: hooks, curves and the best checkpoint are as after a last epoch.

    mmengine's `EarlyStoppingHook` forgets all of it when a training is resumed.

    Args:
        patience: Validations without improvement, from 1.
        metric: The metric whose highest value is best.
        min_delta: What counts as better, >= 0.

    Raises:
        UserError: A value out of range; in the first validation for a metric that there is not.
    """

    priority = "LOW"  # before the checkpoint hook, whose `best` then holds this validation

    def __init__(
        self, patience: int = 10, metric: str = "spark/score", min_delta: float = 0.0
    ) -> None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise UserError(f"patience={patience!r} must be a whole number from 1 on")
        if not 0 <= min_delta < float("inf"):
            raise UserError(f"patience: min_delta={min_delta} must be a number from 0 up")
        self.patience, self.metric, self.min_delta = patience, metric, min_delta
        self.best: float | None = None
        self.waited = 0

    def state(self, runner: Any) -> dict[str, Any]:
        """What a checkpoint keeps of this hook."""
        return {"early_stopping": {"best": self.best, "waited": self.waited}}

    def take_up(self, runner: Any, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint; from one written without this hook it begins to count."""
        kept = state.get("early_stopping") or {}
        self.best, self.waited = kept.get("best"), int(kept.get("waited", 0))
        # Stopped for good, and taken up all the same: the first epoch would be trained for nothing.
        if self.waited >= self.patience:
            self._stop(runner)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        if not metrics:
            return
        if self.metric not in metrics:
            raise UserError(
                f"patience: {self.metric!r} is no metric{nearest(self.metric, metrics)}"
            )
        score = float(metrics[self.metric])
        if self.best is None or score > self.best + self.min_delta:
            self.best, self.waited = score, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            self._stop(runner)

    def _stop(self, runner: Any) -> None:
        runner.logger.info(
            f"{self.metric} has not risen above {self.best:.4f} in {self.waited} validations (patience="
            f"{self.patience}): training ends at epoch {runner.epoch}"
        )
        runner.train_loop.stop_training = True
