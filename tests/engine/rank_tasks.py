"""What the processes of `ranks.Template` do in the tests of this folder, and what one process does to compare."""

import atexit
import json
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import tiny
import torch
from mmengine.hooks import Hook
from safetensors.torch import load_file, save_file

from spark_seg.errors import UserError


class Killed(BaseException):
    """Stands in for a kill: nothing of ours catches it."""


class KillAt(Hook):
    """Dies in a step."""

    priority = "LOWEST"

    def __init__(self, step: int) -> None:
        self.step = step

    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        if runner.iter + 1 == self.step:
            raise Killed


class FixedNorms(Hook):
    """Leaves the batch norms' statistics alone: what a process's own share of a batch changes is not compared."""

    def before_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        fix_norms(runner.strategy.module)


class SaveAtStart(Hook):
    """Saves the state in which a training begins."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.saved = folder, False

    def before_train_epoch(self, runner: Any) -> None:
        if not self.saved:
            runner.save_checkpoint(str(self.folder), "last")
        self.saved = True


def fix_norms(model: torch.nn.Module) -> None:
    """Batch norms into evaluation mode."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()


@contextmanager
def with_hooks(*hooks: Hook) -> Iterator[None]:
    """Runners built in the block have these hooks too."""
    from spark_seg.engine import build

    real = build._build

    def with_them(cfg: Any, **objects: Any) -> Any:
        runner = real(cfg, **objects)
        for hook in hooks:
            runner.register_hook(hook)
        return runner

    with mock.patch.object(build, "_build", with_them):
        yield


def train_once(
    tree: str,
    folder: str,
    options: Mapping[str, Any],
    *,
    resume: bool = False,
    die_at: int | None = None,
    fixed_norms: bool = False,
    save_start: str | None = None,
    poisoned: Mapping[str, list[int]] | None = None,
) -> None:
    """One training.

    Args:
        tree: The data.
        folder: The work folder.
        options: The config's, for `tiny.tiny_config`.
        resume: As `--resume`.
        die_at: The step in which it dies; None to the end.
        fixed_norms: Whether the batch norms' statistics stay.
        save_start: Where the state is saved in which it begins.
        poisoned: `ranks` whose loss is not finite, and in which `steps`, counted from 1.
    """
    from spark_seg.engine.train import train

    hooks: list[Hook] = [KillAt(die_at)] if die_at is not None else []
    hooks += [FixedNorms()] if fixed_norms else []
    hooks += [SaveAtStart(Path(save_start))] if save_start is not None else []
    # a picture of the curves takes longer than these trainings
    curves = mock.patch("spark_seg.engine.hooks.run_record.draw_curves")
    with with_hooks(*hooks), curves, poisoned_losses(**(poisoned or {})):
        try:
            train(tiny.tiny_config(Path(tree), Path(folder), **options), resume=resume)
        except Killed:
            assert die_at is not None
        else:
            assert die_at is None, "it was to die"


@contextmanager
def poisoned_losses(
    ranks: Sequence[int] = (), steps: Sequence[int] | None = None
) -> Iterator[None]:
    """In the block the losses of these processes are not finite; in all steps, or in some."""
    from mmseg.models.segmentors import EncoderDecoder

    real, calls = EncoderDecoder.parse_losses, []

    def poisoned(self: Any, losses: Any) -> Any:
        loss, logs = real(self, losses)
        calls.append(1)
        here = int(os.environ.get("RANK", 0)) in ranks and (steps is None or len(calls) in steps)
        return (loss * float("nan") if here else loss), logs

    with mock.patch.object(EncoderDecoder, "parse_losses", poisoned):
        yield


def trainings(jobs: list[dict[str, Any]]) -> None:
    """Trainings one after the other in this group of processes; see `train_once`."""
    for job in jobs:
        print("job", json.dumps(job), flush=True)
        train_once(**job)
    leave()


