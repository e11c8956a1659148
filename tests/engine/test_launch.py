"""Rank, world and address, as launchers leave them in the environment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spark_seg.engine import launch
from spark_seg.engine.launch import (
    ProcessEnvironment,
    device_index,
    first_host,
    process_environment,
    slurm_port,
)
from spark_seg.errors import UserError

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "gpu01",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
}
# What sbatch leaves in its script's environment (Slurm 22.05, seen), where nothing has been started yet ...
BATCH = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NODELIST": "localhost,gpu[3-4]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
# ... and what srun adds in each task.
TASK = {
    **BATCH,
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "localhost,gpu[3-4]",
}
SALLOC = {k: v for k, v in BATCH.items() if k not in ("SLURM_PROCID", "SLURM_LOCALID")}


def test_alone() -> None:
    assert process_environment({}) == ProcessEnvironment()
    assert process_environment({}).is_main


def test_torchrun() -> None:
    found = process_environment(TORCHRUN)
    assert found == ProcessEnvironment(3, 8, 1, "gpu01", 29500, "torchrun")
    assert not found.is_main


def test_torchrun_within_a_slurm_task() -> None:
    """`srun torchrun ...`: one task per node, whose numbers are not those of the processes."""
    assert process_environment({**TASK, **TORCHRUN}).world_size == 8


def test_slurm_task() -> None:
    assert process_environment(TASK) == ProcessEnvironment(
        2, 4, 1, "localhost", slurm_port(4711, 0), "slurm"
    )


def test_the_steps_own_count_and_nodes_hold() -> None:
    """`srun -n2 -w NODE` inside a larger allocation."""
    env = {
        **TASK,
        "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_STEP_ID": "5",
        "SLURM_JOB_NODELIST": "nowhere[1-4]",
    }
    found = process_environment(env)
    assert (found.world_size, found.address, found.port) == (3, "localhost", slurm_port(4711, 5))


@pytest.mark.parametrize("shell", [BATCH, SALLOC])
def test_a_shell_inside_an_allocation_is_one_process(shell: dict[str, str]) -> None:
    assert process_environment(shell) == ProcessEnvironment()


@pytest.mark.parametrize("step", ["4294967290", "4294967291", "4294967292"])
def test_interactive_batch_and_extern_steps_are_one_process(step: str) -> None:
    assert process_environment({**TASK, "SLURM_STEP_ID": step}) == ProcessEnvironment()


def test_master_variables_go_first() -> None:
    found = process_environment({**TASK, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "2222"})
    assert (found.address, found.port) == ("10.0.0.7", 2222)


def test_a_parents_single_process_leaves_the_port_free() -> None:
    """A subprocess of a run inherits RANK and a port that the run listens at."""
    env = {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "9",
    }
    assert process_environment(env) == ProcessEnvironment()


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"RANK": "0"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "without RANK"),
        ({**TORCHRUN, "RANK": "8"}, "do not go together"),
        ({**TORCHRUN, "RANK": "x"}, "no whole number"),
        ({**TORCHRUN, "MASTER_ADDR": ""}, "MASTER_ADDR"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun"),
        ({**TASK, "SLURM_STEP_NODELIST": "", "SLURM_JOB_NODELIST": ""}, "MASTER_ADDR"),
        ({**TASK, "RANK": "0", "WORLD_SIZE": "1"}, "unset them"),
    ],
)
def test_contradictions_are_told(env: dict[str, str], told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        process_environment(env)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n[1-2]", "n1"),
        ("gpu[003-005,9],login1", "gpu003"),
        ("login1,gpu[003-005]", "login1"),
        ("node-a[7,9-12].cluster", "node-a7.cluster"),
        ("rack[1-2]n[01-16]", "rack1n01"),
        ("a-1,a-2", "a-1"),
    ],
)
def test_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


@pytest.mark.parametrize("nodes", ["", "[", "n[1-2", "n]"])
def test_no_list_of_hosts(nodes: str) -> None:
    with pytest.raises(UserError, match="MASTER_ADDR"):
        first_host(nodes)


def test_ports() -> None:
    """In range, and different for neighbouring jobs, steps and attempts."""
    keys = [(job, step, again) for job in range(90, 95) for step in range(3) for again in range(3)]
    ports = {slurm_port(*key) for key in keys}
    assert len(ports) == len(keys)
    assert all(10000 <= slurm_port(job, 0) < 30000 for job in (1, 2**31, 67_000_000))


def test_an_unresolvable_node_has_slurms_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        "#!/bin/sh\necho NodeName=$4 Arch=x86_64 NodeAddr=192.0.2.$# NodeHostName=h\n"
    )
    scontrol.chmod(0o755)
    env = {**TASK, "SLURM_STEP_NODELIST": "no-such-host.invalid"}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert process_environment(env).address == "192.0.2.4"
    scontrol.unlink()
    with pytest.raises(UserError, match=r"no-such-host\.invalid.*MASTER_ADDR"):
        process_environment(env)


def test_device() -> None:
    assert [device_index(rank, 4) for rank in range(4)] == [0, 1, 2, 3]
    assert [device_index(rank, 1) for rank in range(4)] == [0] * 4  # --gpus-per-task=1
    assert device_index(3, 0) == 0


def test_no_torch_for_asking() -> None:
    code = "import sys, spark_seg.engine.launch as m; m.this_process(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=_clean())


def test_other_ranks_are_mute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, said in ((0, "hello\n"), (1, "")):
        with monkeypatch.context() as patch:
            patch.setattr(launch, "this_process", lambda rank=rank: ProcessEnvironment(rank, 2))
            patch.setattr(sys, "stdout", sys.stdout)
            launch.mute_other_ranks()
            print("hello")
        assert capsys.readouterr().out == said


GROUP = """
import os
import torch
from spark_seg.engine.launch import start_process_group
process = start_process_group()
total = torch.tensor([float(process.rank + 1)])
torch.distributed.all_reduce(total)
start_process_group()  # again: nothing happens
print(f"rank {process.rank} local {os.environ['LOCAL_RANK']} of {process.world_size}: {total.item():g}", flush=True)
torch.distributed.destroy_process_group()
"""


def _clean() -> dict[str, str]:
    """The environment without launchers' variables."""
    drop = ("SLURM_", "MASTER_", "TORCHELASTIC", "OMPI_")
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    env = {k: v for k, v in os.environ.items() if not k.startswith(drop) and k not in names}
    root = str(Path(__file__).resolve().parents[2])
    return {**env, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": root}


def test_a_group_of_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", GROUP], env=_clean(), capture_output=True, text=True, timeout=120
    )
    assert "rank 0 local 0 of 1: 1" in done.stdout, done.stderr


