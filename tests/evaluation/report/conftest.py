"""The folder of an evaluation, made up."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from report_folders import IDS, SATELLITES, make_counts, pictures

from spark_seg.evaluation.faults import CLEAN, FaultCounts, write
from spark_seg.evaluation.report.pictures import PICTURES_FILE, save_pictures
from spark_seg.evaluation.run import summarize, write_results


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Writes the folder of an evaluation below `tmp_path`; returns it."""

    def write_folder(
        name: str = "a/test_val",
        ids: Sequence[str] = IDS,
        satellites: Sequence[str] = SATELLITES,
        seed: int = 0,
        full: bool = True,
        record: dict | None = None,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        counts = make_counts(ids, satellites, seed, calibrated=full)
        counts.save(folder / "counts.npz")
        if not full:
            return folder
        write_results(folder, summarize(counts, resamples=50))
        save_pictures(folder / PICTURES_FILE, pictures(list(ids)[:5]))
        default = {"checkpoint": "best.safetensors", "split": "val", "config": {"lr": 1e-3}}
        (folder / "run.json").write_text(json.dumps(record or default))
        kinds, levels = np.array([CLEAN, "noise", "glare"]), np.array([0, 3, 3])
        stack = np.stack([counts.confusion] * 3)
        write(folder, FaultCounts(counts.ids, kinds, levels, stack, len(ids)))
        return folder

    return write_folder
