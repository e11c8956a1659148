"""A training that is interrupted and taken up equals the uninterrupted one, bit for bit, on the CPU in fp32."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from mmengine.hooks import Hook
from safetensors.torch import load_file
from same_run import same, states

from spark_seg.engine.curves import read_metrics
from spark_seg.engine.folder import damage, newest_whole, read_state
from spark_seg.engine.stepping import NotFiniteError
from spark_seg.engine.train import train
from spark_seg.errors import UserError

STAGES = ["single", 0, 1, 2, 3]
OPTIONS: dict[str, Any] = {"ema_decay": 0.9, "precision": "fp32", "log_every": 3, "epochs": 2}
# Adam divides by a gradient's size: where that is rounding alone, `eps` keeps it what it is.
OPTIONS["optim_wrapper__optimizer__eps"] = 1e-2


class Killed(BaseException):
    """Stands in for a kill: nothing of ours catches it."""


class KillAt(Hook):
    priority = "LOWEST"

    def __init__(self, step: int) -> None:
        self.step = step

    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        if runner.iter + 1 == self.step:
            raise Killed


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tree(tmp_path_factory.mktemp("data") / "tree", train=4, val=1, size=64)


def config(tree: Path, folder: Path, stage: Any, **options: Any) -> Any:
    given = {**OPTIONS, **options}
    if stage != "single":
        given["zero_stage"] = stage
    return tiny.tiny_config(tree, folder, **given)


def strategy(stage: Any) -> str:
    return "single" if stage == "single" else "deepspeed"


@pytest.fixture(scope="module")
def whole(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Path]:
    """The folder of an uninterrupted run of a stage, run once."""
    done: dict[Any, Path] = {}

    def run(stage: Any) -> Path:
        if stage not in done:
            folder = tmp_path_factory.mktemp("whole")
            train(config(tree, folder, stage), strategy(stage))
            done[stage] = folder
        return done[stage]

    return run


def killed(tree: Path, folder: Path, stage: Any, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Runs with a checkpoint every two steps and dies in step `at`."""
    from spark_seg.engine import build

    real = build._build

    def with_kill(cfg: Any, **objects: Any) -> Any:
        runner = real(cfg, **objects)
        runner.register_hook(KillAt(at))
        return runner

    monkeypatch.setattr(build, "_build", with_kill)
    with pytest.raises(Killed):
        train(config(tree, folder, stage, checkpoint_steps=2), strategy(stage))
    monkeypatch.setattr(build, "_build", real)


