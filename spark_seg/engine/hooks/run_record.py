"""A run's record: parameters, metrics per step, curves."""

import json
import time
from pathlib import Path
from typing import Any

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

    def before_train(self, runner: Any) -> None:
        folder = Path(runner.work_dir)
        record = provenance.collect(runner.seed, runner.world_size)
        record["precision"] = runner.strategy.precision
        record["model"] = dict(runner.model_summary)
        record["data"] = {
            "train": self._fingerprint(runner.train_dataloader.dataset),
            "val": self._fingerprint(runner.val_dataloader.dataset) if runner.val_loop else None,
        }
        record["config"] = runner.cfg.to_dict()
        write_params(folder, record)
        self._file = folder / "metrics.jsonl"
        self._file.touch()

    @staticmethod
    def _fingerprint(dataset: Any) -> dict[str, Any]:
        return provenance.data_fingerprint([dataset.get_data_info(i) for i in range(len(dataset))])

    def after_train_iter(self, runner: Any, batch_idx: int, **_: Any) -> None:
        self._since += 1
        last = runner.iter + 1 == runner.max_iters
        if self._since < self.log_every and not last:
            return
        scalars = runner.message_hub.log_scalars
        values = {
            name.removeprefix("train/").removeprefix("decode."): float(buffer.mean(self._since))
            for name, buffer in scalars.items()
            if name.startswith("train/") and name not in ("train/lr", "train/base_lr")
        }
        values["lr"] = float(scalars["train/lr"].current())
        images = runner.train_dataloader.batch_size * runner.world_size
        if values.get("time"):
            values["images_per_second"] = images / values["time"]
            values["data_share"] = values.get("data_time", 0.0) / values["time"]
        self._write("train", runner.iter + 1, runner.epoch + 1, values)
        self._since = 0

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        if not hasattr(self, "_file"):  # a validation alone has no record
            return
        values = {k: float(v) for k, v in (metrics or {}).items()}
        self._write("val", runner.iter, runner.epoch, values)
        if time.monotonic() - self._drawn > self.curves_every:
            self._draw()

    def after_train(self, runner: Any) -> None:
        self._draw()

    def _draw(self) -> None:
        draw_curves(self._file, self._file.with_name("curves.png"))
        self._drawn = time.monotonic()

    def _write(self, mode: str, step: int, epoch: int, values: dict[str, float]) -> None:
        line = json.dumps({"mode": mode, "step": step, "epoch": epoch, **values})
        with self._file.open("a") as f:
            f.write(line + "\n")


def write_params(folder: Path, record: dict[str, Any]) -> None:
    """Writes the record as `training_params.yaml` (for `yaml.safe_load`) and `training_params.json`."""
    import yaml

    record = provenance.plain(record)
    text = yaml.safe_dump(record, sort_keys=False, allow_unicode=True)
    write_bytes(folder / "training_params.yaml", text.encode())
    write_bytes(folder / "training_params.json", json.dumps(record, indent=1).encode())
