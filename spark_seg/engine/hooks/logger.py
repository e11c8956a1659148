"""One line every few steps of training, and nothing twice."""

from typing import Any

from mmengine.hooks import LoggerHook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class TrainLoggerHook(LoggerHook):
    """mmengine's LoggerHook for training alone.

    Upstream also prints the experiment's name again and again, and each validation's metrics as one line of a
    kilobyte; the metric logs them as a table, and progress has a hook of its own.
    """

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if self.every_n_inner_iters(batch_idx, self.interval) or self.end_of_epoch(
            runner.train_dataloader, batch_idx
        ):
            tag, line = runner.log_processor.get_log_after_iter(runner, batch_idx, "train")
            runner.logger.info(line)
            runner.visualizer.add_scalars(tag, step=runner.iter + 1, file_path=self.json_log_path)

    def after_val_iter(self, *_: Any, **__: Any) -> None:
        """Nothing: ProgressHook shows it."""

    def after_test_iter(self, *_: Any, **__: Any) -> None:
        """Nothing: ProgressHook shows it."""

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        if metrics:
            runner.visualizer.add_scalars(
                dict(metrics), step=runner.epoch, file_path=self.json_log_path
            )
