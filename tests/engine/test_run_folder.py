"""A training's folder holds what is promised, and its validation equals `tools/test.py` on the same checkpoint."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import yaml

from spark_seg.config import load_config
from spark_seg.engine.checkpoints import load_state_dict
from spark_seg.engine.curves import read_metrics
from spark_seg.engine.train import set_aside, train
from spark_seg.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
EPOCHS, STEPS = 3, 4  # 2 satellites with 4 training frames, 2 a batch


@dataclass
class Run:
    """A finished training."""

    cfg: Any
    folder: Path
    strategy: str
    runner: Any
    counts: list[np.ndarray]  # of each validation


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tree(tmp_path_factory.mktemp("data") / "tree", size=72)


@pytest.fixture(scope="module", params=["deepspeed", "single"])
def run(
    request: pytest.FixtureRequest, tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    from spark_seg.evaluation.metric import SparkMetric

    folder = tmp_path_factory.mktemp("work") / "tiny"
    cfg = tiny.tiny_config(tree, folder, epochs=EPOCHS, lr=2e-3)
    counts: list[np.ndarray] = []
    compute = SparkMetric.compute_metrics

    def keep(self: Any, results: list) -> dict[str, float]:
        metrics = compute(self, results)
        assert self.counts is not None
        counts.append(self.counts.confusion)
        return metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SparkMetric, "compute_metrics", keep)
        runner = train(cfg, request.param)
    return Run(cfg, folder, request.param, runner, counts)


def lines(run: Run, mode: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["mode"] == mode]


def state(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "state.json").read_text())


def test_files_that_the_readme_names(run: Run) -> None:
    promised = [
        "config.py",
        "training_params.yaml",
        "training_params.json",
        "metrics.jsonl",
        "curves.png",
    ]
    promised += [f"checkpoints/{name}" for name in ("best.safetensors", "best.pth", "best.json")]
    promised += [
        f"checkpoints/{n}/{f}"
        for n in ("last", "best")
        for f in ("weights.safetensors", "state.json")
    ]
    for name in promised:
        assert (run.folder / name).stat().st_size > 0, name
        assert Path(name).name in (ROOT / "work_dirs" / "README.md").read_text() or ".json" in name
    assert len(list(run.folder.glob("*/*.log"))) == 1
    assert not [p for p in run.folder.rglob("*") if p.name.endswith((".tmp", ".old"))]
    assert not list(run.folder.rglob("zero_to_*.py"))


def test_config_loads_again(run: Run) -> None:
    again = load_config(str(run.folder / "config.py"))
    assert again.to_dict() == run.cfg.to_dict()


def test_params_are_plain_yaml_and_complete(run: Run) -> None:
    record = yaml.safe_load((run.folder / "training_params.yaml").read_text())
    assert json.loads((run.folder / "training_params.json").read_text()) == record
    assert record["config"]["image_size"] == 64
    assert record["config"]["val_dataloader"]["dataset"]["pipeline"][1]["size"] == 64
    assert record["config"]["optim_wrapper"]["optimizer"]["lr"] == 2e-3
    packages = {
        "python",
        "torch",
        "mmengine",
        "mmsegmentation",
        "deepspeed",
        "numpy",
        "opencv-python",
    }
    assert packages <= record["versions"].keys()
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert (record["seed"], record["world_size"], record["precision"]) == (42, 1, "fp32")
    assert {"commit"} <= record["git"].keys()
    assert record["git"].get("why") or isinstance(record["git"]["dirty"], bool)
    assert {"name", "os", "cpu", "ram_gib"} <= record["host"].keys()
    assert {"names", "memory_gib", "driver", "cuda"} <= record["gpu"].keys()
    assert isinstance(record["slurm"], dict)
    assert record["model"]["variant"] == "b0"
    assert "3.716 M" in record["model"]["parameters"]
    assert record["data"]["train"]["samples"] == 8
    assert record["data"]["val"]["samples"] == 6
    assert record["data"]["train"]["sha256"] != record["data"]["val"]["sha256"]


def test_metrics_file(run: Run) -> None:
    rows = lines(run, "train")
    assert [r["step"] for r in rows] == list(range(1, EPOCHS * STEPS + 1))
    assert [r["epoch"] for r in rows] == [1 + i // STEPS for i in range(EPOCHS * STEPS)]
    for row in rows:
        assert {
            "loss",
            "loss_ce",
            "loss_dice",
            "lr",
            "images_per_second",
            "data_share",
        } <= row.keys()
        assert row["loss"] == pytest.approx(row["loss_ce"] + row["loss_dice"], rel=1e-5)
        assert row["images_per_second"] == pytest.approx(2 / row["time"])
        assert 0 <= row["data_share"] <= 1
    assert rows[-1]["loss"] < rows[0]["loss"]
    scores = lines(run, "val")
    assert [(r["epoch"], r["step"]) for r in scores] == [
        (e, e * STEPS) for e in range(1, EPOCHS + 1)
    ]
    assert all(0 <= r["mIoU/foreground"] <= 1 for r in scores)


@pytest.mark.parametrize("slow", ["data", "hook"])
def test_what_is_called_waiting_for_data(
    slow: str, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow loader is, and a slow hook between two steps (saving, say) is not."""
    from spark_seg.datasets.spark import SparkDataset
    from spark_seg.engine.hooks.checkpoint import BestAndLastHook

    owner, name = (
        (SparkDataset, "__getitem__") if slow == "data" else (BestAndLastHook, "after_train_iter")
    )
    real = getattr(owner, name)

    def slowly(*args: Any, **options: Any) -> Any:
        time.sleep(0.4)
        return real(*args, **options)

    monkeypatch.setattr(owner, name, slowly)
    train(tiny.tiny_config(tree, tmp_path, epochs=1, val_every=9, **tiny_model()), "single")
    rows = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r["mode"] == "train"][1:]
    assert len(rows) == STEPS - 1
    for row in rows:
        assert row["time"] > 0.4
        assert (row["data_time"] > 0.4) == (slow == "data")
        assert row["data_share"] == pytest.approx(row["data_time"] / row["time"])


