"""A file of an evaluation, or a checkpoint, that may not be read is told as that, not as damaged."""

import builtins
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spark_seg.cli import call
from spark_seg.engine.checkpoints import load_state_dict, save_safetensors
from spark_seg.evaluation.faults import CLEAN, FaultCounts
from spark_seg.evaluation.record import read_json
from spark_seg.evaluation.report.pictures import load_pictures, save_pictures
from spark_seg.evaluation.store import ImageCounts


def counts(path: Path) -> None:
    ImageCounts(np.array(["a"]), np.array([""]), np.ones((1, 3, 3), np.int64)).save(path)


def faults(path: Path) -> None:
    one = np.ones((1, 1, 3, 3), np.int64)
    FaultCounts(np.array(["a"]), np.array([CLEAN]), np.array([0]), one, 1).save(path)


FILES: list[tuple[str, Callable[[Path], Any], Callable[[Path], Any]]] = [
    ("counts.npz", counts, ImageCounts.load),
    ("robustness.npz", faults, FaultCounts.load),
    ("pictures.npz", lambda path: save_pictures(path, []), load_pictures),
    ("run.json", lambda path: path.write_text(json.dumps({"split": "val"})), read_json),
    (
        "best.safetensors",
        lambda path: save_safetensors({"w": torch.ones(2)}, path),
        load_state_dict,
    ),
    ("best.pth", lambda path: torch.save({"w": torch.ones(2)}, path), load_state_dict),
]


@pytest.mark.parametrize(("name", "write", "read"), FILES, ids=[file[0] for file in FILES])
def test_no_permission(
    name: str,
    write: Callable[[Path], Any],
    read: Callable[[Path], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / name
    write(path)
    read(path)
    opened = builtins.open

    def forbidden(file: Any, *args: Any, **options: Any) -> Any:
        if str(file) == str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(file, *args, **options)

    # Root may read anything, so that taking the permission away would show nothing in a container.
    monkeypatch.setattr(builtins, "open", forbidden)
    monkeypatch.setattr(io, "open", forbidden)
    with pytest.raises(SystemExit) as e:
        call(lambda _: read(path) and 0)
    assert e.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"error: cannot read {path} (Permission denied): check the path and")
