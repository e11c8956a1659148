"""Which run a checkpoint is of, and what a command should say or spare for its sake."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_seg.errors import UserError

if TYPE_CHECKING:
    from mmengine.config import Config

# What weights were trained for; another value is allowed, and seldom meant.
_TRAINED = ("image_size", "model.data_preprocessor.mean", "model.data_preprocessor.std")


def run_of(checkpoint: str | Path) -> Path | None:
    """The folder of the run that wrote a checkpoint, or None for a file of elsewhere."""
    path = Path(checkpoint).resolve()
    for folder in (path, path.parent.parent):
        if (folder / "config.py").is_file() and (folder / "checkpoints").is_dir():
            return folder
    return None


def results_folder(work_dir: str | Path, checkpoint: str | Path | None, name: str) -> Path:
    """Where results go by default: beside a run's own of that name, not over them, for another run's weights."""
    work, run = Path(work_dir), None if checkpoint is None else run_of(checkpoint)
    if run is None or run == work.resolve() or not (work / "checkpoints").is_dir():
        return work / name
    return work / f"{name}_{run.name}"


def tell_differences(cfg: "Config", checkpoint: str | Path, config: str) -> None:
    """Says on stderr where a checkpoint's run was trained with other values than it is used with.

    Args:
        cfg: The loaded config.
        checkpoint: Of any run.
        config: What the command line gave as the config.
    """
    run = run_of(checkpoint)
    if run is None or (run / "config.py") == Path(config).resolve():
        return
    from spark_seg.config import load_config

    try:
        trained = load_config(str(run / "config.py"))
    except UserError:  # of an older version; nothing is known then
        return
    found = []
    for key in _TRAINED:
        before, now = _at(trained, key), _at(cfg, key)
        if before is not None and before != now:
            found.append(f"{key}={before}, now {now}")
    if found:
        told = f"warning: these weights were trained with {'; '.join(found)}"
        print(f"{told}: to use the run's own, name {run / 'config.py'}", file=sys.stderr)


def _at(cfg: Any, key: str) -> Any:
    for part in key.split("."):
        cfg = None if cfg is None else cfg.get(part)
    return cfg