@pytest.mark.parametrize("stage", STAGES)
def test_mid_epoch(
    stage: Any, tree: Path, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    killed(tree, folder, stage, monkeypatch, at=3)
    assert read_state(folder / "checkpoints" / "last")["in_epoch"] == 2
    train(config(tree, folder, stage), strategy(stage), resume=True)
    same(folder, whole(stage))
    record = json.loads((folder / "training_params.json").read_text())
    assert [r["taken_up"]["iter"] for r in record["taken_up"]] == [2]


def test_nothing_is_loaded_again(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken up in the middle of an epoch, only the frames of the steps that are left are read."""
    from spark_seg.datasets.spark import SparkDataset

    folder = tmp_path / "run"
    killed(tree, folder, "single", monkeypatch, at=3)
    real, read = SparkDataset.prepare_data, []

    def counted(self: Any, index: int) -> Any:
        if self.split == "train":
            read.append(int(index))
        return real(self, index)

    monkeypatch.setattr(SparkDataset, "prepare_data", counted)
    train(config(tree, folder, "single", val_every=9), "single", resume=True)
    assert len(read) == 4 + 8, "two frames a step: two steps of the first epoch, four of the second"
    assert len(set(read[:4])) == 4


def test_with_workers_and_after_an_epoch(
    tree: Path, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the first step after an epoch; two workers, where the uninterrupted run had none."""
    folder = tmp_path / "run"
    killed(tree, folder, 1, monkeypatch, at=5)
    assert read_state(folder / "checkpoints" / "last")["epoch"] == 1
    train(config(tree, folder, 1, num_workers=2), resume=True)
    same(folder, whole(1))


@pytest.mark.parametrize(("first", "then"), [("single", 3), (3, 1), (1, 0), (2, "single")])
def test_under_another_stage(
    first: Any,
    then: Any,
    tree: Path,
    whole: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Optimizer and averages move to other partitions without a bit lost; the steps after that differ by rounding."""
    folder = tmp_path / "run"
    killed(tree, folder, first, monkeypatch, at=3)
    before = states(folder)
    train(config(tree, folder, then), strategy(then), resume=True)
    reference = states(whole(first))
    for name in ("weights.safetensors", "ema.safetensors", "optimizer.safetensors"):
        for key, value in states(folder)[name].items():
            torch.testing.assert_close(value, reference[name][key], rtol=1e-3, atol=2e-4, msg=key)
        assert before[name].keys() == reference[name].keys()


def test_torn_checkpoint_is_named_and_passed_over(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    killed(tree, folder, 1, monkeypatch, at=7)
    last = folder / "checkpoints" / "last"
    assert read_state(last)["iter"] == 6
    torn = last / "optimizer.safetensors"
    torn.write_bytes(torn.read_bytes()[:-10])
    assert damage(last) == "optimizer.safetensors is truncated"
    found, notes = newest_whole(folder / "checkpoints")
    assert found is not None
    assert read_state(found)["iter"] == 4
    assert notes == [f"{last}: optimizer.safetensors is truncated; passed over"]
    with pytest.raises(
        UserError, match=r"no whole checkpoint: optimizer\.safetensors is truncated"
    ):
        train(config(tree, folder, 1), resume=str(last))
    train(config(tree, folder, 1), resume=True)
    assert "passed over" in capsys.readouterr().err
    assert damage(last) is None


def test_a_flipped_bit_is_found(tree: Path, whole: Any, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "last"
    shutil.copytree(whole(1) / "checkpoints" / "last", copy)
    assert damage(copy) is None
    weights = bytearray((copy / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "weights.safetensors").write_bytes(weights)
    assert damage(copy) == "weights.safetensors is damaged"


def test_nothing_to_go_on_from(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config(tree, tmp_path / "run", "single", epochs=1), "single", resume=True)
    assert "beginning" in capsys.readouterr().out


def test_another_batch_within_an_epoch_is_refused(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    killed(tree, folder, 1, monkeypatch, at=3)
    with pytest.raises(UserError, match="inside an epoch, 2 samples to a step"):
        train(config(tree, folder, 1, batch_size=4), resume=True)
    assert read_state(folder / "checkpoints" / "last")["iter"] == 2, "nothing was overwritten"


@pytest.mark.parametrize("stage", ["single", 1, 3])
def test_best_is_the_averaged_weights_that_scored(stage: Any, tree: Path, whole: Any) -> None:
    from spark_seg.evaluation.run import evaluate

    folder = whole(stage)
    best = json.loads((folder / "checkpoints" / "best.json").read_text())
    for form in ("best.safetensors", "best.pth", "best"):
        found = evaluate(
            config(tree, folder, stage),
            folder / "checkpoints" / form,
            strategy=strategy(stage),
            resamples=0,
        )
        assert found.metrics["mIoU"] == best["mIoU"]
    raw = load_file(folder / "checkpoints" / "best" / "weights.safetensors")
    averaged = load_file(folder / "checkpoints" / "best.safetensors")
    assert any(not torch.equal(raw[k], averaged[k]) for k in raw), (
        "an average, not the last weights"
    )


@pytest.mark.parametrize("stage", ["single", 0, 1, 3])
def test_a_step_that_is_not_finite_is_skipped(
    stage: Any, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmseg.models.segmentors import EncoderDecoder

    real, calls, seen = EncoderDecoder.parse_losses, [], []

    def poisoned(self: Any, losses: Any) -> Any:
        loss, logs = real(self, losses)
        calls.append(1)
        return (loss * float("nan") if len(calls) == 2 else loss), logs

    class Watch(Hook):
        def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
            state = runner.strategy.full_state_dict()
            seen.append({k: v for k, v in state.items() if "running" not in k and "num_b" not in k})

    monkeypatch.setattr(EncoderDecoder, "parse_losses", poisoned)
    from spark_seg.engine.build import training_runner

    cfg = config(tree, tmp_path / "run", stage, epochs=1, ema_decay=None)
    runner = training_runner(cfg, strategy(stage))
    runner.register_hook(Watch())
    runner.train()
    assert runner.strategy.guard.skipped == 1
    assert all(torch.equal(seen[1][k], seen[0][k]) for k in seen[0]), "the second step was not made"
    assert any(not torch.equal(seen[2][k], seen[1][k]) for k in seen[1]), "the third was"
    assert all(torch.isfinite(v).all() for v in seen[-1].values())


def test_too_many_such_steps_end_the_training(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmseg.models.segmentors import EncoderDecoder

    real = EncoderDecoder.parse_losses

    def poisoned(self: Any, losses: Any) -> Any:
        loss, logs = real(self, losses)
        return loss * float("nan"), logs

    monkeypatch.setattr(EncoderDecoder, "parse_losses", poisoned)
    with pytest.raises(NotFiniteError, match=r"2 steps in a row.*train/image_0"):
        train(config(tree, tmp_path / "run", 1, max_skipped=2))


@pytest.mark.parametrize("stage", ["single", 1])
def test_accumulation_counts_optimizer_steps(stage: Any, tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(config(tree, folder, stage, accumulate=2, epochs=2, log_every=1), strategy(stage))
    rows = [r for r in read_metrics(folder / "metrics.jsonl") if r["mode"] == "train"]
    assert [r["step"] for r in rows] == [1, 2, 3, 4], "8 frames, 2 to a batch, 2 batches to a step"
    assert rows[-1]["lr"] < rows[2]["lr"]
    state = read_state(folder / "checkpoints" / "last")
    assert (state["iter"], state["global_batch"]) == (4, 4)
