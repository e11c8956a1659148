"""Keeps the last and the best checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from spark_seg.atomic import make_folder, write_bytes
from spark_seg.engine.checkpoints import save_pth, save_safetensors
from spark_seg.engine.folder import BEST_FILE
from spark_seg.engine.launch import first_process
from spark_seg.errors import UserError, nearest

TIE = "mIoU/foreground"


@HOOKS.register_module()
class BestAndLastHook(Hook):
    """Saves `checkpoints/last` after every epoch and `checkpoints/best` after a validation that beats all before.

    The best is also written as plain fp32 weights, `best.safetensors` and `best.pth` (state dict only), with the
    metrics that it reached in `best.json`. Where two are equal by `save_best` (`spark/score` is 0 until an IoU reaches
    0.5), the higher foreground mIoU decides; where that is equal too, the earlier one stays and nothing is written.

    Args:
        save_best: The metric whose highest value is best.
        interval: Epochs between two `last`; the final epoch is always saved.
        steps: Steps between two `last` inside an epoch; None for none.
    """

    priority = "VERY_LOW"

    def __init__(
        self, save_best: str = "spark/score", interval: int = 1, steps: int | None = None
    ) -> None:
        self.save_best, self.interval, self.steps = save_best, interval, steps
        self.best: float | None = None
        self.tie: float | None = None

    def state(self, runner: Any) -> dict[str, Any]:
        """What a checkpoint keeps of this hook."""
        return {"best": self.best, "tie": self.tie}

    def take_up(self, runner: Any, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.best, self.tie = state["best"], state.get("tie")

    def after_train_iter(self, runner: Any, batch_idx: int, **_: Any) -> None:
        finished = runner.iter + 1  # the loop counts a step only after the hooks
        last_of_epoch = batch_idx + 1 == len(runner.train_dataloader)
        if self.steps and finished % self.steps == 0 and not last_of_epoch:
            meta = {"iter": finished, "in_epoch": batch_idx + 1}
            runner.save_checkpoint(runner.checkpoint_dir, "last", meta=meta)

    def after_train_epoch(self, runner: Any) -> None:
        finished = runner.epoch + 1
        if finished % self.interval == 0 or finished == runner.max_epochs:
            # Killed before the validation that follows, a training taken up from here begins with it.
            due = runner.train_loop.validation_due(finished)
            meta = {"epoch": finished, "in_epoch": 0, "validate": due}
            runner.save_checkpoint(runner.checkpoint_dir, "last", meta=meta)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        if not metrics:
            return
        if self.save_best not in metrics:
            raise UserError(
                f"save_best={self.save_best!r} is no metric{nearest(self.save_best, metrics)}"
            )
        score, tie = float(metrics[self.save_best]), metrics.get(TIE)
        if not self._beats(score, tie):
            return
        self.best, self.tie = score, None if tie is None else float(tie)
        folder = Path(runner.checkpoint_dir)
        weights = runner.strategy.evaluated_state_dict()
        record = {"epoch": runner.epoch, "iter": runner.iter, "save_best": self.save_best}
        record |= {key: float(value) for key, value in metrics.items()}
        # The folder last: killed before it, the training is taken up before this validation and exports again.
        first_process(_export, folder, weights, record)
        runner.save_checkpoint(folder, "best")
        runner.logger.info(f"best {self.save_best} so far: {score:.4f} at epoch {runner.epoch}")

    def _beats(self, score: float, tie: float | None) -> bool:
        """Whether these are better than the best so far; a checkpoint of an older version knows no tie."""
        if self.best is None or score != self.best:
            return self.best is None or score > self.best
        return tie is not None and self.tie is not None and float(tie) > self.tie


def _export(folder: Path, weights: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
    make_folder(folder)
    save_safetensors(weights, folder / BEST_FILE)
    save_pth(weights, folder / "best.pth")
    write_bytes(folder / "best.json", json.dumps(record, indent=1).encode())
