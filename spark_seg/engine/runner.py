"""FlexibleRunner with what stock gets wrong put right, and trainings that can be taken up exactly where they stopped.

Stock `FlexibleRunner.save_checkpoint` overwrites the epoch that the caller gives, so that a run saved after a
validation believes itself one epoch further (https://github.com/open-mmlab/mmengine/issues/1166, mended in `Runner`
only); nothing of the random state or the position in the data is saved. Here a checkpoint (`spark_seg.engine.folder`)
holds all of it.
"""

import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner
from torch import nn
from torch.utils.data import DataLoader

from spark_seg.atomic import write_bytes
from spark_seg.config import unresolved_text
from spark_seg.engine.checkpoints import load_safetensors, save_safetensors
from spark_seg.engine.folder import STATE_FILE, read_state, replaced_folder, rng_file
from spark_seg.engine.stop import StopRequest
from spark_seg.errors import UserError
from spark_seg.models.tta import Tta


@RUNNERS.register_module()
class SparkRunner(FlexibleRunner):
    """Runs training, evaluation and inference for spark_seg; see `spark_seg.engine.build`."""

    scratch: object = None  # a temporary folder that lives as long as the runner
    tta: Tta | None = None  # what predictions are averaged over
    # variant, parameters, FLOPs; for the run's record
    model_summary: Mapping[str, str] = {}
    resume_from: Path | None = None
    _has_loaded: bool

    def train(self) -> nn.Module:
        """Trains. Ctrl-C, SIGTERM and SIGUSR1 finish the current step, save a checkpoint and end the training.

        Raises:
            TrainingInterrupted: After such a signal, with the checkpoint's path.
        """
        status = "failed"
        with self.stop.listening():
            try:
                model = super().train()
                status = "finished"
                return model
            except KeyboardInterrupt:
                status = "interrupted"
                raise
            finally:
                self._end_workers()
                for hook in self.hooks:
                    if hasattr(hook, "end"):
                        hook.end(status)
                self.stop.wait_for_all()

    def test(self) -> dict:
        """Predicts."""
        try:
            return super().test()
        finally:
            self._end_workers()

    def _end_workers(self) -> None:
        """Ends the loaders' workers in good order; left to the interpreter's exit, they die with a traceback."""
        for loop in (self._train_loop, self._val_loop, self._test_loop):
            iterator = getattr(getattr(loop, "dataloader", None), "_iterator", None)
            if iterator is not None and hasattr(iterator, "_shutdown_workers"):
                iterator._shutdown_workers()

    @cached_property
    def stop(self) -> StopRequest:
        """What signals ask for."""
        return StopRequest(self.logger)

    def stop_if_requested(self, validate: bool = False) -> None:
        """Saves and leaves training when a signal asked for it on any process; called between two steps.

        Args:
            validate: Whether the training would validate next.
        """
        number = self.stop.agreed()
        if number:
            meta = {"validate": validate}
            path = self.save_checkpoint(self.checkpoint_dir, "last", meta=meta)
            self.stop.leave(
                number, f"epoch {self.epoch + 1}, step {self.iter}: checkpoint kept in {path}"
            )

    @property
    def checkpoint_dir(self) -> str:
        """The folder that holds this run's checkpoints."""
        return str(Path(self.work_dir) / "checkpoints")

    def load_or_resume(self) -> None:
        """Takes up the training in `resume_from`; its weights are in the model already."""
        if self.resume_from is None or self._has_loaded:
            self._write_config()
            return
        state = read_state(self.resume_from)
        self.train_loop.take_up(state)
        self.strategy.load_tensors(self.resume_from, state, self.iter)
        rng = self.resume_from / rng_file(self.rank)
        if rng.is_file():  # a process that did not exist before keeps the state its seed gave it
            set_random_state(load_safetensors(rng))
        for name, values in state["window"].items():
            for value in values:
                self.message_hub.update_scalar(name, value)
        for hook in self.hooks:
            if hasattr(hook, "take_up"):
                hook.take_up(self, state)
        self._has_loaded = True
        self._write_config()
        self.logger.info(
            f"going on from {self.resume_from}: epoch {self.epoch + 1}, step {self.iter}"
        )

    def save_checkpoint(
        self, out_dir: str, filename: str, meta: dict[str, Any] | None = None, **_: Any
    ) -> str:
        """Writes a checkpoint folder `out_dir/filename`, whole or not at all. Every process must call it.

        Args:
            out_dir: Where checkpoints go.
            filename: The folder's name; the former `last` is kept as `previous`.
            meta: Values of `state.json` that differ from the loop's own.
        """
        path = Path(out_dir) / filename
        former = "previous" if filename == "last" else None
        state = {**self._state(), **(meta or {})}
        with replaced_folder(path, keep_former=former) as fresh:
            self.strategy.save_tensors(fresh)
            save_safetensors(random_state(), fresh / rng_file(self.rank))
            if self.rank == 0:
                write_bytes(fresh / STATE_FILE, json.dumps(state, indent=1).encode())
        return str(path)

    def _state(self) -> dict[str, Any]:
        strategy = self.strategy
        state = {
            "epoch": self.epoch,
            "iter": self.iter,
            **self.train_loop.position(),
            "validate": False,
            "seed": self.seed,
            "world_size": self.world_size,
            "zero_stage": strategy.zero_stage,
            "precision": strategy.precision,
            "skipped": strategy.guard.skipped,
            "loss_scale": strategy.guard.scale.state() if strategy.guard.scale else None,
            "ema_steps": strategy.ema.steps if strategy.ema else 0,
            "optimizer": strategy.optimizer_kind(),
            "schedules": strategy.schedule_state(),
            "window": {},
        }
        for hook in self.hooks:
            if hasattr(hook, "state"):
                state.update(hook.state(self))
        return state

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """As upstream, but workers leave signals to the main process, which saves before it stops.

        The loader draws its workers' seeds from a generator of its own: the global one belongs to the model's dropout,
        whose stream must not depend on when loaders start.

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
        loader.generator = torch.Generator().manual_seed(seed or 0)
        return loader

    def get_hooks_info(self) -> str:
        """The hooks' names, one line; upstream prints a page."""
        return ", ".join(type(hook).__name__ for hook in self.hooks)

    def dump_config(self) -> None:
        """Nothing: upstream writes here, before a checkpoint may turn out not to fit the config."""

    def _write_config(self) -> None:
        """Writes the merged config as `config.py` into the work folder, its `'$name'`s unresolved."""
        if self.rank == 0:
            text = f"{unresolved_text(self.cfg)}work_dir = {self.work_dir!r}\n"
            write_bytes(Path(self.work_dir) / "config.py", text.encode())

    def _log_env(self) -> None:
        """Nothing: versions, hardware and config are in the run's training_params.yaml."""


def random_state() -> dict[str, torch.Tensor]:
    """The state of torch's generators in this process. Augmentation needs none: it is seeded by the sample."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, torch.Tensor]) -> None:
    """Sets what `random_state` gave."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def untouched_random_state() -> Iterator[None]:
    """A block that leaves torch's generators as they were."""
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)


def _once_ignored(number: int, frame: FrameType | None) -> None:
    # Slurm's goes to the whole process group and is the main process's to answer; the next is the loader's own. Where
    # this one was the loader's, the interpreter's exit waits for the worker: not for long.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(20)


def _init_worker(worker_id: int, then: Any) -> None:
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if "SLURM_JOB_ID" in os.environ:
        signal.signal(signal.SIGTERM, _once_ignored)
    cv2.setNumThreads(0)  # the workers are the parallelism
    if then is not None:
        then(worker_id)
