"""kill -9 of any process at any instant: the others stop, and the training goes on as if nothing had been."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from ranks import ROOT, Group, Template, launcher_free
from same_run import same

from spark_seg.engine.curves import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
OPTIONS: dict[str, Any] = {
    **tiny.SMALL_MODEL,
    "epochs": 16,
    "val_every": 4,
    "log_every": 1,
    "checkpoint_steps": 2,
    "num_workers": 1,
    "ema_decay": 0.9,
    "precision": "fp32",
    "zero_stage": 1,
}


class Launched:
    """Two processes started by the command itself; torchrun ends the others when one dies."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self._output = folder / "launched.txt"
        with open(self._output, "w") as out:
            self._torchrun = subprocess.Popen(
                ["bash", str(ROOT / "tools" / "dist_train.sh"), arguments[0], "2", *arguments[1:]],
                env={**launcher_free(), "PYTHON": sys.executable},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                cwd=folder,
            )

    def kill(self, rank: int) -> None:
        os.kill(self.pids(rank)[0], signal.SIGKILL)

    def pids(self, rank: int) -> list[int]:
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [pid for pid in pids if self._is(pid, rank)]

    def _is(self, pid: int, rank: int) -> bool:
        try:
            parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
        # torchrun's child, not a loader's worker
        return parent == self._torchrun.pid and f"RANK={rank}".encode() in environment

    @property
    def running(self) -> bool:
        return self._torchrun.poll() is None

    def wait(self, timeout: float) -> list[int]:
        return [self._torchrun.wait(timeout)]

    def output(self) -> str:
        return self._output.read_text(errors="replace")[-4000:]

    def end(self) -> None:
        if self.running:
            os.killpg(self._torchrun.pid, signal.SIGKILL)
            self._torchrun.wait()


def until(what: Callable[[], bool], run: Group | Launched) -> None:
    end = time.monotonic() + 120
    while not what():
        assert run.running, f"ended before it was killed\n{run.output()}"
        assert time.monotonic() < end, f"nothing happened\n{run.output()}"
        time.sleep(0.002)


class Instants:
    """Random instants of a run that goes on in a folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self._being_written = folder / "checkpoints" / "last.tmp"

    def start(self, run: Group | Launched) -> None:
        """Somewhere between the start and the first steps."""
        if isinstance(run, Launched):
            until(lambda: bool(run.pids(0) and run.pids(1)), run)
        # forked processes have imported everything already
        time.sleep(self.random.uniform(0, 10 if isinstance(run, Launched) else 4))

    def step(self, run: Group | Launched) -> None:
        """Some steps after the start."""
        goal = self._steps() + self.random.randint(1, 4)
        until(lambda: self._steps() >= goal, run)
        time.sleep(self.random.uniform(0, 0.2))

    def save(self, run: Group | Launched) -> None:
        """While a checkpoint is written, after some others."""
        for _ in range(self.random.randint(1, 2)):
            until(lambda: not self._being_written.exists(), run)
            until(self._being_written.exists, run)
        time.sleep(self.random.uniform(0, 0.1))

    def _steps(self) -> int:
        file = self.folder / "metrics.jsonl"
        return file.read_text().count('"train"') if file.is_file() else 0

    @property
    def saving(self) -> bool:
        return self._being_written.exists()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Template]:
    with Template(tmp_path_factory.mktemp("ranks")) as one:
        yield one


def test_twenty_kills(template: Template, tmp_path: Path) -> None:
    """Seventeen in processes as srun starts them, three under `tools/dist_train.sh`; 64 steps, two processes."""
    tree = tiny.make_tree(tmp_path / "tree", train=8, val=1, size=64)
    options = tiny.command_options(tree, OPTIONS)

    def arguments(folder: Path) -> list[str]:
        return ["segformer_b0_spark", "--work-dir", str(folder), *options]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    template.start("train", arguments(whole)).done()
    seed = 3
    instants = Instants(killed, seed)
    plan = ["start"] * 4 + ["step"] * 6 + ["save"] * 7
    instants.random.shuffle(plan)
    plan[4:4], plan[9:9], plan[14:14] = ["start, launched"], ["save, launched"], ["step, launched"]
    told, saving = [], 0
    for number, what in enumerate(plan):
        resume = ["--resume"] if number else []
        kind, launched = what.split(",")[0], "launched" in what
        run: Group | Launched
        if launched:
            run = Launched([*arguments(killed), *resume], tmp_path)
        else:
            run = template.start("train", [*arguments(killed), *resume])
        try:
            getattr(instants, kind)(run)
            rank = instants.random.randint(0, 1)
            if launched and kind == "start":
                time.sleep(3)  # torchrun's own
            inside = instants.saving
            run.kill(rank)
            since = time.monotonic()
            if kind == "start" and isinstance(run, Group):
                # Before they have met only the launcher knows that one died: it ends the others.
                os.kill(run.pids[1 - rank], signal.SIGTERM)
            codes = run.wait(60)
            told.append((what, rank, inside, codes, round(time.monotonic() - since, 2)))
            assert all(codes), f"{told}\n{run.output()}"
        finally:
            run.end()
        saving += inside
    print(*told, sep="\n")
    template.start("train", [*arguments(killed), "--resume"]).done()
    same(killed, whole)
    assert saving >= 4, told
    resumed = [
        row
        for line in (killed / "metrics.jsonl").read_text().splitlines()
        if (row := json.loads(line))["mode"] == "resume"
    ]
    assert len({row["step"] for row in resumed}) > 8, "it got on between the kills"
    assert len(read_metrics(killed / "metrics.jsonl")) == 64 + 4
