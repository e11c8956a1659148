"""A run's record: parameters, metrics per step, curves; and whoever else wants to see what is logged."""

import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from spark_seg.atomic import user_errors, write_bytes
from spark_seg.engine import provenance
from spark_seg.engine.curves import draw_curves
from spark_seg.engine.hooks.scalars import bring_scalars


@HOOKS.register_module()
class RunRecordHook(Hook):
    """Writes `training_params.yaml` and `.json`, `metrics.jsonl` and `curves.png` into the work folder.

    `metrics.jsonl` holds one JSON object a line: `mode` (`train` or `val`), `step` and `epoch` finished, and the
    values. For training, means since the last line and over all processes: the losses' parts and their sum, the
    gradient norm before clipping (of the steps that were made), and `time`, seconds a step; then `lr`, steps `skipped`
    in all, `images_per_second` over all processes, `data_share`, the share of the time that the process that waited
    longest spent waiting for data, `peak_memory_gib`, the most that any process took since the beginning (GPU memory;
    without a GPU what it holds of the host's), and `eta_seconds`, the time left, validations included.

    The first process writes, and hands each line to all hooks that have a method
    `log_values(runner, mode, step, epoch, values)`: the terminal's and the trackers'.

    Args:
        log_every: Steps between two lines.
        curves_every: Seconds that pass at least between two drawings; the last is always made.
    """

    priority = "BELOW_NORMAL"

    def __init__(self, log_every: int = 20, curves_every: float = 60.0) -> None:
        self.log_every, self.curves_every = log_every, curves_every
        self._drawn = 0.0
        self._since = 0
        # in this process: steps since the last line; the wait until it
        self._made, self._waited = 0, 0.0
        self._taken_up: dict[str, Any] | None = None

    def state(self, runner: Any) -> dict[str, Any]:
        """The values since the last line, so that a line that a pause cuts in two is the same as without it."""
        bring_scalars(runner)
        window = {
            name: [float(v) for v in buffer.data[0][-self._since :]]
            for name, buffer in runner.message_hub.log_scalars.items()
            if name.startswith("train/") and self._since
        }
        return {"window": window}

    def take_up(self, runner: Any, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint: its values are in the message hub again."""
        self._since = max((len(values) for values in state["window"].values()), default=0)
        self._taken_up = {
            "iter": runner.iter,
            "epoch": runner.epoch,
            "from": str(runner.resume_from),
            "validate": bool(state["validate"]),
        }

    def before_train(self, runner: Any) -> None:
        self._main = runner.rank == 0
        self._begun, self._first = time.monotonic(), runner.iter
        if not self._main:
            return
        folder = Path(runner.work_dir)
        self._file = folder / "metrics.jsonl"
        record = provenance.collect(runner.seed, runner.world_size)
        record["precision"] = runner.strategy.precision
        record["model"] = dict(runner.model_summary)
        record["data"] = {
            "train": self._fingerprint(runner.train_dataloader.dataset),
            "val": self._fingerprint(runner.val_dataloader.dataset) if runner.val_loop else None,
        }
        record["config"] = runner.cfg.to_dict()
        if self._taken_up is not None:
            end_line(self._file)
            record["taken_up"] = self._taken_up
            again = {"validate": float(self._taken_up["validate"])}
            self._write("resume", self._taken_up["iter"], self._taken_up["epoch"], again)
        add_params(folder, record)
        self._file.touch()

    @staticmethod
    def _fingerprint(dataset: Any) -> dict[str, Any]:
        return provenance.data_fingerprint([dataset.get_data_info(i) for i in range(len(dataset))])

    def after_train_iter(self, runner: Any, batch_idx: int, **_: Any) -> None:
        self._since += 1
        self._made += 1
        finished = runner.iter + 1
        if finished % self.log_every and finished != runner.max_iters:
            return
        bring_scalars(runner)
        values = self._values(runner, finished)
        if self._main:
            self._tell(runner, "train", finished, runner.epoch + 1, values)
        self._since = 0

    def _values(self, runner: Any, finished: int) -> dict[str, float]:
        """Every process must call it: the slowest loader and the fullest memory are asked for."""
        scalars = runner.message_hub.log_scalars
        apart = ("train/lr", "train/base_lr", "train/grad_norm")
        values = {
            name.removeprefix("train/").removeprefix("decode."): float(buffer.mean(self._since))
            for name, buffer in scalars.items()
            if name.startswith("train/") and name not in apart
        }
        if "train/grad_norm" in scalars:
            norms = [float(v) for v in scalars["train/grad_norm"].data[0][-self._since :]]
            made = [v for v in norms if v >= 0 and v != float("inf")]
            if made:
                values["grad_norm"] = sum(made) / len(made)
        values["lr"] = float(scalars["train/lr"].current())
        values["skipped"] = runner.strategy.guard.skipped
        share, loop = 0.0, runner.train_loop
        values["data_time"] = (loop.waited - self._waited) / self._made
        self._made, self._waited = 0, loop.waited
        if values.get("time"):
            values["images_per_second"] = loop.global_batch / values["time"]
            share = values["data_time"] / values["time"]
        values["data_share"], values["peak_memory_gib"] = _most(runner, share, peak_memory_gib())
        done = finished - self._first
        spent = time.monotonic() - self._begun
        values["eta_seconds"] = round(spent / done * (runner.max_iters - finished), 1)
        return values

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        if not getattr(self, "_main", False):  # a validation alone has no record
            return
        values = {k: float(v) for k, v in (metrics or {}).items()}
        self._tell(runner, "val", runner.iter, runner.epoch, values)
        if time.monotonic() - self._drawn > self.curves_every:
            self._draw()

    def after_train(self, runner: Any) -> None:
        if self._main:
            self._draw()

    def _draw(self) -> None:
        draw_curves(self._file, self._file.with_name("curves.png"))
        self._drawn = time.monotonic()

    def _tell(
        self, runner: Any, mode: str, step: int, epoch: int, values: dict[str, float]
    ) -> None:
        self._write(mode, step, epoch, values)
        for hook in runner.hooks:
            if hasattr(hook, "log_values"):
                hook.log_values(runner, mode, step, epoch, values)

    def _write(self, mode: str, step: int, epoch: int, values: dict[str, float]) -> None:
        line = json.dumps({"mode": mode, "step": step, "epoch": epoch, **values})
        with user_errors(self._file), self._file.open("a") as f:
            f.write(line + "\n")


def peak_memory_gib() -> float:
    """The most memory this process took: on its GPU as torch allocated it, without a GPU of the host's (resident)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _most(runner: Any, *values: float) -> list[float]:
    """Each value's maximum over the processes."""
    if runner.world_size == 1:
        return list(values)
    device = next(iter(runner.strategy.module.buffers())).device
    table = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(table, op=torch.distributed.ReduceOp.MAX)
    return table.tolist()


def end_line(file: Path) -> None:
    """Ends a line that a power failure has torn, so that the next one is not appended to it."""
    with user_errors(file), file.open("a+b") as f:
        if f.tell():
            f.seek(-1, os.SEEK_END)
            if f.read(1) != b"\n":
                f.write(b"\n")


def add_params(folder: Path, record: dict[str, Any]) -> None:
    """Writes the record as `training_params.yaml` (for `yaml.safe_load`) and `training_params.json`.

    A training that was taken up keeps the first record as it is and adds its own to the list `taken_up`.
    """
    import yaml

    record = provenance.plain(record)
    file = folder / "training_params.json"
    if "taken_up" in record and file.is_file():
        first = json.loads(file.read_text())
        first.setdefault("taken_up", []).append(record)
        record = first
    text = yaml.safe_dump(record, sort_keys=False, allow_unicode=True)
    write_bytes(folder / "training_params.yaml", text.encode())
    write_bytes(file, json.dumps(record, indent=1).encode())
