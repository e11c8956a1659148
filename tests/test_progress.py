"""Progress: lines without a terminal, a bar on one, and honest numbers after a resume."""

import io
import re
import sys

import pytest

from spark_seg import progress
from spark_seg.progress import Progress, track


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def test_a_line_every_few_seconds_and_one_at_the_end(clock, capsys):
    bar = Progress(100, "evaluate", every=10)
    for _ in range(100):
        clock.now += 0.5
        bar.update()
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "evaluate: 20/100 img, 2.0 img/s, 0:40 left"
    assert [line.split()[1] for line in lines[:4]] == ["20/100", "40/100", "60/100", "80/100"]
    assert lines[-1] == "evaluate: 100/100 img, 2.0 img/s, in 0:50"


def test_nothing_goes_to_stdout(clock, capsys):
    with Progress(3, "work") as bar:
        bar.update(3)
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.count("\n") == 1


def test_items_of_an_earlier_run_count_as_done_but_not_for_the_rate(clock, capsys):
    bar = Progress(100, "infer", every=10, done=60)
    clock.now += 10
    bar.update(20)
    assert capsys.readouterr().err == "infer: 80/100 img, 2.0 img/s, 0:10 left\n"


def test_hours(clock, capsys):
    bar = Progress(10_000, "train", unit="it", every=1)
    clock.now += 2
    bar.update(1)
    assert "0.5 it/s, 5:33:18 left" in capsys.readouterr().err


def test_no_rate_yet_is_a_question_mark(clock, capsys):
    with Progress(5, "work"):
        pass
    assert capsys.readouterr().err == "work: 0/5 img, 0.0 img/s, ? left\n"


def test_closes_after_an_error(clock, capsys):
    def fail():
        with Progress(5, "work") as bar:
            bar.update(2)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert capsys.readouterr().err.startswith("work: 2/5")


def test_a_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(8, "evaluate", done=2) as bar:
        bar.update(6)
    text = terminal.getvalue()
    assert "\r" in text
    assert re.search(r"evaluate.*8/8", text)


def test_track_hands_on_every_item(capsys):
    seen = list(track(iter("abc"), 3, "work", "letters"))
    assert seen == ["a", "b", "c"]
    assert "work: 3/3 letters" in capsys.readouterr().err
