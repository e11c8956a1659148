"""How processes find each other under a real Slurm."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster, until

from spark_seg.engine.launch import slurm_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ROOT = Path(__file__).resolve().parents[2]

WHO = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from spark_seg.engine.launch import process_environment
p = process_environment()
print("process", p.rank, p.world_size, p.local_rank, p.address, p.port, p.launcher, flush=True)
"""


@pytest.fixture
def who(tmp_path: Path) -> list[str]:
    """A command that prints what `process_environment` finds."""
    script = tmp_path / "who.py"
    script.write_text(WHO)
    return [sys.executable, str(script)]


def lines(text: str) -> list[str]:
    return sorted(line for line in text.splitlines() if line.startswith("process"))


def test_ranks_address_and_port(slurm: Cluster, who: list[str], tmp_path: Path) -> None:
    """Two nodes with two tasks each; the batch script itself, and a smaller step, count for themselves."""
    script = tmp_path / "job.sh"
    command = " ".join(who)
    script.write_text(
        f"#!/bin/bash\n{command}\nsrun {command}\necho and\nsrun -N1 -n2 -w n2 {command}\n"
    )
    options = ("-N2", "--ntasks-per-node=2", f"--output={tmp_path}/%j.out")
    job = slurm.submit(script, options=options, cwd=tmp_path)
    first, second = slurm.completed(job).split("and\n")
    # n1 has no address but Slurm's own
    port = slurm_port(job, 0)
    assert lines(first) == [
        "process 0 1 0  0 none",
        f"process 0 4 0 127.0.0.1 {port} slurm",
        f"process 1 4 1 127.0.0.1 {port} slurm",
        f"process 2 4 0 127.0.0.1 {port} slurm",
        f"process 3 4 1 127.0.0.1 {port} slurm",
    ]
    assert lines(second) == [
        f"process 0 2 0 127.0.0.1 {slurm_port(job, 1)} slurm",
        f"process 1 2 1 127.0.0.1 {slurm_port(job, 1)} slurm",
    ]


def test_by_hand_inside_an_allocation(slurm: Cluster, who: list[str]) -> None:
    """A shell of salloc is one process; `srun` in it starts as many as there are tasks."""
    command = " ".join(who)
    done = slurm.run("salloc", "-N2", "-n2", "bash", "-c", f"{command}; srun {command}")
    assert [line.split()[1:4] for line in lines(done.stdout)] == [
        ["0", "1", "0"],
        ["0", "2", "0"],
        ["1", "2", "0"],
    ]


def test_jobs_that_share_a_node_do_not_meet(slurm: Cluster, who: list[str], tmp_path: Path) -> None:
    """Two jobs at once have two ports."""
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\nsrun {' '.join(who)}\n")
    options = ("-N2", "-n2", f"--output={tmp_path}/%j.out")
    jobs = [slurm.submit(script, options=options, cwd=tmp_path) for _ in range(2)]
    ports = {line.split()[5] for job in jobs for line in lines(slurm.completed(job))}
    assert len(ports) == 2


def test_a_group_over_two_nodes(slurm: Cluster, tmp_path: Path) -> None:
    """gloo, started through DeepSpeed, sums over both nodes."""
    script = tmp_path / "group.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import torch\n"
        "from spark_seg.engine.launch import start_process_group\n"
        "p = start_process_group()\n"
        "t = torch.tensor([p.rank + 1.0]); torch.distributed.all_reduce(t)\n"
        "print('process', p.rank, t.item(), flush=True)\n"
        "torch.distributed.destroy_process_group()\n"
    )
    done = slurm.run("srun", "-N2", "-n3", sys.executable, str(script), timeout=240)
    assert lines(done.stdout) == ["process 0 6.0", "process 1 6.0", "process 2 6.0"], done.stderr


# What a job does when Slurm warns it, with the scripts' own template around a stand-in for tools/train.py.
STAND_IN = """
import os, signal, sys, time
def save(number, frame):
    with open("signals", "a") as file:
        file.write(f"{os.environ['SLURM_PROCID']} {signal.Signals(number).name}\\n")
    time.sleep(1)
    sys.exit(75 if number == signal.SIGUSR1 else int(os.environ.get("TERM_CODE", 3)))
signal.signal(signal.SIGUSR1, save)
signal.signal(signal.SIGTERM, save)
print("up", sys.argv[1:], flush=True)
if "--resume" not in sys.argv:
    time.sleep(120)
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The scripts around a stand-in for tools/train.py."""
    clone = tmp_path / "a clone"  # whose name has a space
    (clone / "tools").mkdir(parents=True)
    for name in ("launch.sh", "dist_train_slurm.sh"):
        (clone / "tools" / name).write_bytes((ROOT / "tools" / name).read_bytes())
    (clone / "tools" / "train.py").write_text(STAND_IN)
    (clone / "spark_seg").symlink_to(ROOT / "spark_seg")
    return clone


def submit(slurm: Cluster, clone: Path, cwd: Path, *options: str, **env: str) -> int:
    return slurm.submit(
        clone / "tools" / "dist_train_slurm.sh",
        options=("-N2", "-n2", *options),
        cwd=cwd,
        PYTHON=sys.executable,
        **env,
    )


def test_warned_then_started_again(slurm: Cluster, clone: Path, tmp_path: Path) -> None:
    """USR1 to the batch script reaches every task; code 75 requeues; the next start resumes. One log has both."""
    job = submit(slurm, clone, tmp_path, EPOCHS="7")
    slurm.wait_output(job, "up [", 2)
    slurm.warn(job)
    slurm.wait_restart(job)
    output = slurm.completed(job)
    signals = (tmp_path / "signals").read_text().split("\n")
    assert sorted(signals) == ["", "0 SIGUSR1", "1 SIGUSR1"]
    assert "start 1" in output
    assert "asking Slurm to start job" in output
    assert "start 2" in output
    assert output.count("up ['segformer_b2_spark', '--cfg-options', 'epochs=7', '--resume']") == 2


