"""FlexibleRunner with what stock gets wrong put right.

Stock `FlexibleRunner.save_checkpoint` overwrites the epoch that the caller gives, so that a run saved after a
validation believes itself one epoch further (https://github.com/open-mmlab/mmengine/issues/1166, mended in `Runner`
only). Here a checkpoint is a folder, written beside and renamed, that says how many epochs and steps are finished.
"""

import json
import signal
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner
from torch import nn
from torch.utils.data import DataLoader

from spark_seg.atomic import write_bytes
from spark_seg.config import unresolved_text
from spark_seg.engine.checkpoints import replaced_folder
from spark_seg.errors import UserError

STATE_FILE = "state.json"


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by the user and its state saved; the message names the checkpoint."""


@RUNNERS.register_module()
class SparkRunner(FlexibleRunner):
    """Runs training, evaluation and inference for spark_seg; see `spark_seg.engine.build`."""

    stop_requested = False
    scratch: object = None  # a temporary folder that lives as long as the runner
    model_summary: Mapping[str, str] = {}  # variant, parameters, FLOPs; for the run's record

    def train(self) -> nn.Module:
        """Trains. The first Ctrl-C finishes the current step and saves a checkpoint; a second one stops at once.

        Raises:
            TrainingInterrupted: After Ctrl-C, with the checkpoint's path.
        """
        if threading.current_thread() is not threading.main_thread():
            return super().train()
        former = signal.signal(signal.SIGINT, self._request_stop)
        try:
            return super().train()
        finally:
            signal.signal(signal.SIGINT, former)

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        if self.stop_requested:
            raise KeyboardInterrupt
        self.stop_requested = True
        self.logger.warning("Ctrl-C: finishing this step and saving; once more to stop at once")

    def stop_if_requested(self) -> None:
        """Saves and leaves training when Ctrl-C was pressed; called by the loop between two steps."""
        if self.stop_requested:
            path = self.save_checkpoint(self.checkpoint_dir, "last", meta={"epoch": self.epoch})
            raise TrainingInterrupted(
                f"interrupted at epoch {self.epoch + 1}, step {self.iter}: checkpoint kept in {path}"
            )

    @property
    def checkpoint_dir(self) -> str:
        """The folder that holds this run's checkpoints."""
        return str(Path(self.work_dir) / "checkpoints")

    def save_checkpoint(
        self, out_dir: str, filename: str, meta: dict[str, Any] | None = None, **_: Any
    ) -> str:
        """Writes a checkpoint folder `out_dir/filename`, whole or not at all.

        Args:
            out_dir: Where checkpoints go.
            filename: The folder's name.
            meta: Plain values to keep beside the state; `epoch` (finished epochs) and `iter` (finished steps) are
                added where not given.
        """
        state = {"iter": self.iter, "epoch": self.epoch, "seed": self.seed, **(meta or {})}
        path = Path(out_dir) / filename
        with replaced_folder(path) as fresh:
            self.strategy.save_folder(fresh, {"meta": state})
            write_bytes(fresh / STATE_FILE, json.dumps(state, indent=1).encode())
        return str(path)

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """As upstream, but workers leave Ctrl-C to the main process, which saves before it stops.

        Raises:
            UserError: There is not one whole batch in the data.
        """
        if isinstance(dataloader, DataLoader):
            return dataloader
        if dataloader.get("num_workers", 0) == 0:
            # what holds for workers only; torch would refuse it without any
            only = ("persistent_workers", "prefetch_factor")
            dataloader = {key: value for key, value in dataloader.items() if key not in only}
        loader = FlexibleRunner.build_dataloader(dataloader, seed, diff_rank_seed)
        if len(loader) == 0:
            frames = len(loader.dataset)
            raise UserError(
                f"batch_size={loader.batch_size} is more than the {frames} frames: make it smaller"
            )
        loader.worker_init_fn = partial(_init_worker, then=loader.worker_init_fn)
        return loader

    def get_hooks_info(self) -> str:
        """The hooks' names, one line; upstream prints a page."""
        return ", ".join(type(hook).__name__ for hook in self.hooks)

    def dump_config(self) -> None:
        """Writes the merged config as `config.py` into the work folder, its `'$name'`s unresolved."""
        text = f"{unresolved_text(self.cfg)}work_dir = {self.work_dir!r}\n"
        write_bytes(Path(self.work_dir) / "config.py", text.encode())

    def _log_env(self) -> None:
        """Nothing: versions, hardware and config are in the run's training_params.yaml."""


def _init_worker(worker_id: int, then: Any) -> None:
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)  # the workers are the parallelism
    if then is not None:
        then(worker_id)
