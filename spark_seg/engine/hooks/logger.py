"""One line every few steps of training, and nothing twice."""

import time
from typing import Any

from mmengine.hooks import LoggerHook
from mmengine.registry import HOOKS

from spark_seg.progress import clock


@HOOKS.register_module()
class TrainLoggerHook(LoggerHook):
    """Prints what `RunRecordHook` writes into `metrics.jsonl`, one line for a log step.

    mmengine's own prints the experiment's name again and again, and each validation's metrics as one line of a
    kilobyte; the metric logs them as a table, and progress has a hook of its own.
    """

    def log_values(
        self, runner: Any, mode: str, step: int, epoch: int, values: dict[str, float]
    ) -> None:
        """Called by `RunRecordHook` on the first process."""
        if mode == "train":
            length = len(runner.train_dataloader)
            runner.logger.info(train_line(step, epoch, length, runner.max_epochs, values))

    def after_train_iter(self, *_: Any, **__: Any) -> None:
        """Nothing: `log_values` prints."""

    def after_val_iter(self, *_: Any, **__: Any) -> None:
        """Nothing: ProgressHook shows it."""

    def after_test_iter(self, *_: Any, **__: Any) -> None:
        """Nothing: ProgressHook shows it."""

    def after_val_epoch(self, *_: Any, **__: Any) -> None:
        """Nothing: the metric's table is there."""


def train_line(
    step: int, epoch: int, epoch_length: int, epochs: int, values: dict[str, float]
) -> str:
    """A log step for people: where, losses, norm, rate, speed, waiting, memory, end.

    Args:
        step: Steps finished.
        epoch: The epoch they are in, from 1.
        epoch_length: Steps in an epoch.
        epochs: Epochs in all.
        values: As in `metrics.jsonl`.
    """
    parts = [f"epoch {epoch}/{epochs}, step {(step - 1) % epoch_length + 1}/{epoch_length}"]
    losses = [key for key in values if key.startswith("loss")]
    parts += [f"{key} {values[key]:.4f}" for key in sorted(losses, key=len)]
    if "acc_seg" in values:
        parts.append(f"acc {values['acc_seg']:.1f} %")
    if "grad_norm" in values:
        parts.append(f"norm {values['grad_norm']:.3g}")
    parts.append(f"lr {values['lr']:.3g}")
    if values.get("skipped"):
        parts.append(f"{values['skipped']:.0f} skipped")
    if "images_per_second" in values:
        parts.append(f"{values['images_per_second']:.1f} img/s")
    parts.append(f"{100 * values['data_share']:.0f} % waiting for data")
    parts.append(f"{values['peak_memory_gib']:.2f} GiB")
    left = values["eta_seconds"]
    end = time.strftime("%d %b %H:%M", time.localtime(time.time() + left))
    parts.append(f"ends {end} ({clock(left)} left)")
    return ", ".join(parts)
