"""One training at a time in a work folder, and whose lock it is when folders move and processes die."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny

from spark_seg.engine import failures
from spark_seg.engine import lock as locks
from spark_seg.engine import train as training
from spark_seg.engine.launch import ProcessEnvironment
from spark_seg.engine.lock import FILE, FolderLock
from spark_seg.engine.train import set_aside, train
from spark_seg.errors import UserError

HOLD = """
import sys, time
from spark_seg.engine.lock import FolderLock
with FolderLock(sys.argv[1]) as lock:
    lock.take(True)
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that trains there, until its input is closed."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_PATIENCE", 0.3)


def test_refused_while_another_process_trains_there(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with another(folder) as process, FolderLock(folder) as lock:
        with pytest.raises(UserError, match=f"process {process.pid} on .* is training there: give"):
            lock.take()
        process.kill()  # a lock ends with its process, however that ends
        process.wait()
        lock.take()
        assert str(os.getpid()) in (folder / FILE).read_text()
    assert list(folder.iterdir()) == []


def test_one_that_ends_in_time_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_PATIENCE", 30.0)
    with another(tmp_path) as process, FolderLock(tmp_path) as lock:
        assert process.stdin is not None
        process.stdin.close()
        lock.take()


def test_a_requeued_job_waits_for_a_failed_nodes_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert FolderLock("run").patience > 90


def test_a_training_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    """Neither moved aside nor written to: not even the other's first error is forgotten."""
    cfg = tiny.tiny_config(tiny.make_tree(tmp_path / "tree"), tmp_path / "run")
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "errors").mkdir()
    (folder / "errors" / "first.json").write_text("{}")
    with another(folder):
        before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
        for resume in (False, True):
            with pytest.raises(UserError, match="is training there"):
                train(cfg, "single", resume)
        assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before
    assert [path.name for path in tmp_path.glob("run*")] == ["run"]


def test_a_folder_that_another_training_has_made_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that are started alike on a new folder: who comes second to it is refused, and writes nothing there."""
    folder = tmp_path / "run"
    cfg = tiny.tiny_config(tiny.make_tree(tmp_path / "tree"), folder)
    with ExitStack() as stack:

        def look(_: Any) -> None:
            stack.enter_context(another(folder))
            (folder / "metrics.jsonl").touch()

        monkeypatch.setattr(training, "_look_at_data", look)
        two = ProcessEnvironment(rank=0, world_size=2)  # where errors of others would be recorded
        monkeypatch.setattr(failures, "this_process", lambda: two)
        with pytest.raises(UserError, match="is training there"):
            train(cfg, "single")
        assert sorted(path.name for path in folder.iterdir()) == ["metrics.jsonl", FILE]
    assert [path.name for path in tmp_path.glob("run*")] == ["run"]


def test_the_lock_is_of_the_folder_that_has_the_name(tmp_path: Path) -> None:
    """The former run is moved aside; its lock is let go, the new folder's is held."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    with FolderLock(folder) as lock:
        lock.take()
        aside = set_aside(str(folder))
        assert aside is not None
        assert not (aside / FILE).exists()
        lock.take(True)
        with another(aside):
            pass
        told = subprocess.run(
            [sys.executable, "-c", HOLD, str(folder)],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert "is training there" in told.stderr
    with another(folder):
        pass


def test_workers_that_outlive_a_training_hold_nothing(tmp_path: Path) -> None:
    """Loaders' workers are forked with all that is open; a killed training's linger for seconds."""
    code = HOLD.replace("sys.stdin.read()", "import os; os.fork() or time.sleep(30); os._exit(0)")
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.wait()
        start = time.monotonic()
        with FolderLock(tmp_path) as lock:
            lock.take()
        assert time.monotonic() - start < 10


def test_where_nothing_can_be_locked_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", none)
    with FolderLock(tmp_path) as lock:
        lock.take()
    with FolderLock(tmp_path / "none") as lock:
        lock.take()
    assert not (tmp_path / "none").exists()


def test_a_folder_that_cannot_be_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)

    def busy(*_: object) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr("spark_seg.engine.train.os.rename", busy)
    with pytest.raises(UserError, match=r"cannot be renamed to run.1 \(Device or resource busy\)"):
        set_aside(str(tmp_path / "run"))
