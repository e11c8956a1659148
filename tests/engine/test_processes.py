"""Trainings over two processes: exact when taken up, the same under every ZeRO stage and number of processes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from ranks import Template
from safetensors.torch import load_file
from same_run import lines, same, states

from spark_seg.engine.folder import read_state

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
STAGES = (0, 1, 2, 3)
BASE: dict[str, Any] = {
    **{key.replace(".", "__"): value for key, value in tiny.SMALL_MODEL.items()},
    "ema_decay": 0.9,
    "precision": "fp32",
    "log_every": 1,
}
# The same sum over a batch however it is divided: nothing random, every pixel of every frame counts. A GELU for the
# decoder's ReLU: that one has a kink, and a sum that is zero but for rounding falls on either side of it.
COMPARED: dict[str, Any] = {
    **BASE,
    "model__backbone__drop_path_rate": 0.0,
    "model__decode_head__dropout_ratio": 0.0,
    "model__decode_head__act_cfg": {"type": "GELU"},
    "train_pipeline__2": {"type": "RandomWarp", "size": "$image_size", "rotation": 0, "scale": 0, "shift": 0},
}  # fmt: skip


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Template]:
    with Template(tmp_path_factory.mktemp("ranks")) as one:
        yield one


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tree(tmp_path_factory.mktemp("data") / "tree", train=4, val=1, size=64)


def train(template: Template, world: int, tree: Path, jobs: list[dict[str, Any]]) -> None:
    """Does `rank_tasks.train_once` for each job."""
    given = [{"tree": str(tree), **job} for job in jobs]
    template.start("rank_tasks:trainings", [given], world).done(1200)


def test_two_processes_taken_up_are_exact(template: Template, tree: Path, tmp_path: Path) -> None:
    """Mid-epoch, dropout and augmentation on; workers where the uninterrupted run had none."""
    jobs = []
    for stage in STAGES:
        options = {**BASE, "epochs": 3, "zero_stage": stage}
        whole, killed = (str(tmp_path / f"{name}{stage}") for name in ("whole", "killed"))
        jobs += [
            {"folder": whole, "options": options},
            {"folder": killed, "options": {**options, "checkpoint_steps": 1}, "die_at": 4},
            {"folder": killed, "options": {**options, "num_workers": 2}, "resume": True},
        ]
    train(template, 2, tree, jobs)
    for stage in STAGES:
        killed = tmp_path / f"killed{stage}"
        same(killed, tmp_path / f"whole{stage}")
        assert {"rng_00000.safetensors", "rng_00001.safetensors"} <= states(killed).keys()
        scores_again(tree, killed / "checkpoints")


def scores_again(tree: Path, checkpoints: Path) -> None:
    """Asserts that the best checkpoint in each form, evaluated in one process, has the score that it was saved with."""
    from spark_seg.evaluation.run import evaluate

    best = json.loads((checkpoints / "best.json").read_text())
    cfg = tiny.tiny_config(tree, checkpoints.parent, **BASE)
    for form in ("best.safetensors", "best.pth", "best"):
        out = checkpoints.parent / "again" / form
        found = evaluate(cfg, checkpoints / form, out=out, strategy="single", resamples=0)
        assert found.metrics["mIoU"] == best["mIoU"], f"{checkpoints}: {form}"


def test_a_loss_that_is_not_finite_on_one_process(
    template: Template, tree: Path, tmp_path: Path
) -> None:
    """The step is skipped on all: the end is as if every process's loss had been such a one, to the bit."""
    jobs = []
    for stage in STAGES:
        options = {**BASE, "epochs": 2, "zero_stage": stage, "val_every": 9}
        for name, ranks in (("one", [1]), ("both", [0, 1]), ("none", [])):
            folder = str(tmp_path / f"{name}{stage}")
            poisoned = {"ranks": ranks, "steps": [2]}
            jobs.append({"folder": folder, "options": options, "poisoned": poisoned})
    train(template, 2, tree, jobs)
    for stage in STAGES:
        one, both, none = (tmp_path / f"{name}{stage}" for name in ("one", "both", "none"))
        for name, tensors in states(both).items():
            for key, value in states(one)[name].items():
                assert torch.equal(value, tensors[key]), f"stage {stage}, {name}: {key}"
                assert torch.isfinite(value).all()
        weights = states(one)["weights.safetensors"]
        assert farthest(weights, states(none)["weights.safetensors"]) > 1e-6, "it made a difference"
        for run, skipped in ((one, 1), (both, 1), (none, 0)):
            assert [row["skipped"] for row in lines(run) if row["mode"] == "train"][-1] == skipped
            assert read_state(run / "checkpoints" / "last")["skipped"] == skipped


