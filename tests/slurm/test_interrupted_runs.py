"""Trainings through sbatch on two nodes that something happens to: they end as if nothing had."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cluster import FINAL, Cluster, until
from same_run import same
from tiny import SMALL_MODEL, command_options

from spark_seg.engine.curves import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).resolve().parents[2]
CONFIG = "segformer_b0_spark"

# 160 steps, some tens of seconds: long enough to be interrupted in the middle.
LONG: dict[str, Any] = {
    **SMALL_MODEL,
    "epochs": 80,
    "val_every": 20,
    "log_every": 5,
    "checkpoint_steps": 1,
    "ema_decay": 0.9,
    "precision": "fp32",
    "num_workers": 1,
}


def submit_long(slurm: Cluster, tree: Path, run: Path, *options: str, clone: Path = ROOT) -> int:
    """A training with `LONG` on two nodes."""
    return slurm.submit(
        clone / "tools" / "dist_train_slurm.sh",
        *(CONFIG, "--work-dir", str(run), *command_options(tree, LONG)),
        options=("-N2", "-n2", *options),
        cwd=run.parent,
        PYTHON=sys.executable,
    )


def steps(run: Path) -> int:
    """The step that was last logged."""
    file = run / "metrics.jsonl"
    rows = [row for row in read_metrics(file) if row["mode"] == "train"] if file.is_file() else []
    return rows[-1]["step"] if rows else 0


def to_the_end(slurm: Cluster, job: int, timeout: float = 900) -> str:
    """Lets a job that was queued again start at once, as often as that happens; its output when it has ended well."""
    end = time.monotonic() + timeout
    while slurm.state(job) not in FINAL:
        assert time.monotonic() < end, f"{slurm.show(job)}\n{slurm.output(job)}\n{slurm.logs()}"
        if slurm.state(job) == "PENDING":
            slurm.wait_restart(job)
        time.sleep(0.5)
    return slurm.completed(job, timeout=5)


@pytest.fixture(scope="module")
def uninterrupted(slurm: Cluster, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of such a training that nothing disturbed."""
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    slurm.completed(submit_long(slurm, tree, run), timeout=900)
    return run


def test_a_node_that_dies_in_training(
    slurm: Cluster, uninterrupted: Path, tree: Path, tmp_path: Path
) -> None:
    """Its daemon, its step and its processes at once: Slurm requeues the job, which ends as if nothing had been."""
    run = tmp_path / "run"
    job = submit_long(slurm, tree, run)
    until(lambda: steps(run) >= 20, 300, "20 steps", lambda: slurm.output(job))
    try:
        slurm.kill_node("n2")
        until(lambda: slurm.state(job) != "RUNNING", 120, "the job off its lost node", slurm.logs)
    finally:
        slurm.start_node("n2")
    reached = steps(run)
    assert 20 <= reached < 160, "in the middle"
    output = to_the_end(slurm, job)
    # Slurm can end a second start too, where its order to clear the lost node comes late
    assert 1 <= output.count("going on from") <= slurm.restarts(job)
    same(run, uninterrupted)
    slurm.wait_idle()


# tools/train.py, with steps of a second: the time limit is in minutes, whatever the machine.
PACED = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from spark_seg.engine.launch import leave_when_warned
leave_when_warned()
from spark_seg import register
from spark_seg.engine.loops import SparkTrainLoop
real = SparkTrainLoop.run_iter
def paced(self, *args):
    time.sleep(1)
    real(self, *args)
SparkTrainLoop.run_iter = paced
from spark_seg.cli import run
run("train")
"""


def test_a_time_limit_shorter_than_the_training(
    slurm: Cluster, uninterrupted: Path, tree: Path, tmp_path: Path
) -> None:
    """Slurm's own warning at its own time: saved, queued again, taken up, and the end is the same."""
    clone = tmp_path / "clone"
    (clone / "tools").mkdir(parents=True)
    for name in ("launch.sh", "dist_train_slurm.sh"):
        (clone / "tools" / name).write_bytes((ROOT / "tools" / name).read_bytes())
    (clone / "tools" / "train.py").write_text(PACED)
    (clone / "spark_seg").symlink_to(ROOT / "spark_seg")
    run = tmp_path / "run"
    job = submit_long(slurm, tree, run, "--time=2", "--signal=B:USR1@60", clone=clone)
    output = to_the_end(slurm, job, timeout=1500)
    assert slurm.restarts(job) >= 1, output
    assert output.count("saved; asking Slurm to start job") == slurm.restarts(job)
    assert output.count("going on from") >= 1
    same(run, uninterrupted)
