"""Calls beside the main thread: bounded, and no error lost."""

import errno
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spark_seg.errors import UserError
from spark_seg.submission.background import Background
from spark_seg.submission.metric import SubmissionMetric
from spark_seg.submission.writer import SubmissionWriter

NAMES = [f"test_{index:05d}_img.jpg" for index in range(8)]


def test_all_calls_have_ended_after_wait() -> None:
    done: list[int] = []
    background = Background(threads=2, waiting=3)
    for index in range(20):
        background.run(lambda k: (time.sleep(0.001), done.append(k)), index)
    background.wait()
    assert sorted(done) == list(range(20))


def test_no_more_than_so_many_wait() -> None:
    gate = threading.Event()
    background = Background(threads=1, waiting=3)
    for _ in range(3):
        background.run(gate.wait)
    blocked = threading.Thread(target=background.run, args=(gate.wait,))
    blocked.start()
    blocked.join(0.1)
    assert blocked.is_alive()
    gate.set()
    blocked.join(5)
    assert not blocked.is_alive()
    background.wait()


def test_an_error_is_raised_once_and_the_rest_dropped() -> None:
    gate, seen = threading.Event(), []

    def fail() -> None:
        gate.wait()
        raise UserError("no room left")

    background = Background(threads=1, waiting=8)
    background.run(fail)
    for index in range(4):
        background.run(seen.append, index)
    gate.set()
    with pytest.raises(UserError, match="no room left"):
        background.wait()
    background.wait()
    background.run(seen.append, 9)
    background.wait()
    assert seen[-1] == 9


def sample(name: str) -> dict[str, Any]:
    return {"img_path": name, "pred_sem_seg": {"data": torch.ones(1, 40, 50, dtype=torch.uint8)}}


def test_predictions_are_written_beside_the_loop(tmp_path: Path, monkeypatch: Any) -> None:
    """The loop goes on while a slow disk writes; the zip waits for all."""
    threads = set()
    real = SubmissionWriter.add

    def slow(self: Any, *args: Any) -> None:
        threads.add(threading.current_thread())
        time.sleep(0.02)
        real(self, *args)

    monkeypatch.setattr(SubmissionWriter, "add", slow)
    metric = SubmissionMetric(SubmissionWriter(tmp_path, NAMES))
    start = time.monotonic()
    metric.process(None, [sample(name) for name in NAMES[:3]])
    assert time.monotonic() - start < 0.02
    metric.process(None, [sample(name) for name in NAMES[3:]])
    assert metric.evaluate(len(NAMES)) == {"submission/images": 8}
    assert threading.main_thread() not in threads
    assert metric.writer.report is not None
    assert metric.writer.report.ok


def predict(metric: SubmissionMetric, names: list[str]) -> None:
    for name in names:
        metric.process(None, [sample(name)])
    metric.evaluate(len(names))


def test_disk_full_beside_the_loop(tmp_path: Path) -> None:
    """One line, nothing half written, and what was written is taken up afterwards."""
    import spark_seg.submission.writer as module

    writer = SubmissionWriter(tmp_path, NAMES)
    metric = SubmissionMetric(writer)
    (
        tmp_path / "npz" / f"{socket.gethostname()}.{os.getpid()}.test_00003_layer.npz.tmp"
    ).symlink_to("/dev/full")
    with pytest.raises(UserError, match="no room left while writing") as error:
        predict(metric, NAMES)
    assert "\n" not in str(error.value)
    metric.background.close()
    assert not list(tmp_path.rglob("*.tmp"))
    assert not (tmp_path / "submission.zip").exists()
    again = module.SubmissionWriter(tmp_path, NAMES)
    assert NAMES[3] in again.pending
    assert again.resumed >= 3
    second = SubmissionMetric(again)
    second.process(None, [sample(name) for name in again.pending])
    second.evaluate(len(again.pending))
    assert (tmp_path / "submission.zip").exists()


def test_other_errors_are_not_hidden(tmp_path: Path, monkeypatch: Any) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    metric = SubmissionMetric(SubmissionWriter(tmp_path, NAMES))
    monkeypatch.setattr("spark_seg.submission.writer.write_bytes", broken)
    with pytest.raises(OSError, match="Input/output"):
        predict(metric, NAMES[:1])


def test_labels_of_another_type_are_taken(tmp_path: Path) -> None:
    metric = SubmissionMetric(SubmissionWriter(tmp_path, NAMES[:1]))
    labels = torch.zeros(1, 6, 7, dtype=torch.int64)
    labels[0, 2, 3] = 2
    metric.process(None, [{"img_path": NAMES[0], "pred_sem_seg": {"data": labels}}])
    metric.background.wait()
    with np.load(tmp_path / "npz" / "test_00000_layer.npz") as file:
        assert file["data"].sum() == 1
        assert file["data"][2, 3, 2]
