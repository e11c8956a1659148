"""Each process's error in a file of its own; the first cause is told, with rank and host."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny

from spark_seg.engine.failures import FIRST, forget_first, recorded
from spark_seg.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys, time
from spark_seg.engine.failures import recorded
from spark_seg.errors import UserError
from spark_seg.cli import _fail
delay, kind, message, folder = sys.argv[1:]
try:
    with recorded(folder):
        time.sleep(float(delay))
        raise {"runtime": RuntimeError, "user": UserError}[kind](message)
except UserError as e:
    if getattr(e, "quiet", False):
        sys.exit(2)
    _fail(str(e), 2)
"""


def start(rank: int, world: int, *args: str) -> subprocess.Popen[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "MASTER"))}
    env |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, *args]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def test_the_first_cause_is_told(tmp_path: Path) -> None:
    folder = str(tmp_path)
    late = ("1.5", "runtime", "Connection closed by peer", folder)
    group = [start(0, 3, *late), start(1, 3, "0", "runtime", "boom", folder), start(2, 3, *late)]
    errors = [process.communicate(timeout=60)[1] for process in group]
    assert all(process.returncode for process in group)
    host = socket.gethostname()
    told = f"the first cause was on rank 1, host {host}: RuntimeError: boom ({tmp_path}/errors/rank_1.txt)"
    assert errors[0].splitlines()[-1] == f"error: {told}; rank 0 stopped after it"
    assert f"rank 1 on {host} failed first: RuntimeError: boom" in errors[1]
    assert errors[2] == "", "told once"
    for rank, text in enumerate(("Connection closed", "boom", "Connection closed")):
        content = (tmp_path / "errors" / f"rank_{rank}.txt").read_text()
        assert content.startswith(f"--- rank {rank}, host {host}, process {group[rank].pid}")
        assert "Traceback" in content
        assert text in content
    assert not [p for p in (tmp_path / "errors").iterdir() if p.name.startswith(".")]


def test_a_users_mistake_on_all_is_told_once(tmp_path: Path) -> None:
    args = ("user", "no such key", str(tmp_path))
    group = [start(0, 2, "0", *args), start(1, 2, "1", *args)]
    errors = [process.communicate(timeout=60)[1] for process in group]
    assert errors[0].splitlines()[-1] == "error: no such key"
    assert errors[1] == ""


def test_a_former_attempts_cause_is_not_this_ones(tmp_path: Path) -> None:
    first = tmp_path / "errors" / FIRST
    first.parent.mkdir()
    first.write_text(json.dumps({"rank": 5, "host": "x", "error": "old", "file": "f", "time": 1.0}))
    process = start(1, 2, "0", "runtime", "new", str(tmp_path))
    assert "failed first: RuntimeError: new" in process.communicate(timeout=60)[1]
    assert json.loads(first.read_text())["error"] == "RuntimeError: new"
    forget_first(tmp_path)
    assert not first.exists()
    forget_first(tmp_path)


def test_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="yours"), recorded(tmp_path):
        raise UserError("yours")
    assert not (tmp_path / "errors").exists()
    with pytest.raises(RuntimeError, match="ours"), recorded(tmp_path):
        raise RuntimeError("ours")
    assert "RuntimeError: ours" in (tmp_path / "errors" / "rank_0.txt").read_text()
    with pytest.raises(KeyboardInterrupt), recorded(tmp_path / "other"):
        raise KeyboardInterrupt
    assert not (tmp_path / "other").exists()


def test_an_unwritable_folder_hides_nothing(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "errors").write_text("a file")
    with pytest.raises(RuntimeError, match="ours"), recorded(tmp_path):
        raise RuntimeError("ours")


TRAINING = """
import sys
from mmengine.hooks import Hook
from spark_seg import register
from spark_seg.engine import build, launch
from spark_seg.cli import run
real = build._build
class Fails(Hook):
    def after_train_iter(self, runner, *_, **__):
        if runner.rank == 1 and runner.iter == 1:
            raise RuntimeError("the card fell off")
def with_failure(cfg, **objects):
    runner = real(cfg, **objects)
    runner.register_hook(Fails())
    return runner
build._build = with_failure
run("train", sys.argv[1:])
"""


@pytest.mark.slow
def test_a_training_of_two_of_which_the_second_fails(tmp_path: Path) -> None:
    tree = tiny.make_tree(tmp_path / "tree", train=4, val=1, size=64)
    script, work = tmp_path / "fails.py", tmp_path / "run"
    script.write_text(TRAINING)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += [
        "--master-port=0",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
        str(script),
    ]
    command += ["segformer_b0_spark", "--work-dir", str(work)]
    command += tiny.command_options(tree, {"batch_size": 1, "val_every": 9})
    env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    begun = time.monotonic()
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280, cwd=ROOT)
    assert done.returncode, "it fails"
    assert time.monotonic() - begun < 240
    assert (
        f"rank 1 on {socket.gethostname()} failed first: RuntimeError: the card fell off"
        in done.stderr
    )
    assert "the card fell off" in (work / "errors" / "rank_1.txt").read_text()
    assert json.loads((work / "errors" / FIRST).read_text())["rank"] == 1
