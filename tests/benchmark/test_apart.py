"""Ways in processes of their own: what they answer, what they raise, how their memory is set."""

import ctypes
import os
import platform
import signal
from collections.abc import Callable, Sequence

import pytest

from spark_seg.benchmark.apart import Ways
from spark_seg.benchmark.contestants import sweep
from spark_seg.benchmark.timing import Lane, race
from spark_seg.errors import UserError


def make(way: str, what: str):
    if way == "wrong":
        raise UserError("nothing of the kind")
    if way == "broken":
        raise ValueError("a mistake of ours")
    if way == "full":
        return full
    if what == "ends":
        return lambda: os._exit(3)
    if what == "killed":  # as the system does where memory does not suffice
        return lambda: os.kill(os.getpid(), signal.SIGKILL)
    return lambda: [0] * 100_000


def full() -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


def kept(way: str):
    """Raises where freed memory does not stay in the process."""
    return keeps_memory


def keeps_memory() -> None:
    def resident() -> int:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * 4096

    libc = ctypes.CDLL("libc.so.6")
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    before = resident()
    block = libc.malloc(24 << 20)
    ctypes.memset(block, 1, 24 << 20)
    libc.free(block)
    if resident() - before < 20 << 20:
        raise RuntimeError("it went back to the system")


def test_they_race_and_end() -> None:
    with Ways(make, True, ["a"], 1) as ways:
        found = race(ways.calls(["a", "a again", "b"], "list"), repeat=2)
        processes = [process._process for process in ways._processes.values()]
        assert len(processes) == 2, "one for each first word"
        assert all(isinstance(lane, Lane) for lane in ways.calls(["b"], "list").values())
        assert list(found) == ["a", "a again", "b"]
        assert all(row["median_ms"] > 0 and row["cpu_ms"] > 0 for row in found.values())
        assert os.getpid() not in [process.pid for process in processes]
    assert not any(process.is_alive() for process in processes)


def test_what_goes_wrong_there(capsys: pytest.CaptureFixture[str]) -> None:
    with Ways(make, True, [], None) as ways:
        with pytest.raises(UserError, match="nothing of the kind"):
            race(ways.calls(["wrong"], ""), repeat=1)
        with pytest.raises(RuntimeError, match="a mistake of ours"):
            race(ways.calls(["broken"], ""), repeat=1)
        assert list(race(ways.calls(["full", "b"], "list"), repeat=1)) == ["b"]
        assert race(ways.calls(["c"], "killed"), repeat=1) == {}
        assert list(race(ways.calls(["c"], "list"), repeat=1)) == ["c"], "in another process"
        with pytest.raises(RuntimeError, match="exit code 3"):
            race(ways.calls(["d"], "ends"), repeat=1)
    said = capsys.readouterr().err
    assert said.splitlines()[-2:] == ["full: out of memory", "c: out of memory"]


MALLOC_SET = any(name.startswith("MALLOC_") for name in os.environ)


@pytest.mark.skipif(
    MALLOC_SET or platform.libc_ver()[0] != "glibc",
    reason="not glibc, or the user set MALLOC_*",
)
def test_a_way_without_memory_enough_is_tried_with_smaller_batches(
    capsys: pytest.CaptureFixture[str],
) -> None:
    most = {"stock": 20, "ours": 70, "greedy": 3, "never": 0}
    asked: list[tuple[int, list[str]]] = []

    def measure(ways: Sequence[str], batch: int) -> dict[str, dict[str, float]]:
        asked.append((batch, list(ways)))

        def call(way: str) -> Callable[[], None]:
            def run() -> None:
                if batch > most[way]:
                    raise RuntimeError("CUDA out of memory")

            return run

        return race({way: call(way) for way in ways}, repeat=1, warmup=1)

    found = list(sweep([64, 8, 8, 128], list(most), "stock", measure))
    assert asked == [
        (8, ["stock", "ours", "greedy", "never"]),
        (4, ["stock", "greedy", "never"]),
        (2, ["stock", "greedy", "never"]),
        (1, ["stock", "never"]),
        (64, ["stock", "ours"]),  # who did not fit before is not asked again
        (32, ["stock"]),
        (16, ["stock"]),
        (128, ["ours"]),
    ]
    assert [(batch, list(rows)) for batch, rows in found] == [
        (8, ["stock", "ours"]),
        (4, ["stock"]),
        (2, ["stock", "greedy"]),
        (1, ["stock"]),
        (64, ["ours"]),
        (32, []),
        (16, ["stock"]),
        (128, []),
    ]
    assert "greedy: out of memory" in capsys.readouterr().err


def make_too_large(way: str) -> Callable[[], None]:
    if way == "large":
        raise RuntimeError("CUDA out of memory")
    return lambda: None


def test_a_way_that_does_not_fit_when_it_is_made_is_left_out_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Ways(make_too_large, False, (), None) as ways:
        assert list(race(ways.calls(["large", "small"]), repeat=1)) == ["small"]
    assert "large: out of memory" in capsys.readouterr().err


def test_memory_is_kept_for_ours_alone() -> None:
    with Ways(kept, True, ["stock"], None) as ways:
        calls = ways.calls(["stock", "ours"])
        ours, stock = calls["ours"], calls["stock"]
        assert isinstance(ours, Lane)
        assert isinstance(stock, Lane)
        ours.warm()
        with pytest.raises(RuntimeError, match="went back"):
            stock.warm()


def test_together_all_are_here() -> None:
    with Ways(make, False, [], None) as ways:
        calls = ways.calls(["a", "b"], "list")
        assert not any(isinstance(call, Lane) for call in calls.values())
        assert not ways._processes
        assert list(race(calls, repeat=1)) == ["a", "b"]
