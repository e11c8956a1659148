"""A whole training: folder, runner, summary of the model, run."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spark_seg.atomic import make_folder
from spark_seg.engine.build import training_runner
from spark_seg.engine.combinations import require_possible, zero_stage
from spark_seg.engine.failures import forget_first, recorded
from spark_seg.engine.folder import BEST_FILE, newest_whole, require_whole
from spark_seg.engine.launch import (
    first_process,
    from_first,
    require_one_process,
    start_process_group,
    this_process,
)
from spark_seg.engine.lock import FILE as LOCK_FILE
from spark_seg.engine.lock import FolderLock
from spark_seg.errors import UserError
from spark_seg.models.compiling import require_compilable

if TYPE_CHECKING:
    from mmengine.config import Config

    from spark_seg.engine.runner import SparkRunner


def train(
    cfg: "Config", strategy: str = "deepspeed", resume: bool | str | Path = False
) -> "SparkRunner":
    """Trains what a config says and leaves the run's folder (`work_dirs/README.md` explains it).

    Args:
        cfg: As from `spark_seg.config.load_config`, with `work_dir` set.
        strategy: `deepspeed` or `single`.
        resume: A checkpoint folder to go on from; True for the newest whole one of the work folder, or the beginning
            where there is none.

    Returns:
        The runner after training.

    Raises:
        UserError: The checkpoint to go on from is torn, or does not fit; another process trains in the work folder.
    """
    with FolderLock(cfg.work_dir) as lock, recorded(cfg.work_dir):
        return _train(cfg, strategy, resume, lock)


def _train(
    cfg: "Config", strategy: str, resume: bool | str | Path, lock: FolderLock
) -> "SparkRunner":
    if strategy == "deepspeed":
        start_process_group()
    else:
        require_one_process()
    first_process(lock.take)  # before anything in the folder is changed
    require_possible(cfg, strategy, this_process().world_size, torch.cuda.is_available())
    stage = zero_stage(cfg, this_process().world_size) if strategy == "deepspeed" else 0
    require_compilable(cfg, stage, True)
    first_process(forget_first, cfg.work_dir)
    # One process decides for all: a network file system may show each of them something else.
    source = from_first(first_process(find_resume, cfg.work_dir, resume))
    if source is not None:
        first_process(tell_changes, cfg, source)
    first_process(_look_at_data, cfg)
    # before the runner: building a model draws random numbers, and the runner sets the seed
    model = from_first(first_process(describe_model, cfg, source is None))
    first_process(_take_folder, cfg, lock, source is None)  # most mistakes are told by now
    runner = training_runner(cfg, strategy, source)
    runner.model_summary = model
    summary = ", ".join(f"{key} {value}" for key, value in model.items())
    runner.logger.info(
        f"model: {summary}; precision {runner.strategy.precision}; work folder {cfg.work_dir}"
    )
    runner.train()
    best = Path(runner.checkpoint_dir) / "best.json"
    if runner.rank == 0:
        if best.is_file():
            print(f"best checkpoint: {best.with_name(BEST_FILE)}")
        print(f"curves: {Path(cfg.work_dir) / 'curves.png'}")
    return runner


def _take_folder(cfg: "Config", lock: FolderLock, anew: bool) -> None:
    """Makes the work folder this training's; `anew`: a former run is moved out of it."""
    lock.take()  # looking at the data took its time: another training may have made the folder meanwhile
    if anew:
        set_aside(cfg.work_dir, cfg.get("pretrained"))
    lock.take(True)
    forget_first(cfg.work_dir)  # whoever else wanted a new folder may have failed in it before


def find_resume(work_dir: str, resume: bool | str | Path) -> Path | None:
    """The checkpoint folder to go on from, or None to begin.

    A job that Slurm has queued again goes on from its own newest checkpoint, whichever it was started with.
    """
    if resume is False or resume is None:
        return None
    if resume is not True and not int(os.environ.get("SLURM_RESTART_COUNT") or 0):
        return require_whole(resume)
    found, notes = newest_whole(Path(work_dir) / "checkpoints")
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    if found is None and resume is not True:
        return require_whole(resume)  # queued again before anything was saved
    if found is None:
        print(f"no checkpoint in {work_dir} yet: beginning")
    return found


