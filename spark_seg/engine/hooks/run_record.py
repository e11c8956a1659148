"""A run's record: parameters, metrics per step, curves."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from spark_seg.atomic import write_bytes
from spark_seg.engine import provenance
from spark_seg.engine.curves import draw_curves


@HOOKS.register_module()
class RunRecordHook(Hook):
    """Writes `training_params.yaml` and `.json`, `metrics.jsonl` and `curves.png` into the work folder.

    `metrics.jsonl` holds one JSON object a line: `mode` (`train` or `val`), `step` and `epoch` finished, and the
    values: for training the means since the last line of the losses, seconds a step, the share of them spent
    waiting for data, images per second over all processes, and the learning rate.

    Args:
        log_every: Steps between two lines.
        curves_every: Seconds that pass at least between two drawings; the last is always made.
    """

    priority = "BELOW_NORMAL"

    def __init__(self, log_every: int = 20, curves_every: float = 60.0) -> None:
        self.log_every, self.curves_every = log_every, curves_every
        self._drawn = 0.0
        self._since = 0
        self._taken_up: dict[str, Any] | None = None

    def state(self, runner: Any) -> dict[str, Any]:
        """The values since the last line, so that a line that a pause cuts in two is the same as without it."""
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
        finished = runner.iter + 1
        if finished % self.log_every and finished != runner.max_iters:
            return
        if self._main:
            self._write("train", finished, runner.epoch + 1, self._values(runner))
        self._since = 0

    def _values(self, runner: Any) -> dict[str, float]:
        scalars = runner.message_hub.log_scalars
        values = {
            name.removeprefix("train/").removeprefix("decode."): float(buffer.mean(self._since))
            for name, buffer in scalars.items()
            if name.startswith("train/") and name not in ("train/lr", "train/base_lr")
        }
        values["lr"] = float(scalars["train/lr"].current())
        values["skipped"] = runner.strategy.guard.skipped
        if values.get("time"):
            values["images_per_second"] = runner.train_loop.global_batch / values["time"]
            values["data_share"] = values.get("data_time", 0.0) / values["time"]
        if torch.cuda.is_available():
            values["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return values

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        if not getattr(self, "_main", False):  # a validation alone has no record
            return
        values = {k: float(v) for k, v in (metrics or {}).items()}
        self._write("val", runner.iter, runner.epoch, values)
        if time.monotonic() - self._drawn > self.curves_every:
            self._draw()

    def after_train(self, runner: Any) -> None:
        if self._main:
            self._draw()

    def _draw(self) -> None:
        draw_curves(self._file, self._file.with_name("curves.png"))
        self._drawn = time.monotonic()

    def _write(self, mode: str, step: int, epoch: int, values: dict[str, float]) -> None:
        line = json.dumps({"mode": mode, "step": step, "epoch": epoch, **values})
        with self._file.open("a") as f:
            f.write(line + "\n")


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
