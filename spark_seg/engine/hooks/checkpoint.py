"""Keeps the last and the best checkpoint."""

import json
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from spark_seg.atomic import write_bytes
from spark_seg.engine.checkpoints import save_pth, save_safetensors
from spark_seg.errors import UserError, nearest


@HOOKS.register_module()
class BestAndLastHook(Hook):
    """Saves `checkpoints/last` after every epoch and `checkpoints/best` after a validation that beats all before.

    The best is also written as plain fp32 weights, `best.safetensors` and `best.pth` (state dict only), with the
    metrics that it reached in `best.json`.

    Args:
        save_best: The metric whose highest value is best.
        interval: Epochs between two `last`; the final epoch is always saved.
    """

    priority = "VERY_LOW"

    def __init__(self, save_best: str = "spark/score", interval: int = 1) -> None:
        self.save_best, self.interval = save_best, interval
        self.best: float | None = None

    def after_train_epoch(self, runner: Any) -> None:
        finished = runner.epoch + 1  # the loop counts it only after the hooks
        if finished % self.interval == 0 or finished == runner.max_epochs:
            meta = {"epoch": finished, "best": self.best}
            runner.save_checkpoint(runner.checkpoint_dir, "last", meta=meta)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        if not metrics:
            return
        if self.save_best not in metrics:
            raise UserError(
                f"save_best={self.save_best!r} is no metric{nearest(self.save_best, metrics)}"
            )
        score = float(metrics[self.save_best])
        if self.best is not None and score <= self.best:
            return
        self.best = score
        folder = Path(runner.checkpoint_dir)
        runner.save_checkpoint(folder, "best", meta={"epoch": runner.epoch, "best": score})
        weights = runner.strategy.full_state_dict()
        save_safetensors(weights, folder / "best.safetensors")
        save_pth(weights, folder / "best.pth")
        record = {"epoch": runner.epoch, "iter": runner.iter, "save_best": self.save_best}
        record |= {key: float(value) for key, value in metrics.items()}
        write_bytes(folder / "best.json", json.dumps(record, indent=1).encode())
        runner.logger.info(f"best {self.save_best} so far: {score:.4f} at epoch {runner.epoch}")