def tiny_model() -> dict[str, Any]:
    return {key.replace(".", "__"): value for key, value in tiny.SMALL_MODEL.items()}


def test_logged_rate_is_the_schedule(run: Run) -> None:
    total, warmup = EPOCHS * STEPS, STEPS
    for row in lines(run, "train"):
        t = row["step"] - 1
        if t < warmup:
            wanted = 1e-7 + (2e-3 - 1e-7) * t / warmup
        else:
            done = (t - warmup) / (total - warmup)
            wanted = 1e-6 + (2e-3 - 1e-6) * (1 + math.cos(math.pi * done)) / 2
        assert row["lr"] == pytest.approx(wanted, rel=1e-6)


def test_curves_are_a_png(run: Run) -> None:
    import cv2

    image = cv2.imread(str(run.folder / "curves.png"))
    assert image is not None
    assert image.shape[0] > 300
    assert image.std() > 1


def test_checkpoints_say_how_many_epochs_are_finished(run: Run) -> None:
    last = state(run.folder / "checkpoints" / "last")
    assert (last["epoch"], last["iter"], last["seed"]) == (EPOCHS, EPOCHS * STEPS, 42)
    best = json.loads((run.folder / "checkpoints" / "best.json").read_text())
    assert best["save_best"] == "spark/score"
    found = lines(run, "val")
    scores = {r["epoch"]: (r["spark/score"], r["mIoU/foreground"]) for r in found}
    top = max(scores.values())
    assert best["spark/score"] == pytest.approx(top[0])
    assert best["mIoU/foreground"] == pytest.approx(top[1])
    assert best["epoch"] == min(e for e, s in scores.items() if s == top), (
        "the first that reached it"
    )
    kept = state(run.folder / "checkpoints" / "best")
    assert (
        (kept["epoch"], kept["iter"])
        == (best["epoch"], best["epoch"] * STEPS)
        == (best["epoch"], best["iter"])
    )