def tell_changes(cfg: "Config", source: Path) -> None:
    """Says in one line which plain values of the config are others than when the checkpoint's run last began.

    Of groups and lists of groups nothing is said, nor of a staged copy of the data.
    """
    from spark_seg.config import load_config, unresolved

    try:
        before = unresolved(load_config(str(source.parent.parent / "config.py")))
    except UserError:  # a checkpoint that was moved, or of an older version
        return
    changed = [
        f"{key}={value!r}, before {before[key]!r}"
        for key, value in unresolved(cfg).items()
        if key != "work_dir" and before.get(key, value) != value and _is_plain(value)
    ]
    if changed:
        print(f"going on under another config: {'; '.join(changed)}")


def _is_plain(value: Any) -> bool:
    items = value if isinstance(value, list | tuple) else [value]
    return not any(isinstance(item, dict) for item in items)


def _look_at_data(cfg: "Config") -> None:
    """Lists the frames of both splits, so that what is wrong with them is told before a former run is moved."""
    from mmseg.registry import DATASETS

    for name in ("train_dataloader", "val_dataloader"):
        if cfg.get(name):
            dataset = DATASETS.build({**cfg[name]["dataset"], "lazy_init": True})
            if name == "train_dataloader" and hasattr(dataset, "require_use_of_cache"):
                dataset.require_use_of_cache()
            frames, batch = len(dataset.list_frames()), int(cfg[name].get("batch_size", 1))
            if name == "train_dataloader" and frames < batch:
                raise UserError(
                    f"batch_size={batch} is more than the {frames} frames: make it smaller"
                )


def describe_model(cfg: "Config", weights: bool = False) -> dict[str, str]:
    """Parameters and FLOPs at the config's image size, as text for people.

    Args:
        cfg: As from `load_config`.
        weights: Whether to load the config's `pretrained` for a trial.

    Raises:
        UserError: There are no such weights, or they do not fit.
    """
    from mmseg.registry import MODELS

    from spark_seg.models.pretrained import load_pretrained
    from spark_seg.models.summary import count_flops, count_parameters

    model = MODELS.build(cfg.model)
    if weights:
        load_pretrained(model, cfg.get("pretrained"), cfg.get("variant"), quiet=True)
    flops = count_flops(model, cfg.image_size)
    return {
        "variant": str(cfg.get("variant")),
        "parameters": f"{count_parameters(model)['total'] / 1e6:.3f} M",
        "FLOPs": f"{flops / 1e9:.1f} G at {cfg.image_size}x{cfg.image_size}",
    }


def set_aside(work_dir: str, pretrained: str | None = None) -> Path | None:
    """Moves a work folder that holds a former run to `<name>.1`, `.2` ..., so that nothing of it is lost.

    Args:
        work_dir: The folder.
        pretrained: Where the training's weights come from.

    Returns:
        Where it went, or None where there was nothing to move.

    Raises:
        UserError: The weights would be moved with it; the folder cannot be renamed.
    """
    folder = Path(work_dir).resolve()
    if not (folder / "checkpoints").is_dir() and not (folder / "metrics.jsonl").is_file():
        make_folder(folder)
        return None
    weights = Path((pretrained or "").removeprefix("backbone:"))
    if pretrained and weights.exists() and weights.resolve().is_relative_to(folder):
        raise UserError(
            f"pretrained={pretrained} lies in the work folder, which is moved aside for a new run: give another "
            "--work-dir"
        )
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    try:
        os.rename(folder, aside)
    except OSError as error:  # a mount point, or a folder above that may not be written
        raise UserError(
            f"{folder} holds a former run and cannot be renamed to {aside.name} ({error.strerror}): give another "
            "--work-dir, or go on with --resume"
        ) from error
    (aside / LOCK_FILE).unlink(missing_ok=True)
    make_folder(folder)
    print(f"the former run in {folder} is now {aside}")
    return aside