def test_the_time_limit_itself(slurm: Cluster, clone: Path, tmp_path: Path) -> None:
    """A limit shorter than the work: Slurm warns, the tasks save, the job goes on in a second start."""
    job = submit(slurm, clone, tmp_path, "--time=60", "--signal=B:USR1@30")
    slurm.wait_output(job, "up [", 2)
    slurm.limit(job, slurm.minutes(job) + 2)
    slurm.wait_output(job, "asking Slurm to start")
    until(lambda: slurm.state(job) == "PENDING", 120, "the job queued again", slurm.logs)
    slurm.limit(job, 60)
    slurm.wait_restart(job)
    output = slurm.completed(job)
    assert (tmp_path / "signals").read_text().count("SIGUSR1") == 2
    assert output.count("--resume']") == 2


def test_a_termination_reaches_the_tasks(slurm: Cluster, clone: Path, tmp_path: Path) -> None:
    """SIGTERM to the batch script; the tasks' own code is the job's."""
    job = submit(slurm, clone, tmp_path)
    slurm.wait_output(job, "up [", 2)
    slurm.warn(job, signal.SIGTERM)
    assert slurm.wait(job) == "FAILED"
    assert (tmp_path / "signals").read_text().count("SIGTERM") == 2
    assert slurm.show(job)["ExitCode"] == "3:0"


def test_a_cancelled_job_stays_so(slurm: Cluster, clone: Path, tmp_path: Path) -> None:
    """`scancel`: the tasks save and end with 75, and nobody asks for another start."""
    job = submit(slurm, clone, tmp_path, TERM_CODE="75")
    slurm.wait_output(job, "up [", 2)
    slurm.cancel(job)
    assert slurm.wait(job) == "CANCELLED"
    assert (tmp_path / "signals").read_text().count("SIGTERM") == 2
    # Slurm may end the script before it can say that it does not ask
    assert "asking Slurm" not in slurm.output(job)
    assert slurm.restarts(job) == 0


def test_a_task_that_does_not_listen(slurm: Cluster, clone: Path, tmp_path: Path) -> None:
    """Warned while it starts, a task is killed by the warning; the job goes on all the same."""
    (clone / "tools" / "train.py").write_text(
        STAND_IN.replace("signal.signal", 'os.environ["SLURM_PROCID"] == "1" or signal.signal')
    )
    job = submit(slurm, clone, tmp_path)
    slurm.wait_output(job, "up [", 2)
    slurm.warn(job)
    slurm.wait_restart(job)
    assert "start 2" in slurm.completed(job)
    assert slurm.restarts(job) == 1


def test_a_killed_node_restarts_the_job(slurm: Cluster, clone: Path, tmp_path: Path) -> None:
    """--requeue: Slurm itself starts the job again when a node has failed."""
    job = submit(slurm, clone, tmp_path)
    slurm.wait_output(job, "up [", 2)
    try:
        slurm.kill_node("n2")
        until_requeued(slurm, job)
    finally:
        slurm.start_node("n2")
    slurm.wait_restart(job)
    assert "--resume" in slurm.completed(job)
    slurm.wait_idle()


def until_requeued(slurm: Cluster, job: int) -> None:
    until(
        lambda: slurm.state(job) != "RUNNING",
        300,
        "the job off its lost node",
        lambda: f"{slurm.show(job)}\n{slurm.logs()}",
    )


def test_a_killed_task_ends_the_job(slurm: Cluster, clone: Path, tmp_path: Path) -> None:
    """The others do not wait for it, and the job's code tells."""
    job = submit(slurm, clone, tmp_path)
    slurm.wait_output(job, "up [", 2)
    slurm.kill_task(job, 1)
    assert slurm.wait(job, timeout=240) == "FAILED"
    assert "asking Slurm" not in slurm.output(job)


def test_site_file_and_gpu_check(slurm: Cluster, clone: Path, tmp_path: Path) -> None:
    """One sourced file sets the environment; GPUs without tasks are told."""
    site = tmp_path / "site.sh"
    site.write_text("echo site: $UNSET_VARIABLE sourced; false; export SLURM_GPUS_ON_NODE=4\n")
    job = submit(slurm, clone, tmp_path, SPARK_SITE_FILE=str(site))
    assert slurm.wait(job) == "FAILED"
    output = slurm.output(job)
    assert "site: sourced" in output
    assert "error: 4 GPUs but 1 task(s) on a node: submit with --ntasks-per-node=4" in output


def test_a_wrong_value_is_told_once(slurm: Cluster, clone: Path, tmp_path: Path) -> None:
    job = submit(slurm, clone, tmp_path, IMAGE_SIZE="big")
    assert slurm.wait(job) == "FAILED"
    assert slurm.output(job) == "error: IMAGE_SIZE must be a whole number from 1 on, not 'big'\n"


def test_the_scripts_name_no_site() -> None:
    """Partition, account and modules are sbatch's options or the site file's."""
    for command in ("train", "test", "infer"):
        text = (ROOT / "tools" / f"dist_{command}_slurm.sh").read_text()
        set_here = [line.split()[1] for line in text.splitlines() if line.startswith("#SBATCH")]
        names = {option.split("=")[0] for option in set_here}
        # only a training saves at a warning
        warned = {"--signal"} if command == "train" else set()
        assert names == {"--job-name", "--output", "--open-mode", "--requeue"} | warned
        subprocess.run(["bash", "-n", str(ROOT / "tools" / f"dist_{command}_slurm.sh")], check=True)
