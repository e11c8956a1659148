"""Timing and tables that all benchmarks share."""

import contextlib
import ctypes
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spark_seg.atomic import make_folder, write_bytes


def measure(call: Callable[[], Any], repeat: int, warmup: int = 3) -> dict[str, float]:
    """Times a call.

    Args:
        call: What is measured.
        repeat: How many calls count, at least 1.
        warmup: Calls before that do not.

    Returns:
        `median_ms`, and `low_ms` and `high_ms`, the quartiles; `cpu_ms`, the median of what this
        thread itself computed, which tells a busy machine from a slow call.
    """
    for _ in range(warmup):
        call()
    times, own = [], []
    for _ in range(repeat):
        start, busy = time.perf_counter(), time.thread_time()
        call()
        own.append(1e3 * (time.thread_time() - busy))
        times.append(1e3 * (time.perf_counter() - start))
    low, median, high = (
        statistics.quantiles(times, n=4, method="inclusive") if repeat > 1 else times * 3
    )
    cpu = statistics.median(own)
    return {"median_ms": median, "low_ms": low, "high_ms": high, "cpu_ms": cpu}


def machine() -> dict[str, str]:
    """What was measured on: CPU, visible cores, versions, and the clone's commit where it is one."""
    import cv2
    import numpy as np
    import torch

    import spark_seg

    name = platform.processor() or platform.machine()
    if os.path.isfile("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    return {
        "cpu": f"{len(os.sched_getaffinity(0))} cores of {name}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opencv": cv2.__version__,
        "numpy": np.__version__,
        "spark_seg": spark_seg.__version__,
        "commit": _commit(),
    }


def _commit() -> str:
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def markdown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows of one form as a Markdown table; numbers with three decimals."""
    names = list(rows[0])
    lines = [f"| {' | '.join(names)} |", f"|{'|'.join('---' for _ in names)}|"]
    for row in rows:
        cells = (f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values())
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def write_json(path: str, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """Writes the rows in one step as a JSON list of objects, each with what `about` says of all."""
    make_folder(Path(path).parent)
    known = [{key: _known(value) for key, value in row.items()} | {**about} for row in rows]
    text = json.dumps(known, indent=1, allow_nan=False) + "\n"
    write_bytes(path, text.encode())


def _known(value: Any) -> Any:
    """None for a number that could not be measured: JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Lane:
    """A call that takes part in a race.

    Args:
        call: What competes.
        cuda: Whether it runs on the GPU: timed by its own clock.
    """

    def __init__(self, call: Callable[[], Any], cuda: bool = False) -> None:
        self._call, self._cuda = call, cuda

    def warm(self) -> None:
        """A call that does not count."""
        self._call()

    def peak(self) -> float:
        """As `peak_memory`."""
        return peak_memory(self._call, self._cuda)

    def time(self) -> tuple[float, float]:
        """Milliseconds of a call, and those that all threads of its process computed."""
        busy = time.process_time()
        spent = _milliseconds(self._call, self._cuda)
        return spent, 1e3 * (time.process_time() - busy)


def race(
    calls: Mapping[str, Callable[[], Any] | Lane], repeat: int, warmup: int = 2, cuda: bool = False
) -> dict[str, dict[str, float]]:
    """Times several calls in turn, so that what else the machine does meets all of them alike.

    Before each timed call that takes under a second comes one of the same that does not count: threads of the call
    before wait for work by spinning, and would take the processors from a runtime that has threads of its own.

    Args:
        calls: What competes, by name. One that runs out of memory is left out, which is told.
        repeat: Rounds that count, at least 1.
        warmup: Calls of each before that do not, at least 1.
        cuda: Whether the calls run on the GPU: timed by its own clock. A `Lane` knows by itself.

    Returns:
        For each call that fits the memory `median_ms`, `low_ms` and `high_ms` (quartiles), `cpu_ms` (the median of
        what all threads of its process computed) and `peak_mb`: the most memory it took over what the process held
        before it (RSS; GPU: allocated).
    """
    lanes = {n: call if isinstance(call, Lane) else Lane(call, cuda) for n, call in calls.items()}
    peaks: dict[str, float] = {}
    quick = set()
    for name, lane in lanes.items():
        with _left_out_of(peaks, name):
            for _ in range(warmup):
                lane.warm()
            start = time.perf_counter()
            peaks[name] = lane.peak()
            if time.perf_counter() - start < 1:
                quick.add(name)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in peaks}
    for _ in range(repeat):
        for name in list(peaks):
            with _left_out_of(peaks, name):
                if name in quick:
                    lanes[name].warm()
                times[name].append(lanes[name].time())
    times = {name: values for name, values in times.items() if name in peaks}
    found = {}
    for name, values in times.items():
        walls = [wall for wall, _ in values]
        low, median, high = (
            statistics.quantiles(walls, n=4, method="inclusive") if repeat > 1 else walls * 3
        )
        spread = {"median_ms": median, "low_ms": low, "high_ms": high}
        cpu = statistics.median(own for _, own in values)
        found[name] = {**spread, "cpu_ms": cpu, "peak_mb": peaks[name]}
    return found


def _milliseconds(call: Callable[[], Any], cuda: bool) -> float:
    if not cuda:
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def peak_memory(call: Callable[[], Any], cuda: bool) -> float:
    """The most memory that a call takes over what was held before it, in MB; NaN where the system does not say."""
    if cuda:
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - start) / 1e6
    try:
        # what malloc keeps for reuse would hide what the call asks for
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _status("VmRSS")
    except (OSError, AttributeError):
        call()
        return float("nan")
    call()
    return _status("VmHWM") - before


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1e3
    raise OSError(f"/proc/self/status has no {name}")


class OutOfMemory(RuntimeError):
    """There is not memory enough for a call."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error says; torch has a class for it on GPUs alone."""
    text = str(error)
    said = "out of memory" in text or "can't allocate memory" in text
    return isinstance(error, OutOfMemory | MemoryError) or (
        said and isinstance(error, RuntimeError)
    )


@contextlib.contextmanager
def _left_out_of(peaks: dict[str, float], name: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        peaks.pop(name, None)
        print(f"{name}: out of memory", file=sys.stderr)
