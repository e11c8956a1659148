"""How far evaluation and training are."""

import logging
import sys
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from spark_seg.progress import Progress


@HOOKS.register_module()
class ProgressHook(Hook):
    """A bar with rate and time left on a terminal; elsewhere plain lines.

    In training without a terminal the plain lines are the logger's, which name the time left themselves; on a
    terminal those go to the log file only.
    """

    priority = "LOW"

    def __init__(self) -> None:
        self._bars: dict[str, Progress] = {}

    def _start(self, stage: str, total: int, name: str, unit: str = "img") -> None:
        self._bars[stage] = Progress(total, name, unit)

    def _end(self, stage: str) -> None:
        bar = self._bars.pop(stage, None)
        if bar is not None:
            bar.close()

    def before_train(self, runner: Any) -> None:
        if sys.stderr.isatty():
            for handler in runner.logger.handlers:
                if type(handler) is logging.StreamHandler:
                    handler.setLevel(logging.WARNING)
            self._start("train", runner.max_iters, "train", "step")
            self._bars["train"].update(runner.iter)

    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        if "train" in self._bars:
            self._bars["train"].update()

    def log_values(
        self, runner: Any, mode: str, step: int, epoch: int, values: dict[str, float]
    ) -> None:
        """Called by `RunRecordHook` on the first process."""
        if mode == "train" and "train" in self._bars:
            rate = values.get("images_per_second", 0.0)
            waiting = 100 * values.get("data_share", 0.0)
            self._bars["train"].note(
                f"loss {values.get('loss', 0.0):.4f}, {rate:.1f} img/s, {waiting:.0f} % data"
            )

    def after_train(self, runner: Any) -> None:
        self._end("train")

    def before_val_epoch(self, runner: Any) -> None:
        self._start("val", len(runner.val_dataloader.dataset), "validate")

    def after_val_iter(self, runner: Any, batch_idx: int, outputs: Any = None, **_: Any) -> None:
        self._bars["val"].update(len(outputs or ()))

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        self._end("val")

    def before_test_epoch(self, runner: Any) -> None:
        self._start("test", len(runner.test_dataloader.dataset), "predict")

    def after_test_iter(self, runner: Any, batch_idx: int, outputs: Any = None, **_: Any) -> None:
        self._bars["test"].update(len(outputs or ()))

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        self._end("test")