def test_a_group_as_srun_starts_it() -> None:
    """Two tasks with nothing but Slurm's variables; neither mpi4py nor a compiler is asked for."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tasks = []
    for rank in range(2):
        env = _clean() | TASK | {"MASTER_PORT": str(port), "SLURM_STEP_NUM_TASKS": "2"}
        env |= {"SLURM_PROCID": str(rank), "SLURM_LOCALID": "0"}
        command = [sys.executable, "-c", GROUP]
        tasks.append(
            subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    for rank, task in enumerate(tasks):
        out, err = task.communicate(timeout=180)
        assert f"rank {rank} local 0 of 2: 3" in out, err


def test_warned_before_the_training_began(tmp_path: Path) -> None:
    """Slurm's warning while the command still imports asks for another start; unexpected, it would be a failure."""
    root = Path(__file__).resolve().parents[2]
    # the signal as soon as the command is about to load its config, which is before anything heavy
    code = (
        "import os, signal, sys\n"
        "import spark_seg.config as config\n"
        "config.find_config = lambda name: os.kill(os.getpid(), signal.SIGUSR1)\n"
        "from spark_seg.cli import run\n"
        "run('train', ['segformer_b0_spark'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=_clean(),
        capture_output=True,
        text=True,
        timeout=60,
        cwd=root,
    )
    assert done.returncode == launch.GO_ON == 75
    assert done.stderr == "warned before the training began: nothing to save\n"
