"""Whether two run folders hold the same training: weights, optimizer, averages, random state, what was logged."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from spark_seg.engine.curves import read_metrics
from spark_seg.engine.folder import damage

# What a clock says.
CLOCK = ("time", "data_time", "images_per_second", "data_share", "peak_memory_gib", "eta_seconds")


def states(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of a run's last checkpoint, by file."""
    last = folder / "checkpoints" / "last"
    return {path.name: load_file(path) for path in sorted(last.glob("*.safetensors"))}


def lines(folder: Path) -> list[dict[str, Any]]:
    """What was logged, without what a clock says."""
    return [
        {k: v for k, v in row.items() if k not in CLOCK}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


def same(a: Path, b: Path) -> None:
    """Asserts that two runs ended in the same state, bit for bit, and logged the same."""
    assert damage(a / "checkpoints" / "last") is None
    ours, theirs = states(a), states(b)
    assert set(ours) == set(theirs)
    assert {"weights.safetensors", "ema.safetensors", "optimizer.safetensors"} <= set(ours)
    for name, tensors in ours.items():
        assert tensors.keys() == theirs[name].keys()
        for key, value in tensors.items():
            assert torch.equal(value, theirs[name][key]), f"{name}: {key}"
    assert lines(a) == lines(b)
    best = [load_file(folder / "checkpoints" / "best.safetensors") for folder in (a, b)]
    assert best[0].keys() == best[1].keys()
    assert all(torch.equal(best[0][k], best[1][k]) for k in best[0])
