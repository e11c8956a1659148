"""Signals that end a training: what was reached is saved, every process ends with the code that asks for more."""

import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from ranks import Group, Template
from same_run import same

from spark_seg.engine import stop
from spark_seg.engine.folder import read_state
from spark_seg.engine.launch import GO_ON, ProcessEnvironment
from spark_seg.engine.stop import StopRequest, TrainingInterrupted

OPTIONS: dict[str, Any] = {
    **tiny.SMALL_MODEL,
    "epochs": 6,  # 4 steps each
    "val_every": 3,
    "precision": "fp32",
    "ema_decay": 0.9,
    "num_workers": 1,
}


@pytest.fixture
def _handlers() -> Iterator[None]:
    former = {number: signal.getsignal(number) for number in stop.SIGNALS}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, GO_ON), (signal.SIGUSR1, GO_ON)],
)
@pytest.mark.parametrize("tasks", [1, 2])
def test_on_its_way_out(
    number: signal.Signals, code: int, tasks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task among others hears nothing of srun, which ends all when the first has left; alone it can be ended."""
    process = ProcessEnvironment(0, tasks, launcher="slurm")
    monkeypatch.setattr(stop, "this_process", lambda: process)
    former = {n: signal.getsignal(n) for n in stop.SIGNALS}
    request = StopRequest(logging.getLogger("test"))

    def leave() -> None:
        with request.listening():
            request.begin()
            os.kill(os.getpid(), number)
            assert request.agreed() == number
            request.leave(number, "step 3")

    with pytest.raises(TrainingInterrupted, match="interrupted at step 3") as caught:
        leave()
    request.wait_for_all()
    assert caught.value.code == code
    assert caught.value.at_once == (tasks > 1)
    for late in (signal.SIGTERM, signal.SIGUSR1):
        assert signal.getsignal(late) == (signal.SIG_IGN if tasks > 1 else former[late])
    assert signal.getsignal(signal.SIGINT) is former[signal.SIGINT]


@pytest.mark.usefixtures("_handlers")
def test_a_training_that_ends_by_itself_leaves_the_handlers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = ProcessEnvironment(0, 2, launcher="slurm")
    monkeypatch.setattr(stop, "this_process", lambda: process)
    former = {n: signal.getsignal(n) for n in stop.SIGNALS}
    request = StopRequest(logging.getLogger("test"))
    with request.listening():
        assert {n: signal.getsignal(n) for n in stop.SIGNALS} == former, "nothing to save yet"
        request.begin()
        assert signal.getsignal(signal.SIGTERM) is not former[signal.SIGTERM]
    assert {n: signal.getsignal(n) for n in stop.SIGNALS} == former


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Template]:
    with Template(tmp_path_factory.mktemp("ranks")) as one:
        yield one


def wait_for_steps(run: Group, folder: Path, count: int) -> None:
    metrics, end = folder / "metrics.jsonl", time.monotonic() + 240
    while not metrics.is_file() or metrics.read_text().count('"train"') < count:
        assert run.running, run.output()
        assert time.monotonic() < end, run.output()
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_group_is_made_while_signals_are_caught(template: Template, tmp_path: Path) -> None:
    """It would be waited for by a process whose peer has died, deaf to the launcher's SIGTERM."""
    tree = tiny.make_tree(tmp_path / "tree", train=8, val=1, size=64)
    options = {key.replace(".", "__"): value for key, value in OPTIONS.items()}
    options |= {"epochs": 2, "val_every": 1, "checkpoint_steps": 3}
    jobs = [
        {"tree": str(tree), "folder": str(tmp_path / f"stage{stage}"), "options": given}
        for stage in (0, 1, 2, 3)
        for given in [{**options, "zero_stage": stage}]
    ]
    template.start("rank_tasks:no_group_within", [jobs]).done()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_signal_to_one_of_two(template: Template, tmp_path: Path) -> None:
    """SIGUSR1, then SIGTERM to one process alone: both save and end with 75; at last the run is as undisturbed."""
    tree = tiny.make_tree(tmp_path / "tree", train=8, val=1, size=64)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"

    def arguments(folder: Path) -> list[str]:
        given = ["segformer_b0_spark", "--work-dir", str(folder)]
        return [*given, *tiny.command_options(tree, OPTIONS)]

    template.start("train", arguments(whole)).done()
    done = 0
    for rank, number in ((1, signal.SIGUSR1), (0, signal.SIGTERM)):
        run = template.start("train", [*arguments(stopped), "--resume"])
        try:
            wait_for_steps(run, stopped, done + 3)
            os.kill(run.pids[rank], number)
            assert run.wait(60) == [GO_ON, GO_ON], run.output()
        finally:
            run.end()
        last = stopped / "checkpoints" / "last"
        reached = read_state(last)["iter"]
        assert done + 3 <= reached < 24
        done = reached
        told = [run.text(r).count(f"step {done}: checkpoint kept in {last}") for r in range(2)]
        assert told == [1, 0], "one process speaks"
    template.start("train", [*arguments(stopped), "--resume"]).done()
    same(stopped, whole)
