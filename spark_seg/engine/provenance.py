"""What a run ran on: versions, code, machine, data. Written into its folder for reproducing it."""

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = [
    "spark-seg",
    "torch",
    "mmengine",
    "mmcv",
    "mmcv-lite",
    "mmsegmentation",
    "deepspeed",
    "numpy",
    "opencv-python",
    "safetensors",
    "openvino",
    "onnxruntime",
]


def collect(seed: int | None, world_size: int) -> dict[str, Any]:
    """Everything but the config: versions, git state, host, devices, Slurm, seed. Plain types only."""
    return {
        "command": [str(a) for a in sys.argv],
        "seed": seed,
        "world_size": world_size,
        "versions": versions(),
        "git": git_state(Path(__file__).resolve().parents[2]),
        "host": host(),
        "gpu": gpus(),
        "slurm": {k: v for k, v in sorted(os.environ.items()) if k.startswith("SLURM_")},
    }


def versions() -> dict[str, str]:
    """Python's and the installed packages' versions."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> dict[str, Any]:
    """Commit and dirty flag of the checkout that the code runs from, or why there is none."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *args],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != folder:
            return {"commit": None, "why": "installed as a package"}
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "why": "not a git checkout"}


def host() -> dict[str, Any]:
    """Name, operating system, processor, memory."""
    import psutil

    cpu = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return {
        "name": platform.node(),
        "os": platform.platform(),
        "cpu": cpu,
        "cpu_cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "cpu_threads": os.cpu_count(),
        "ram_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def gpus() -> dict[str, Any]:
    """GPU names, memory, CUDA and driver; empty lists where there is none."""
    import torch

    names, memory = [], []
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            names.append(properties.name)
            memory.append(round(properties.total_memory / 2**30, 1))
    return {
        "names": names,
        "memory_gib": memory,
        "cuda": torch.version.cuda,
        "driver": _driver() if names else None,
    }


def _driver() -> str | None:
    try:
        out = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        ).stdout
        return out.splitlines()[0].strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def data_fingerprint(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A short name for a data set as it lies on disk: sample ids with the sizes of their files.

    Args:
        samples: Data infos with `sample_id` (or `img_path`), `img_path` and, where labelled, `seg_map_path`.

    Returns:
        `samples`, how many, and `sha256` over ids and file sizes in order.
    """
    digest = hashlib.sha256()
    for sample in samples:
        sizes = [
            os.path.getsize(sample[key]) if sample.get(key) else 0
            for key in ("img_path", "seg_map_path")
        ]
        digest.update(f"{sample.get('sample_id', sample['img_path'])}\0{sizes}\n".encode())
    return {"samples": len(samples), "sha256": digest.hexdigest()}


def plain(value: Any) -> Any:
    """A copy with nothing but dicts, lists, numbers, text, bools and None, so that YAML and JSON hold it safely."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(v) for v in value]
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):  # numpy's float64 is a float too, and YAML refuses it
        if isinstance(value, kind):
            return kind(value)
    if hasattr(value, "item"):
        return value.item()
    return str(value)