def near(a: Path, b: Path, tolerance: float) -> None:
    """Asserts that two last checkpoints differ by no more than a share of the largest number of each kind."""
    ours, theirs = states(a), states(b)
    for name in ("weights.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert ours[name].keys() == theirs[name].keys()
        for kind, largest in largest_of(theirs[name]).items():
            far = max(
                float((value.double() - theirs[name][key].double()).abs().max())
                for key, value in ours[name].items()
                if key.split("//")[-1] == kind or "//" not in key
            )
            assert far <= tolerance * largest, f"{a.name}, {name}, {kind}: {far} of {largest}"


def largest_of(state: dict[str, torch.Tensor]) -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in state.items():
        kind = key.split("//")[1] if "//" in key else ""
        found[kind] = max(found.get(kind, 0.0), float(value.abs().max()))
    return found


def test_another_number_of_processes_and_another_stage(
    template: Template, tree: Path, tmp_path: Path
) -> None:
    """One to two and back, mid-epoch: what is taken up is what was saved, and the next steps are those of one run."""
    options = {**COMPARED, "epochs": 4, "checkpoint_steps": 1}
    # Adam divides by a gradient's size: where that is rounding alone, `eps` keeps it what it is.
    options["optim_wrapper__optimizer__eps"] = 1e-2
    batch = {1: 4, 2: 2}  # the same global batch

    def job(world: int, stage: int, folder: str, **more: Any) -> dict[str, Any]:
        given = {**options, "zero_stage": stage, "batch_size": batch[world]}
        return {"folder": str(tmp_path / folder), "options": given, "fixed_norms": True, **more}

    def died(world: int) -> list[dict[str, Any]]:
        return [job(world, stage, f"died_{world}_{stage}", die_at=4) for stage in STAGES]

    def goes_on(was: int, stage: int, then: int, world: int) -> dict[str, Any]:
        name = f"from_{was}_{stage}_to_{world}_{then}"
        return job(
            *(world, then, name),
            resume=str(tmp_path / f"died_{was}_{stage}/checkpoints/last"),
            save_start=str(tmp_path / name / "start/checkpoints"),
        )

    changes = [(stage, stage) for stage in STAGES] + [(1, 3), (3, 0), (0, 2), (2, 1)]
    train(template, 1, tree, [job(1, 0, "whole"), *died(1)])
    train(template, 2, tree, [*died(2), *(goes_on(1, a, b, 2) for a, b in changes)])
    train(template, 1, tree, [goes_on(2, a, b, 1) for a, b in changes])
    whole = tmp_path / "whole"
    for was, world in ((1, 2), (2, 1)):
        for stage, then in changes:
            run = tmp_path / f"from_{was}_{stage}_to_{world}_{then}"
            start, saved = states(run / "start"), states(tmp_path / f"died_{was}_{stage}")
            for name in ("weights.safetensors", "ema.safetensors", "optimizer.safetensors"):
                assert start[name].keys() == saved[name].keys()
                for key, value in start[name].items():
                    assert torch.equal(value, saved[name][key]), f"{run.name}: {name}: {key}"
            state = read_state(tmp_path / f"died_{was}_{stage}" / "checkpoints" / "last")
            assert (state["iter"], state["in_epoch"]) == (3, 1)
            near(run, whole, 1e-5)
            ours = [row for row in lines(run) if row["mode"] == "train"]
            theirs = [row for row in lines(whole) if row["mode"] == "train"][-len(ours) :]
            assert [row["step"] for row in ours] == [4, 5, 6, 7, 8]
            assert [row["lr"] for row in ours] == [row["lr"] for row in theirs]
            norms = [[row["grad_norm"] for row in rows] for rows in (ours, theirs)]
            assert norms[0] == pytest.approx(norms[1], rel=1e-4)


SGD: dict[str, Any] = {
    **COMPARED,
    "accelerate": False,
    "clip_grad": None,
    "lr": 0.02,
    "warmup_epochs": 0,
    "min_lr": 0.02,
    "epochs": 10,
    "optim_wrapper__optimizer": {"type": "SGD", "lr": "$lr", "momentum": 0.9, "weight_decay": 0.01},
}


def everywhere(
    template: Template, tree: Path, folder: Path, options: dict[str, Any], steps: int, **more: Any
) -> dict[str, torch.Tensor]:
    """Trains under every stage in one and in two processes, into `<processes>_<stage>`, all from the same weights.

    Returns:
        Those weights; torch's own training from them is in `plain`.
    """
    for world, batch in ((1, 4), (2, 2)):
        jobs = [
            {
                "folder": str(folder / f"{world}_{stage}"),
                "options": {**options, "batch_size": batch, "zero_stage": stage},
                "fixed_norms": True,
                "save_start": str(folder / f"start_{world}_{stage}" / "checkpoints"),
                **more,
            }
            for stage in STAGES
        ]
        train(template, world, tree, jobs)
    start = folder / "start_1_0" / "checkpoints" / "last" / "weights.safetensors"
    arguments = [str(tree), str(folder / "plain"), {**options, "batch_size": 2}, steps, str(start)]
    template.start("rank_tasks:plain_ddp", arguments).done()
    weights = load_file(start)
    for world in (1, 2):
        for stage in STAGES:
            found = states(folder / f"start_{world}_{stage}")["weights.safetensors"]
            assert all(torch.equal(found[k], weights[k]) for k in weights)
    return weights


def farthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a if a[k].is_floating_point())


