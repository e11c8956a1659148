"""Which checkpoint is the best: ties, an older state, and nothing written without need."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from spark_seg.engine.hooks.checkpoint import BestAndLastHook
from spark_seg.errors import UserError


class Runner:
    """As much of a runner as the hook asks for; counts what is written."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint_dir, self.epoch, self.iter = str(folder), 0, 0
        self.saved: list[int] = []
        self.logger = logging.getLogger("test")
        self.strategy = SimpleNamespace(evaluated_state_dict=self.weights)

    def weights(self) -> dict[str, torch.Tensor]:
        return {"w": torch.full((2,), float(self.epoch))}

    def save_checkpoint(self, folder: Path, name: str) -> None:
        assert name == "best"
        self.saved.append(self.epoch)


def validate(hook: BestAndLastHook, runner: Runner, *rows: Any) -> list[int]:
    """Validations of (score, mIoU); returns the epochs whose weights were written."""
    for row in rows:
        runner.epoch += 1
        metrics = dict(zip(("spark/score", "mIoU/foreground"), row, strict=False))
        hook.after_val_epoch(runner, metrics)
    return runner.saved


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def test_equal_scores_are_decided_by_the_miou(runner: Runner, tmp_path: Path) -> None:
    rows = [(0.0, 0.1), (0.0, 0.3), (0.0, 0.2), (0.0, 0.3), (0.01, 0.05), (0.01, 0.4), (0.0, 0.9)]
    assert validate(BestAndLastHook(), runner, *rows) == [1, 2, 5, 6]
    best = json.loads((tmp_path / "best.json").read_text())
    assert (best["epoch"], best["spark/score"], best["mIoU/foreground"]) == (6, 0.01, 0.4)
    kept = torch.load(tmp_path / "best.pth", weights_only=True)
    assert kept["w"].tolist() == [6.0, 6.0]


def test_what_is_not_better_writes_nothing(runner: Runner, tmp_path: Path) -> None:
    hook = BestAndLastHook()
    validate(hook, runner, (0.5, 0.6))
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert validate(hook, runner, (0.5, 0.6), (0.4, 0.9), (0.5, 0.59)) == [1]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps


def test_taken_up_the_tie_is_known_and_an_older_state_is_not_beaten_by_one(runner: Runner) -> None:
    hook, later, older = BestAndLastHook(), BestAndLastHook(), BestAndLastHook()
    validate(hook, runner, (0.0, 0.3))
    later.take_up(runner, hook.state(runner))
    assert validate(later, runner, (0.0, 0.3), (0.0, 0.31)) == [1, 3]
    older.take_up(runner, {"best": 0.0})
    assert validate(older, runner, (0.0, 0.9), (0.1, 0.2)) == [1, 3, 5]


def test_another_metric_may_decide_and_the_tie_may_be_missing(runner: Runner) -> None:
    alone = BestAndLastHook("spark/score")
    assert validate(alone, runner, (0.2,), (0.2,), (0.3,)) == [1, 3]
    same = BestAndLastHook("mIoU/foreground")
    assert validate(same, runner, (0.9, 0.1), (0.0, 0.1), (0.0, 0.2)) == [1, 3, 4, 6]
    with pytest.raises(UserError, match="did you mean 'spark/score'"):
        validate(BestAndLastHook("spark/scores"), runner, (0.1, 0.1))
