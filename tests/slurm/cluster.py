"""A real Slurm of two nodes, n1 and n2, on this one host: its own munged, slurmctld and two slurmd on free ports.

Debian's `slurm-wlm` and `munge` are enough. Nothing of the host's own configuration is read or changed. The nodes'
names do not resolve, as on clusters whose node names are not host names: NodeAddr is what connects them.
"""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

NODES = ("n1", "n2")
NEEDED = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol")
# What ends a job.
FINAL = {
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "DEADLINE",
    "BOOT_FAIL",
}

CONF = """
ClusterName=spark
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1,sched_min_interval=0
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
KillWait=10
JobRequeue=1
MailProg=/bin/true
PluginDir={plugins}
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=4000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why Slurm cannot be set up here, or None where it can."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if missing:
        return f"Slurm is not installed ({', '.join(missing)}): apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "slurmd and munged want root"
    return None


def until(
    condition: Callable[[], object], timeout: float, what: str, more: Callable[[], str] = str
) -> None:
    """Waits for a condition; fails after `timeout` seconds, saying `what` and what `more()` tells."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {timeout:g} s\n{more()}"
        time.sleep(0.2)


class Cluster:
    """The daemons, and what tests do with them.

    Attributes:
        folder: Everything of the cluster lies here.
        environment: What commands and jobs run with.
    """

    def __init__(self) -> None:
        # Not pytest's folder, which is root's alone: munged runs as another user.
        self.folder = Path(tempfile.mkdtemp(prefix="spark_slurm_"))
        self.folder.chmod(0o755)
        drop = ("SLURM_", "SBATCH_", "MASTER_", "TORCHELASTIC", "PYTEST", "SPARK_")
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        self.environment = {
            k: v for k, v in os.environ.items() if not k.startswith(drop) and k not in names
        } | {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin",
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
        }
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._jobs: set[int] = set()

    # -- the daemons

    def start(self) -> None:
        """Starts all of it and waits until both nodes are idle."""
        sockets = [socket.socket() for _ in range(3)]
        for one in sockets:
            one.bind(("", 0))
        ports = [one.getsockname()[1] for one in sockets]
        for one in sockets:
            one.close()
        (self.folder / "state").mkdir()
        self._start_munge()
        plugins = next(
            path.parent
            for path in Path("/usr/lib").glob("**/slurm*/auth_munge.so")
            if path.is_file()
        )
        text = CONF.format(
            host=socket.gethostname().split(".")[0],
            folder=self.folder,
            ports=ports,
            plugins=plugins,
        )
        (self.folder / "slurm.conf").write_text(text)
        self._spawn("slurmctld", ["slurmctld", "-D", "-c"])
        for node in NODES:
            self.start_node(node)
        self.wait_idle()

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        folder.mkdir()
        key = folder / "key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        for path in (folder, key):
            shutil.chown(path, "munge", "munge")
        self._spawn(
            "munged",
            [
                *("setpriv", "--reuid=munge", "--regid=munge", "--clear-groups"),
                *("munged", "--foreground", "--force", f"--key-file={key}"),
                *(f"--socket={folder}/socket", f"--pid-file={folder}/pid"),
                *(f"--log-file={folder}/log", f"--seed-file={folder}/seed"),
            ],
        )
        until((folder / "socket").exists, 20, "munged's socket", self.logs)

    def _spawn(self, name: str, command: Sequence[str]) -> None:
        with open(self.folder / f"{name}.out", "ab") as out:
            self._daemons[name] = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                cwd=self.folder,
            )

    def start_node(self, node: str) -> None:
        """Starts a node's slurmd."""
        self._spawn(node, ["slurmd", "-D", "-N", node])

    def kill_node(self, node: str) -> None:
        """As if its power failed: slurmd, its steps and their processes, all at once, with SIGKILL."""
        victims = set(self._processes_of(node))
        daemon = self._daemons.pop(node, None)
        if daemon is not None:
            victims.add(daemon.pid)
        _kill(victims)
        if daemon is not None:
            daemon.wait(10)

    def kill_task(self, job: int, rank: int) -> None:
        """Kills one task of a job's step with SIGKILL."""
        marks = {f"SLURM_JOB_ID={job}", f"SLURM_PROCID={rank}"}
        # the task and its workers: where the variable of a step is, and not the batch script
        _kill(pid for pid, env in _environments() if marks <= env and _in_step(env))

    def _processes_of(self, node: str) -> Iterable[int]:
        marks = {f"SLURMD_NODENAME={node}", f"SLURM_CONF={self.folder}/slurm.conf"}
        for pid, env in _environments():
            if marks <= env:
                yield pid
                parent = _parent(pid)
                if parent is not None and _name(parent).startswith("slurmstepd"):
                    yield parent

    def wait_idle(self, timeout: float = 60) -> None:
        """Waits until nothing runs on either node."""

        def idle() -> bool:
            states = self.run("sinfo", "-h", "-N", "-o", "%T", check=False).stdout.split()
            if "down" in states or "drained" in states:
                for node in NODES:
                    self.run("scontrol", "update", f"node={node}", "state=resume", check=False)
            return states == ["idle"] * len(NODES)

        until(idle, timeout, "both nodes idle", self.logs)

    def stop(self) -> None:
        """Cancels what runs, ends the daemons and removes the folder."""
        for job in self._jobs:
            self.run("scancel", str(job), check=False)
        end = time.monotonic() + 20
        while self._daemons and self.run("squeue", "-h", check=False).stdout.strip():
            if time.monotonic() > end:
                break
            time.sleep(0.2)
        for node in NODES:
            _kill(set(self._processes_of(node)))
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def logs(self) -> str:
        """The ends of all daemons' logs, for a failed test."""
        paths = [
            *self.folder.glob("*.log"),
            *self.folder.glob("*.out"),
            self.folder / "munge" / "log",
        ]
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}"
            for path in paths
            if path.is_file()
        )

    # -- what tests do

    def run(
        self, *command: str, check: bool = True, timeout: float = 60, **options: object
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command such as `sinfo` or `srun` against this cluster."""
        done = subprocess.run(
            command,
            env=self.environment | dict(options.pop("env", {})),  # type: ignore[call-overload]
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            **options,  # type: ignore[call-overload]
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def submit(
        self, script: str | Path, *args: str, options: Sequence[str] = (), cwd: Path, **env: str
    ) -> int:
        """`sbatch OPTIONS SCRIPT ARGS` in a folder, with variables; the job's number."""
        done = self.run("sbatch", "--parsable", *options, str(script), *args, cwd=cwd, env=env)
        job = int(done.stdout.strip())
        self._jobs.add(job)
        return job

    def show(self, job: int) -> dict[str, str]:
        """What `scontrol show job` knows."""
        text = self.run("scontrol", "show", "job", "--oneliner", str(job)).stdout
        return dict(re.findall(r"(\S+?)=(\S*)", text))

    def state(self, job: int) -> str:
        """`PENDING`, `RUNNING`, `COMPLETED` ..."""
        return self.show(job)["JobState"]

    def output(self, job: int) -> str:
        """What the job has written so far."""
        path = Path(self.show(job)["StdOut"])
        return path.read_text(errors="replace") if path.is_file() else ""

    def wait(self, job: int, timeout: float = 600) -> str:
        """Waits until the job is over, whatever became of it; its state."""
        until(
            lambda: self.state(job) in FINAL,
            timeout,
            f"job {job} over",
            lambda: f"{self.show(job)}\n{self.output(job)}\n{self.logs()}",
        )
        return self.state(job)

    def wait_output(self, job: int, text: str, count: int = 1, timeout: float = 400) -> None:
        """Waits until the job has written `text`, `count` times."""

        def there() -> bool:
            return self.output(job).count(text) >= count or self.state(job) in FINAL

        until(there, timeout, f"{count} x {text!r} from job {job}", lambda: self.output(job))
        assert self.output(job).count(text) >= count, self.output(job)

    def completed(self, job: int, timeout: float = 600) -> str:
        """Waits for the job to end well; its output."""
        state = self.wait(job, timeout)
        assert state == "COMPLETED", f"{state}\n{self.output(job)}"
        return self.output(job)

    def warn(self, job: int, number: signal.Signals = signal.SIGUSR1) -> None:
        """The signal that Slurm sends to the batch script before the time limit."""
        self.run("scancel", "--batch", f"--signal={number.name}", str(job))

    def cancel(self, job: int) -> None:
        """`scancel`."""
        self.run("scancel", str(job))

    def requeue(self, job: int) -> None:
        """`scontrol requeue`."""
        self.run("scontrol", "requeue", str(job))

    def limit(self, job: int, minutes: int) -> None:
        """Another time limit."""
        self.run("scontrol", "update", f"job={job}", f"TimeLimit={minutes}")

    def minutes(self, job: int) -> int:
        """How many whole minutes a job has run."""
        days, _, clock = self.show(job)["RunTime"].rpartition("-")
        hours, minutes, _ = clock.split(":")
        return (int(days or 0) * 24 + int(hours)) * 60 + int(minutes)

    def restarts(self, job: int) -> int:
        """How often the job was started again."""
        return int(self.show(job).get("Restarts", 0))

    def wait_restart(self, job: int, count: int = 1, timeout: float = 400) -> None:
        """Waits until a requeued job runs again, without the two minutes that Slurm lets it wait."""

        def running() -> bool:
            shown = self.show(job)
            if shown["JobState"] == "PENDING" and int(shown.get("Restarts", 0)) >= count:
                self.run("scontrol", "update", f"job={job}", "StartTime=now", check=False)
            return shown["JobState"] in {"RUNNING", *FINAL} and int(shown["Restarts"]) >= count

        until(running, timeout, f"job {job} runs again", lambda: f"{self.show(job)}\n{self.logs()}")


def _environments() -> Iterable[tuple[int, set[str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            yield int(entry.name), set(text.split("\0"))


def _in_step(env: set[str]) -> bool:
    return any(item.startswith("SLURM_STEP_ID=") for item in env)


def _parent(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rsplit(")", 1)[1].split()[1])


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _kill(pids: Iterable[int]) -> None:
    for pid in list(pids):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