def test_every_stage_is_plain_ddp(template: Template, tree: Path, tmp_path: Path) -> None:
    """20 SGD steps, stages 0 to 3 in one and two processes: the weights of torch's own DistributedDataParallel.

    Also where the same batch comes in two halves (`accumulate`).
    """
    start = everywhere(template, tree, tmp_path, SGD, steps=20)
    in_halves = {**SGD, "batch_size": 1, "accumulate": 2}
    jobs = [
        {
            "folder": str(tmp_path / f"halves_{stage}"),
            "options": {**in_halves, "zero_stage": stage},
            "fixed_norms": True,
        }
        for stage in STAGES
    ]
    train(template, 2, tree, jobs)
    plain = load_file(tmp_path / "plain" / "weights.safetensors")
    largest = max(float(v.abs().max()) for v in plain.values() if v.is_floating_point())
    assert farthest(start, plain) > 1e-2 * largest, "it did train"
    for world in (1, 2, "halves"):
        for stage in STAGES:
            run = tmp_path / f"{world}_{stage}"
            assert read_state(run / "checkpoints" / "last")["iter"] == 20
            far = farthest(states(run)["weights.safetensors"], plain)
            assert far <= 1e-5 * largest, f"{run.name}: {far} of {largest}"


def test_first_gradients_under_adamw(template: Template, tree: Path, tmp_path: Path) -> None:
    """The first step's average in the optimizer is a tenth of the gradient: that of plain DDP."""
    options = {**COMPARED, "accelerate": False, "clip_grad": None, "epochs": 1}
    options["checkpoint_steps"] = 1
    everywhere(template, tree, tmp_path, options, steps=1, die_at=2)
    plain = load_file(tmp_path / "plain" / "gradients.safetensors")
    largest = max(float(v.abs().max()) for v in plain.values())
    for world in (1, 2):
        for stage in STAGES:
            found = states(tmp_path / f"{world}_{stage}")["optimizer.safetensors"]
            assert float(found["step"]) == 1
            far = farthest({k: found[f"{k}//exp_avg"] / 0.1 for k in plain}, plain)
            assert far <= 1e-5 * largest, f"{world} processes, stage {stage}: {far} of {largest}"
