"""Which process of how many this one is, and where they meet: torchrun, Slurm, or alone.

Read from the environment alone and without torch, so that commands can ask before anything heavy is imported.
DeepSpeed's own discovery wants mpi4py and mmengine's Slurm launcher needs a GPU and fails in an allocation's shell;
neither is used.
"""

import functools
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, Literal

from spark_seg.errors import FailedElsewhere, UserError

Launcher = Literal["torchrun", "slurm", "none"]

# What the Slurm scripts take for "saved, wants to go on" (EX_TEMPFAIL of sysexits.h).
GO_ON = 75
# Slurm's steps that are no `srun`: the batch script, the interactive shell, extern ... have numbers at the top.
_SPECIAL_STEPS = 0xFFFFFF00
# Below Linux's ephemeral ports (32768 and up), above the well-known ones.
_FIRST_PORT, _PORTS = 10000, 20000


@dataclass(frozen=True)
class ProcessEnvironment:
    """One process among those of a run.

    Attributes:
        rank: Its number, 0 to `world_size` - 1.
        world_size: How many there are.
        local_rank: Its number among those of its node.
        address: Name or address of the node of rank 0; empty for a single process, which needs none.
        port: Where rank 0 listens there; 0 for a single process, which takes any free one.
        launcher: Who started it.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    address: str = ""
    port: int = 0
    launcher: Launcher = "none"

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0


def process_environment(environ: Mapping[str, str] | None = None) -> ProcessEnvironment:
    """What the launcher says in the environment.

    torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) come first, then those of a task that
    `srun` started; otherwise it is a single process. So it is in a shell of `salloc` and in the script of
    `sbatch`, where Slurm sets SLURM_NTASKS, and in the script SLURM_PROCID too, but has started no tasks.

    In a Slurm step the address is that of the step's first node and the port follows from the numbers of job and
    step; MASTER_ADDR and MASTER_PORT go before both.

    Args:
        environ: Instead of `os.environ`.

    Raises:
        UserError: The variables contradict each other or are no numbers.
    """
    env = os.environ if environ is None else environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return _from_torchrun(env)
    if "RANK" in env:
        raise UserError(
            "RANK is set without WORLD_SIZE: unset RANK for one process, or start with torchrun"
        )
    if _in_srun_step(env):
        return _from_slurm(env)
    if _number(env, "WORLD_SIZE", 1) > 1:
        raise UserError(
            f"WORLD_SIZE is {env['WORLD_SIZE']} without RANK: unset it for one process, or start with "
            "torchrun (tools/dist_train.sh)"
        )
    if _number(env, "OMPI_COMM_WORLD_SIZE", 1) > 1:
        raise UserError("started by mpirun: use torchrun (tools/dist_train.sh) or srun instead")
    return ProcessEnvironment()


@functools.cache
def this_process() -> ProcessEnvironment:
    """`process_environment()` as it was when first asked for, before any part of the run changed the variables."""
    return process_environment()


def require_one_process() -> None:
    """Raises a UserError where several processes were started for `--strategy single`."""
    if (count := this_process().world_size) > 1:
        raise UserError(
            f"--strategy single runs in one process and {count} were started: leave it out for DeepSpeed, or "
            "start without torchrun and srun"
        )


def _from_torchrun(env: Mapping[str, str]) -> ProcessEnvironment:
    world, rank = _number(env, "WORLD_SIZE"), _number(env, "RANK")
    _check(rank, world, "RANK", "WORLD_SIZE")
    torchrun = "TORCHELASTIC_RUN_ID" in env
    if not torchrun and _in_srun_step(env):
        step = _from_slurm(env)
        if (step.rank, step.world_size) != (rank, world):
            raise UserError(
                f"task {step.rank} of {step.world_size} of a Slurm step, but RANK={rank} and "
                f"WORLD_SIZE={world} are set as well: unset them"
            )
    if world == 1 and not torchrun:
        return (
            ProcessEnvironment()
        )  # with a port of its own: what is set may be a parent's, and in use
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not env.get(name):
            raise UserError(f"RANK and WORLD_SIZE are set without {name}: start with torchrun")
    local = _number(env, "LOCAL_RANK")
    return ProcessEnvironment(
        rank, world, local, env["MASTER_ADDR"], _number(env, "MASTER_PORT"), "torchrun"
    )


def _in_srun_step(env: Mapping[str, str]) -> bool:
    step = env.get("SLURM_STEP_ID", "")
    return "SLURM_PROCID" in env and step.isdigit() and int(step) < _SPECIAL_STEPS


def _from_slurm(env: Mapping[str, str]) -> ProcessEnvironment:
    # The step's own count: `srun -n2` inside an allocation for four tasks has two.
    world = _number(env, "SLURM_STEP_NUM_TASKS", _number(env, "SLURM_NTASKS", 1))
    rank = _number(env, "SLURM_PROCID")
    _check(rank, world, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    if world == 1:
        return ProcessEnvironment(launcher="slurm")
    address = env.get("MASTER_ADDR", "")
    if not address:
        nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST")
        if not nodes:
            raise UserError(
                "a Slurm task without SLURM_JOB_NODELIST: set MASTER_ADDR to its first node"
            )
        address = _node_address(first_host(nodes))
    port = _number(env, "MASTER_PORT", 0) or slurm_port(
        _number(env, "SLURM_JOB_ID"),
        _number(env, "SLURM_STEP_ID"),
        _number(env, "SLURM_RESTART_COUNT", 0),
    )
    return ProcessEnvironment(rank, world, _number(env, "SLURM_LOCALID", 0), address, port, "slurm")


def slurm_port(job: int, step: int, restarts: int = 0) -> int:
    """The port at which the processes of a step meet, 10000 to 29999.

    Steps of one job, neighbouring jobs and a requeued job's attempts have different ones, so that jobs that share a
    node do not meet, nor a new attempt what is left of the one before.
    """
    return _FIRST_PORT + (job * 7 + step + restarts * 1009) % _PORTS


def first_host(nodes: str) -> str:
    """The first host of a list as Slurm compresses it: `gpu[003-005,9],login1` gives `gpu003`.

    Raises:
        UserError: It is no such list.
    """
    # up to the first comma outside of brackets; of each bracket, the first number of the first range
    match = re.match(r"((?:[^,\[\]]|\[[^\[\]]+\])+)(?:,|$)", nodes.strip())
    if match is None:
        raise UserError(f"SLURM_JOB_NODELIST={nodes!r} is no list of hosts: set MASTER_ADDR")
    return re.sub(r"\[([^,\-\]]+)[^\]]*\]", r"\1", match.group(1))


def _node_address(node: str) -> str:
    """The node's name where it can be resolved, else the address that Slurm itself uses for it."""
    import socket

    try:
        socket.getaddrinfo(node, None)
        return node
    except OSError:
        pass
    try:
        shown = subprocess.run(
            ["scontrol", "show", "node", "--oneliner", node],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        shown = ""
    match = re.search(r"\bNodeAddr=(\S+)", shown)
    if match is None:
        raise UserError(
            f"the first node, {node!r}, has no address known here or to scontrol: set MASTER_ADDR"
        )
    return match.group(1)


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = env.get(name)
    if text is None or text == "":
        if default is None:
            raise UserError(f"{name} is not set: start with torchrun or srun")
        return default
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{name}={text!r} is no whole number") from None


def _check(rank: int, world: int, rank_name: str, world_name: str) -> None:
    if world < 1 or not 0 <= rank < world:
        raise UserError(f"{rank_name}={rank} and {world_name}={world} do not go together")


def device_index(local_rank: int, devices: int) -> int:
    """The GPU of a process: its number on the node, or 0 where it sees one device only.

    Args:
        local_rank: The process's number on its node.
        devices: How many GPUs it sees.
    """
    return local_rank % devices if devices else 0


def start_process_group(timeout: timedelta | None = None) -> ProcessEnvironment:
    """Starts the process group of this run through DeepSpeed; a group of one where there is a single process.

    gloo on the CPU and nccl on GPUs, without mpi4py. Sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, which torch
    and DeepSpeed read; LOCAL_RANK becomes the index of the process's GPU, which is what they read it for and
    differs from the local rank where each task sees one device only. Nothing is done where a group exists.

    Args:
        timeout: How long a collective may take; two hours if None, because the others wait while the first process
            checks a zip or copies data. A process that dies is noticed at once all the same.

    Raises:
        UserError: The other processes were not found; see also `process_environment`.
    """
    import torch

    process = this_process()
    if torch.distributed.is_initialized():
        return process
    import deepspeed

    from spark_seg import compat

    compat.skip_deepspeed_cpu_build()
    cuda = torch.cuda.is_available()
    device = device_index(process.local_rank, torch.cuda.device_count() if cuda else 0)
    if cuda:
        torch.cuda.set_device(device)
    for key, value in {
        "RANK": process.rank,
        "LOCAL_RANK": device,
        "WORLD_SIZE": process.world_size,
        "MASTER_ADDR": process.address or "127.0.0.1",
        "MASTER_PORT": process.port or _free_port(),
    }.items():
        os.environ[key] = str(value)
    options = {"timeout": timeout or timedelta(hours=2)}
    try:
        deepspeed.init_distributed(
            dist_backend="nccl" if cuda else "gloo",
            auto_mpi_discovery=False,
            verbose=False,
            **options,
        )
    except (torch.distributed.DistError, RuntimeError, OSError) as error:
        where = f"{process.address}:{process.port}"
        raise UserError(
            f"rank {process.rank} of {process.world_size} did not meet the others at {where} "
            f"({_first_line(error)}): another run may hold the port (set MASTER_PORT), or the address cannot be "
            "reached from here (set MASTER_ADDR)"
        ) from error
    return process


def leave_when_warned() -> None:
    """Until a training listens itself, SIGUSR1 ends the process with `GO_ON`: there is nothing to save yet.

    Slurm may warn of the time limit while a job still imports and looks at its data, and a program that does not expect
    the signal is killed by it: the job would have failed instead of going on.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        os.write(2, b"warned before the training began: nothing to save\n")
        os._exit(GO_ON)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, leave)


def mute_other_ranks() -> None:
    """Leaves standard output to the main process: whatever the others print there is said once already."""
    if not this_process().is_main:
        sys.stdout.flush()
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for the rest of the process


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_first() -> bool:
    """Whether this is the first process of the group, or the only one."""
    import torch

    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def from_first(value: Any) -> Any:
    """The first process's value, on every process."""
    import torch

    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box)
    return box[0]


def first_process(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function on the first process while the others wait; returns its result there and None elsewhere.

    Raises:
        FailedElsewhere: On the others, where the function fails on the first one.
    """
    result, error = None, None
    if is_first():
        try:
            result = function(*args)
        except Exception as e:
            error = e
    told = from_first(str(error) if error else None)
    if error is not None:
        raise error
    if told:
        raise FailedElsewhere(told)
    return result
