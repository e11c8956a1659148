"""Trainings through sbatch on two nodes that something happens to: they end as if nothing had."""

import sys
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, until
from same_run import same
from tiny import SMALL_MODEL, command_options

from spark_seg.engine.curves import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).resolve().parents[2]
CONFIG = "segformer_b0_spark"

# 120 steps, some tens of seconds: long enough to be interrupted in the middle.
STEPS = 120
LONG: dict[str, Any] = {
    **SMALL_MODEL,
    "epochs": 30,
    "batch_size": 1,  # 8 frames, 2 processes: 4 steps an epoch
    "val_every": 15,
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


@pytest.fixture(scope="module")
def uninterrupted(slurm: Cluster, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of such a training that nothing disturbed."""
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    slurm.completed(submit_long(slurm, tree, run), timeout=900)
    return run


def test_a_node_that_dies_in_training(
    slurm: Cluster, uninterrupted: Path, tree: Path, tmp_path: Path
) -> None:
    """Its daemon, its step and its processes at once: the job is queued again and ends as if nothing had been.

    The two minutes that Slurm lets it wait are for its order to clear the lost node, which it sends once more when the
    node is back and which would end a start that came sooner.
    """
    run = tmp_path / "run"
    job = submit_long(slurm, tree, run)
    until(lambda: steps(run) >= 20, 300, "20 steps", lambda: slurm.output(job))
    try:
        slurm.kill_node("n2")
        reached = steps(run)
        until(lambda: slurm.state(job) != "RUNNING", 300, "the job off its lost node", slurm.logs)
    finally:
        slurm.start_node("n2")
    assert 20 <= reached < STEPS, "in the middle"
    output = slurm.completed(job, timeout=900)
    assert slurm.restarts(job) == 1
    assert output.count("going on from") == 1
    same(run, uninterrupted)
    slurm.wait_idle()


# tools/train.py, with steps of a second and more: the time limit is in minutes, whatever the machine.
PACED = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from spark_seg.engine.launch import leave_when_warned
leave_when_warned()
from spark_seg import register
from spark_seg.engine.loops import SparkTrainLoop
real = SparkTrainLoop.run_iter
def paced(self, *args):
    if not self.runner.resume_from:
        time.sleep(1.5)
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
    job = submit_long(slurm, tree, run, "--time=60", "--signal=B:USR1@60", clone=clone)
    # How long a start takes is up to the machine: the limit follows when the training is under way.
    until(lambda: steps(run) >= 5, 300, "5 steps", lambda: slurm.output(job))
    # Slurm looks every half minute: the warning comes in half a minute to two
    slurm.limit(job, slurm.minutes(job) + 3)
    slurm.wait_output(job, "asking Slurm to start")
    assert f"asking Slurm to start job {job} again" in slurm.output(job)
    reached = steps(run)
    assert 5 <= reached < STEPS, "in the middle"
    until(lambda: slurm.state(job) == "PENDING", 120, "the job queued again", slurm.logs)
    slurm.limit(job, 60)
    slurm.wait_restart(job)
    output = slurm.completed(job, timeout=900)
    assert slurm.restarts(job) == 1
    assert output.count("going on from") == 1
    same(run, uninterrupted)
