"""The processes of a run, for tests: forked from one that has imported everything, so that a start takes no seconds.

Each is a process of its own with torchrun's variables in its environment, can be killed like one, and runs a command's
`main` or a function of a test; only the imports are done already.
"""

import ctypes
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = (
    *("torch", "deepspeed", "mmengine.runner", "safetensors.torch", "matplotlib.pyplot", "sympy"),
    *("spark_seg.register", "spark_seg.engine.train", "spark_seg.cli.train", "spark_seg.cli.infer"),
    *("spark_seg.cli.test", "torch._dynamo", "deepspeed.runtime.zero.muon.original_muon"),
)
_PR_SET_PDEATHSIG = 1


def launcher_free(environ: dict[str, str] | None = None) -> dict[str, str]:
    """An environment without the variables of launchers and of pytest."""
    drop = ("SLURM_", "MASTER_", "TORCHELASTIC", "OMPI_", "SPARK_", "PYTEST")
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    given = dict(os.environ if environ is None else environ)
    env = {k: v for k, v in given.items() if not k.startswith(drop) and k not in names}
    return env | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Group:
    """The processes of one run.

    Attributes:
        pids: Of rank 0, 1 ...
        outputs: The files that hold what each has written.
    """

    def __init__(self, template: "Template", pids: list[int], outputs: list[Path]) -> None:
        self._template, self.pids, self.outputs = template, pids, outputs
        self._codes: dict[int, int] = {}

    def kill(self, rank: int) -> None:
        """SIGKILL."""
        os.kill(self.pids[rank], signal.SIGKILL)

    def code(self, rank: int) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if rank not in self._codes:
            status = self._template.ask({"poll": self.pids[rank]})["status"]
            if status is None:
                return None
            self._codes[rank] = os.waitstatus_to_exitcode(status)
        return self._codes[rank]

    @property
    def running(self) -> bool:
        """Whether any of them is."""
        return any(self.code(rank) is None for rank in range(len(self.pids)))

    def wait(self, timeout: float = 300) -> list[int]:
        """Waits for all; their exit codes."""
        end = time.monotonic() + timeout
        while self.running:
            if time.monotonic() > end:
                self.end()
                raise AssertionError(f"still running after {timeout:g} s\n{self.output()}")
            time.sleep(0.02)
        return [self.code(rank) or 0 for rank in range(len(self.pids))]

    def done(self, timeout: float = 300) -> "Group":
        """Waits for all and asserts that they ended well."""
        codes = self.wait(timeout)
        assert codes == [0] * len(codes), f"{codes}\n{self.output()}"
        return self

    def end(self) -> None:
        """Kills those that still run."""
        for rank in range(len(self.pids)):
            if self.code(rank) is None:
                self.kill(rank)
                while self.code(rank) is None:
                    time.sleep(0.01)

    def text(self, rank: int) -> str:
        """What a process has written."""
        return self.outputs[rank].read_text(errors="replace")

    def output(self) -> str:
        """The ends of what all have written."""
        return "\n".join(f"== rank {r}\n{self.text(r)[-3000:]}" for r in range(len(self.outputs)))


class Template:
    """The process that the others are forked from; a context manager.

    Args:
        folder: For the outputs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0

    def __enter__(self) -> "Template":
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=launcher_free(),
            cwd=self.folder,
        )
        threads = self._line()["threads"]
        # jemalloc looks after its own; any other thread would be missing in the forked processes
        assert threads in (["python"], ["jemalloc_bg_thd", "python"]), threads
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """A request's answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._line()

    def start(
        self,
        what: str,
        arguments: Sequence[Any],
        world: int = 2,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Group:
        """Starts a run.

        Args:
            what: A command such as `train`, or a function as `module:name`.
            arguments: The command's arguments, or the function's; anything that JSON can say.
            world: How many processes.
            env: More variables.
            cwd: Where.
        """
        self._count += 1
        port, pids, outputs = free_port(), [], []
        for rank in range(world):
            variables: dict[str, str] = {}
            if world > 1:
                variables = {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(world),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
            output = self.folder / f"run{self._count}_rank{rank}.txt"
            request = {
                "what": what,
                "arguments": list(arguments),
                "out": str(output),
                "env": {**variables, **(env or {})},
                "cwd": str(cwd or self.folder),
            }
            pids.append(self.ask(request)["pid"])
            outputs.append(output)
        return Group(self, pids, outputs)


def _serve() -> None:
    """The template's loop; in a forked process it returns what is to be run."""
    for name in IMPORTS:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    threads = Path("/proc/self/task").iterdir()
    answer({"threads": sorted((thread / "comm").read_text().strip() for thread in threads)})
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer({"status": status if pid else None})
            continue
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            answer({"pid": pid})
            continue
        os.close(answers.fileno())
        _run(request)
        return


def _run(request: dict[str, Any]) -> None:
    # nothing of a test that was killed itself goes on
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    out = os.open(request["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    what, arguments = request["what"], request["arguments"]
    if ":" in what:
        module, name = what.split(":")
        sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "engine")]
        getattr(importlib.import_module(module), name)(*arguments)
        return
    from spark_seg.cli import run

    sys.argv = [what, *arguments]
    run(what, arguments)


if __name__ == "__main__":
    _serve()
