"""TensorBoard, W&B and MLflow show what metrics.jsonl holds, and a resumed training goes on in the same run."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from same_run import CLOCK

from spark_seg.engine import trackers
from spark_seg.engine.hooks.logger import train_line
from spark_seg.engine.hooks.trackers import TrackersHook
from spark_seg.engine.trackers import check_trackers, open_trackers
from spark_seg.engine.train import train
from spark_seg.errors import UserError

CLOCKED = {f"train/{key}" for key in CLOCK}


def events(folder: Path) -> dict[str, dict[int, float]]:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        tag: {event.step: event.value for event in accumulator.Scalars(tag)}
        for tag in accumulator.Tags()["scalars"]
    }


def test_a_training_and_its_resumption(tmp_path: Path, capfd: Any) -> None:
    """All keys of the file, at their steps, in one run of events; then two epochs more in the same."""
    tree = tiny.make_tree(tmp_path / "tree", train=2, val=1, size=64)
    work = tmp_path / "run"
    for epochs, resume in ((1, False), (2, True)):
        cfg = tiny.tiny_config(tree, work, epochs=epochs, warmup_epochs=0)
        train(cfg, "single", resume=resume)
    rows = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    shown = events(work / "tensorboard")
    for row in rows:
        if row["mode"] == "resume":
            continue
        prefix = "train/" if row["mode"] == "train" else ""
        for key, value in row.items():
            if key not in ("mode", "step"):
                assert shown[prefix + key][row["step"]] == pytest.approx(value, rel=1e-5), key
    assert sorted(shown["train/loss"]) == [1, 2, 3, 4]
    assert sorted(shown["IoU/panel"]) == [2, 4]
    out = "".join(capfd.readouterr())
    assert "epoch 2/2, step 2/2, loss " in out
    assert "waiting for data" in out


def test_steps_made_again_are_hidden(tmp_path: Path) -> None:
    first, _ = open_trackers(tmp_path, 0, False, {})
    for step in (1, 2, 3):
        first[0].log({"train/loss": 1.0}, step)
    first[0].close("failed")
    # files are read in the order of their names: the second, host, process, and then a count as text, 10 before 9
    time.sleep(1.1)
    second, _ = open_trackers(tmp_path, 2, True, {})
    second[0].log({"train/loss": 2.0}, 3)
    second[0].close("finished")
    assert events(tmp_path / "tensorboard")["train/loss"] == {1: 1.0, 2: 1.0, 3: 2.0}


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    made, notes = open_trackers(tmp_path, 0, False, {})
    assert made == []
    assert notes == ["no TensorBoard files: pip install tensorboard, or tensorboard=False"]
    assert open_trackers(tmp_path, 0, False, {}, tensorboard=False) == ([], [])
    for name in ("wandb", "mlflow"):
        with pytest.raises(UserError, match=f"pip install {name}"):
            open_trackers(tmp_path, 0, False, {}, **{name: {}})
    assert check_trackers(None, None) == []
    assert "did you mean 'tracking_uri'" in check_trackers(None, {"tracking_url": "x"})[0][1]


class FakeWandb:
    """`wandb.init` and the run that it gives."""

    def __init__(self) -> None:
        self.given: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.ended: list[int] = []
        self.config = SimpleNamespace(update=lambda params, allow_val_change: None)
        self.id = "abc123"

    def init(self, **given: Any) -> "FakeWandb":
        self.given.append(given)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


def test_wandb_goes_on_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: name)
    for resumed in (False, True):
        made, _ = open_trackers(
            tmp_path, 0, resumed, {"lr": 1}, tensorboard=False, wandb={"project": "spark"}
        )
        made[0].log({"train/loss": 0.5}, 7)
        made[0].close("interrupted")
    assert fake.given[0] == {"project": "spark", "name": tmp_path.name, "dir": str(tmp_path)}
    assert fake.given[1] == {**fake.given[0], "id": "abc123", "resume": "allow"}
    assert fake.logged == [(7, {"train/loss": 0.5})] * 2
    assert fake.ended == [1, 1]


def test_wandb_itself_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = []
    for resumed in (False, True):
        made, _ = open_trackers(
            tmp_path, 0, resumed, {}, tensorboard=False, wandb={"project": "x", "mode": "offline"}
        )
        made[0].log({"train/loss": 0.5, "IoU/panel": 0.1}, 3)
        ids.append(made[0].id)  # type: ignore[attr-defined]
        made[0].close("finished")
    assert ids[0] == ids[1]
    assert list(tmp_path.glob("wandb/offline-run-*"))


def test_mlflow_itself(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    given = {"experiment_name": "spark", "run_name": "b0", "tags": {"team": "x"}}
    for resumed, step in ((False, 1), (True, 2)):
        made, _ = open_trackers(
            tmp_path, 0, resumed, {"lr": 0.1, "m": {}}, tensorboard=False, mlflow=given
        )
        made[0].log({"train/loss": 1.0 / step, "mIoU/foreground": 0.2}, step)
        made[0].close("interrupted" if not resumed else "finished")
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlruns.db'}")
    experiment = client.get_experiment_by_name("spark")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1, "the same run"
    (run,) = runs
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "b0"
    assert run.data.params == {"lr": "0.1"}
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5)]
    assert "mIoU/foreground" in run.data.metrics


def test_only_the_first_process_and_only_what_is_finite(tmp_path: Path) -> None:
    logged: list[Any] = []

    class Broken:
        def log(self, values: Any, step: int) -> None:
            raise ConnectionError("gone")

        def close(self, status: str) -> None:
            raise ConnectionError("gone")

    kept = SimpleNamespace(
        log=lambda values, step: logged.append((step, values)), close=logged.append
    )
    warned: list[str] = []
    runner = SimpleNamespace(logger=SimpleNamespace(warning=warned.append))
    hook = TrackersHook()
    hook._trackers = [Broken(), kept]  # type: ignore[list-item]
    values = {"loss": float("nan"), "lr": 0.1, "x": float("inf")}
    for step in (5, 6):
        hook.log_values(runner, "train", step, 1, dict(values))
    assert logged == [(step, {"train/lr": 0.1, "train/epoch": 1.0}) for step in (5, 6)]
    assert len(warned) == 1, "told once, then left out: the training goes on"
    hook.end("finished")
    assert logged[-1] == "finished"


def test_the_terminals_line() -> None:
    values = {"loss": 0.5, "loss_ce": 0.3, "loss_dice": 0.2, "acc_seg": 90.0, "grad_norm": 1.5}
    values |= {"lr": 6e-5, "skipped": 2, "images_per_second": 100.0, "data_share": 0.25}
    line = train_line(
        25, 3, 12, 10, {**values, "peak_memory_gib": 3.0, "eta_seconds": 3661.0, "time": 0.1}
    )
    assert line.startswith("epoch 3/10, step 1/12, loss 0.5000, loss_ce 0.3000, loss_dice 0.2000,")
    for part in ("norm 1.5", "lr 6e-05", "2 skipped", "100.0 img/s", "25 % waiting", "3.00 GiB"):
        assert part in line
    assert line.endswith("(1:01:01 left)")