def test_best_in_every_form_is_the_same(run: Run) -> None:
    folder = run.folder / "checkpoints"
    forms = [
        load_state_dict(p)
        for p in (folder / "best", folder / "best.pth", folder / "best.safetensors", run.folder)
    ]
    for form in forms[1:]:
        assert form.keys() == forms[0].keys()
        assert all(torch.equal(form[k], forms[0][k]) for k in form)
    assert {v.dtype for v in forms[0].values() if v.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("again", ["deepspeed", "single"])
def test_validation_equals_evaluation(run: Run, again: str) -> None:
    from spark_seg.evaluation.run import evaluate

    best = json.loads((run.folder / "checkpoints" / "best.json").read_text())
    result = evaluate(run.cfg, run.folder / "checkpoints" / "best.safetensors", strategy=again)
    assert result.confusion.shape == (6, 3, 3)
    np.testing.assert_array_equal(result.confusion, run.counts[best["epoch"] - 1])
    assert result.confusion.sum() == 2 * 72 * (96 + 72 + 72), "at the masks' own size"
    assert result.metrics["mIoU/foreground"] == pytest.approx(best["mIoU/foreground"])


def test_a_former_run_is_set_aside(tmp_path: Path) -> None:
    work = tmp_path / "run"
    assert set_aside(str(work)) is None
    assert work.is_dir()
    for expected in ("run.1", "run.2"):
        (work / "checkpoints").mkdir()
        (work / "checkpoints" / expected).touch()
        assert set_aside(str(work)) == tmp_path / expected
        assert (tmp_path / expected / "checkpoints" / expected).is_file()
        assert list(work.iterdir()) == []


def test_same_seed_same_run(tree: Path, tmp_path: Path) -> None:
    losses = []
    for i, seed in enumerate((1, 1, 2)):
        folder = tmp_path / str(i)
        options = {"epochs": 1, "val_every": 9, "seed": seed, "default_hooks__checkpoint": None}
        train(tiny.tiny_config(tree, folder, **options), "single")
        rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows if row["mode"] == "train"])
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_batch_larger_than_the_data(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_size=9 is more than the 8 frames"):
        train(tiny.tiny_config(tree, tmp_path / "run", batch_size=9), "single")


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_keeps_a_checkpoint(workers: int, tree: Path, tmp_path: Path) -> None:
    """As a terminal does it: the signal goes to the whole process group, workers included."""
    work = tmp_path / "run"
    options = {"epochs": 500, "val_every": 500, "num_workers": workers}
    command = [sys.executable, "tools/train.py", "segformer_b0_spark", "--work-dir", str(work)]
    process = subprocess.Popen(
        [*command, *tiny.command_options(tree, options)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    metrics = work / "metrics.jsonl"
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) >= 6):
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert f"checkpoint kept in {work / 'checkpoints' / 'last'}" in errors[0]
    last = state(work / "checkpoints" / "last")
    assert last["iter"] >= 6
    assert last["epoch"] == last["iter"] // STEPS
    assert f"step {last['iter']}:" in errors[0]
    weights = load_state_dict(work / "checkpoints" / "last")
    assert all(torch.isfinite(v).all() for v in weights.values())
    time.sleep(0.5)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no worker is left behind


def test_ctrl_c_in_a_validation_does_not_wait_for_its_end(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spark_seg.engine.stop import TrainingInterrupted
    from spark_seg.evaluation.metric import SparkMetric

    seen = []
    process = SparkMetric.process

    def interrupted(self: Any, *args: Any, **options: Any) -> None:
        process(self, *args, **options)
        seen.append(1)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(SparkMetric, "process", interrupted)
    former = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingInterrupted, match="checkpoint kept in"):
        train(tiny.tiny_config(tree, tmp_path / "run"), "single")
    assert len(seen) == 2, "of 6 images"
    assert signal.getsignal(signal.SIGINT) is former
    last = state(tmp_path / "run" / "checkpoints" / "last")
    assert (last["epoch"], last["iter"]) == (1, STEPS)
