"""Timing and tables that all benchmarks share."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
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
    """Writes `{"rows": [...], ...about}` in one step."""
    make_folder(Path(path).parent)
    text = json.dumps({**about, "rows": list(rows)}, indent=1, allow_nan=False) + "\n"
    write_bytes(path, text.encode())
