"""Hands what is logged to TensorBoard, Weights & Biases and MLflow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from spark_seg.engine.launch import first_process
from spark_seg.engine.provenance import plain
from spark_seg.engine.trackers import Tracker, open_trackers


@HOOKS.register_module()
class TrackersHook(Hook):
    """Validation's values under the flat keys of `metrics.json`, training's under `train/`, over optimizer steps.

    Only the first process writes. A value that is not finite is left out. A tracker that fails once the run is going
    (a server that went away) is told of and left out from there on: the training matters more.

    Args:
        tensorboard: Whether to write event files, where the package is installed.
        wandb: Arguments of `wandb.init` such as `dict(project="spark", mode="offline")`; None for none.
        mlflow: `dict(tracking_uri=..., experiment_name=..., run_name=..., tags=...)`, all optional; None for none.
    """

    priority = "BELOW_NORMAL"

    def __init__(
        self,
        tensorboard: bool = True,
        wandb: Mapping[str, Any] | None = None,
        mlflow: Mapping[str, Any] | None = None,
    ) -> None:
        self.wanted = {"tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow}
        self._resumed = False
        self._trackers: list[Tracker] = []

    def take_up(self, runner: Any, state: Mapping[str, Any]) -> None:
        """Goes on with the runs that the training had."""
        self._resumed = True

    def before_train(self, runner: Any) -> None:
        first_process(self._open, runner)

    def _open(self, runner: Any) -> None:
        self._trackers, notes = open_trackers(
            Path(runner.work_dir),
            runner.iter,
            self._resumed,
            plain(runner.cfg.to_dict()),
            **self.wanted,  # type: ignore[arg-type]
        )
        for note in notes:
            runner.logger.info(note)

    def log_values(
        self, runner: Any, mode: str, step: int, epoch: int, values: dict[str, float]
    ) -> None:
        """Called by `RunRecordHook` on the first process."""
        finite = {
            key if mode == "val" else f"train/{key}": float(value)
            for key, value in {**values, "epoch": epoch}.items()
            if abs(value) < float("inf")
        }
        for tracker in list(self._trackers):
            try:
                tracker.log(finite, step)
            except Exception as error:  # whatever its client raises
                self._trackers.remove(tracker)
                name = type(tracker).__name__
                runner.logger.warning(f"{name} failed and is left out from here on: {error}")

    def end(self, status: str) -> None:
        """Closes them: `finished`, `interrupted` or `failed`. Called by the runner however training ends."""
        trackers, self._trackers = self._trackers, []
        for tracker in trackers:
            try:
                tracker.close(status)
            except Exception as error:
                print(f"warning: {type(tracker).__name__} could not be closed: {error}")