def no_group_within(jobs: list[dict[str, Any]]) -> None:
    """As `trainings`; a process group that one of them makes after it has begun to catch signals is an error."""
    from spark_seg.engine.stop import StopRequest

    begin, new_group, within = StopRequest.begin, torch.distributed.new_group, []

    def beginning(self: StopRequest) -> None:
        begin(self)
        within.append(True)

    def making(*args: Any, **kwargs: Any) -> Any:
        assert not within, "here a process would wait for one that has died"
        return new_group(*args, **kwargs)

    with (
        mock.patch.object(StopRequest, "begin", beginning),
        mock.patch.object(torch.distributed, "new_group", making),
        mock.patch.object(torch.distributed.distributed_c10d, "new_group", making),
    ):
        for job in jobs:
            within.clear()
            train_once(**job)
            assert within, "it has begun"
    leave()


def ending(how: str, folder: str) -> None:
    """A command that ends `how`, in a process that would not end by itself for minutes."""
    from spark_seg.cli import call
    from spark_seg.engine.launch import start_process_group

    rank = start_process_group().rank
    atexit.register(lambda: (Path(folder) / f"{how}{rank}").touch())
    threading.Thread(target=time.sleep, args=(600,)).start()

    def main(_: Any) -> int:
        if how == "mistake":
            raise UserError("a mistake")
        if how == "interrupt":
            raise KeyboardInterrupt
        return 0

    call(main)


def leave() -> None:
    """Ends the process group in good order."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def plain_ddp(tree: str, folder: str, options: Mapping[str, Any], steps: int, start: str) -> None:
    """The same training by torch alone: its DistributedDataParallel, its optimizer, a loop.

    Begins with the weights in the file `start`. Leaves `weights.safetensors` after `steps` steps and the first one's
    gradients in `gradients.safetensors`.
    """
    from mmengine.optim import build_optim_wrapper
    from mmseg.registry import MODELS

    from spark_seg.engine.launch import start_process_group
    from spark_seg.engine.runner import SparkRunner

    process = start_process_group()
    cfg = tiny.tiny_config(Path(tree), Path(folder), **options)
    model = MODELS.build(cfg.model)
    model.load_state_dict(load_file(start))
    wrapped = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    wrapper = cfg.optim_wrapper.copy()
    wrapper.type = "OptimWrapper"
    optimizer = build_optim_wrapper(model, wrapper).optimizer
    loader = SparkRunner.build_dataloader(cfg.train_dataloader, seed=cfg.seed)
    model.train()
    fix_norms(model)
    first: dict[str, torch.Tensor] = {}
    done = 0
    for epoch in range(steps):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            if done == steps:
                break
            data = model.data_preprocessor(batch, True)
            loss, _ = model.parse_losses(wrapped(**data, mode="loss"))
            optimizer.zero_grad()
            loss.backward()
            if not first:
                first = {name: p.grad.clone() for name, p in model.named_parameters()}  # type: ignore[union-attr]
            optimizer.step()
            done += 1
    if process.is_main:
        Path(folder).mkdir(parents=True, exist_ok=True)
        state = {k: v.contiguous() for k, v in model.state_dict().items()}
        save_file(state, Path(folder) / "weights.safetensors")
        save_file(first, Path(folder) / "gradients.safetensors")
    leave()


def failing(trap: str, rank: int, command: str, arguments: list[str]) -> None:
    """Runs a command after one of the processes has stepped into one of `TRAPS`."""
    from spark_seg.cli import run

    if int(os.environ["RANK"]) == rank:
        TRAPS[trap]()
    run(command, arguments)


def _full_disk() -> None:
    """No file grows beyond 300 kB, as on a disk with little room left."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))


def _no_prediction() -> None:
    """No prediction can be written."""
    from spark_seg.submission.writer import SubmissionWriter

    def add(self: SubmissionWriter, name: Any, labels: Any) -> None:
        raise UserError(f"no room left while writing {name}")

    SubmissionWriter.add = add  # type: ignore[method-assign]


_STAYS = ExitStack()  # until the process ends


def _no_finite_loss() -> None:
    """This process's losses are not finite."""
    _STAYS.enter_context(poisoned_losses([int(os.environ["RANK"])]))


TRAPS: dict[str, Callable[[], None]] = {
    "disk": _full_disk,
    "prediction": _no_prediction,
    "loss": _no_finite_loss,
}
