"""Every ZeRO stage and plain PyTorch train the same weights, and leave checkpoints that load everywhere."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from spark_seg.engine.build import training_runner
from spark_seg.engine.checkpoints import load_state_dict
from spark_seg.errors import UserError

STAGES = ("single", 0, 1, 2, 3)
State = dict[str, torch.Tensor]


@dataclass
class Run:
    """What a two-step training left."""

    runner: Any
    folder: Path
    before: State
    after: State
    losses: list[float]
    saved: State


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tree(tmp_path_factory.mktemp("data") / "tree", train=2, val=1, size=64)


@pytest.fixture(scope="module")
def train(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Trains two steps once for each set of arguments."""
    done: dict[str, Run] = {}

    def run(stage: Any, **options: Any) -> Run:
        key = f"{stage}{options}"
        if key not in done:
            folder = tmp_path_factory.mktemp("run")
            bare = {"val_every": 9, "custom_hooks": []}  # no validation, no curves: not needed here
            given = {"epochs": 1, "warmup_epochs": 0, "accelerate": False, **bare, **options}
            if stage != "single":
                given["zero_stage"] = stage
            runner = training_runner(
                tiny.tiny_config(tree, folder, **given),
                "single" if stage == "single" else "deepspeed",
            )
            kept: dict[str, Any] = {"losses": []}

            from mmengine.hooks import Hook

            class Watcher(Hook):
                def before_train_epoch(self, runner: Any) -> None:
                    kept["before"] = runner.strategy.full_state_dict()

                def after_train_iter(
                    self, runner: Any, *_: Any, outputs: Any = None, **__: Any
                ) -> None:
                    kept["losses"].append(float(outputs["loss"]))

            runner.register_hook(Watcher())
            runner.train()
            saved = load_state_dict(folder / "checkpoints" / "last")
            after = runner.strategy.full_state_dict()
            done[key] = Run(runner, folder, kept["before"], after, kept["losses"], saved)
        return done[key]

    return run


@pytest.mark.parametrize("stage", STAGES)
def test_two_steps_give_the_same_weights(stage: Any, train: Callable[..., Run]) -> None:
    reference, run = train("single"), train(stage)
    assert run.before.keys() == reference.before.keys()
    assert all(torch.equal(run.before[k], reference.before[k]) for k in run.before), (
        "the same start"
    )
    assert run.losses == pytest.approx(reference.losses, rel=1e-4)
    assert len(run.losses) == 2
    moved = 0
    for key, value in run.after.items():
        # AdamW's first steps are of the size of lr wherever there is any gradient; where it is all rounding, its sign
        # may differ
        far = (value - reference.after[key]).abs() > 1e-5
        assert far.float().mean() < 2e-3, f"{key}: {far.sum()} of {far.numel()}"
        moved += int(not torch.equal(value, run.before[key]))
    assert moved > 0.9 * len(run.after)


@pytest.mark.parametrize("stage", STAGES)
def test_full_weights_are_those_of_the_model(stage: Any, train: Callable[..., Run]) -> None:
    from mmseg.registry import MODELS

    run = train(stage)
    model = MODELS.build(run.runner.cfg.model)
    wanted = {k: (v.shape, v.dtype) for k, v in model.state_dict().items()}
    assert {k: (v.shape, v.dtype) for k, v in run.after.items()} == wanted
    assert all(v.device.type == "cpu" and not v.requires_grad for v in run.after.values())
    model.load_state_dict(run.after)


def test_stage_3_really_partitions(train: Callable[..., Run]) -> None:
    runner = train(3).runner
    assert runner.strategy.zero_stage == 3
    parameters = list(runner.strategy.module.parameters())
    assert all(hasattr(p, "ds_id") for p in parameters)
    assert {p.numel() for p in parameters} == {0}


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_stage_is_in_force(stage: int, train: Callable[..., Run]) -> None:
    engine = train(stage).runner.strategy.model.model
    assert engine.zero_optimization_stage() == stage
    if stage == 0:
        assert not engine.enable_backward_allreduce, "nobody to exchange gradients with"


@pytest.mark.parametrize("stage", STAGES)
def test_checkpoint_holds_the_weights_as_they_were(stage: Any, train: Callable[..., Run]) -> None:
    run = train(stage)
    assert all(torch.equal(run.saved[k], run.after[k]) for k in run.after)
    assert run.saved.keys() == run.after.keys()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_folder_without_plain_weights(
    stage: int, train: Callable[..., Run], tmp_path: Path
) -> None:
    """As a stranger's: stages 0 to 2 hold the weights in one file; 3 must be put together from pickles."""
    run = train(stage)
    engine = run.runner.strategy.model.model
    engine.save_checkpoint(str(tmp_path), tag="last", save_latest=False)
    folder = tmp_path / "last"
    if stage == 3:
        with pytest.raises(UserError, match=r"stage 3.*--trust-checkpoint"):
            load_state_dict(folder)
    found = load_state_dict(folder, trust=stage == 3)
    trained = {k for k, v in run.after.items() if v.is_floating_point()}
    assert trained <= found.keys() <= run.after.keys()
    assert all(torch.equal(found[k].cpu().float(), run.after[k].float()) for k in found)


def test_a_checkpoint_holds_nothing_that_is_unpickled(train: Callable[..., Run]) -> None:
    for stage in STAGES:
        files = (train(stage).folder / "checkpoints" / "last").iterdir()
        assert {path.suffix for path in files} == {".safetensors", ".json"}


@pytest.mark.parametrize("stage", ["single", 1, 3])
def test_bf16_trains_on_the_cpu(stage: Any, train: Callable[..., Run]) -> None:
    run, full = train(stage, precision="bf16"), train(stage)
    assert all(math.isfinite(loss) for loss in run.losses)
    assert run.losses != full.losses, "it did compute in bf16"
    assert run.losses == pytest.approx(full.losses, rel=0.05)
    assert {v.dtype for v in run.after.values() if v.is_floating_point()} == {torch.float32}
    weights = {p.dtype for p in run.runner.strategy.module.parameters()}
    assert weights == {torch.float32}, "autocast: the weights stay fp32"


@pytest.mark.parametrize("stage", ["single", 1])
def test_clipping_is_in_force(stage: Any, train: Callable[..., Run]) -> None:
    """With plain SGD the step is lr times the gradient: no longer than lr times the largest norm."""
    sgd: dict[str, Any] = {
        "optim_wrapper__optimizer": {"type": "SGD", "lr": 1.0, "weight_decay": 0.0},
        "clip_grad": 1e-3,
        "lr": 1.0,
    }
    run = train(stage, subset=2, **sgd)
    assert len(run.losses) == 1
    names = {name for name, _ in run.runner.strategy.module.named_parameters()}
    step = torch.sqrt(sum((run.after[k] - run.before[k]).square().sum() for k in names))  # type: ignore[arg-type]
    assert 0.3e-3 < float(step) < 1.01e-3


@pytest.mark.parametrize("stage", ["single", 1, 3])
def test_frozen_backbone(stage: Any, train: Callable[..., Run]) -> None:
    run = train(stage, freeze_backbone=True)
    moved = {k for k in run.after if not torch.equal(run.after[k], run.before[k])}
    assert moved
    assert not [k for k in moved if k.startswith("backbone.")]
    assert not run.runner.strategy.module.backbone.training
    wrapper = run.runner.strategy.optim_wrapper
    sizes = sum(p.numel() for g in wrapper.optimizer.param_groups for p in g["params"])
    head = sum(
        v.numel() for k, v in run.after.items() if k.startswith("decode_head.") and "bn." not in k
    )
    bn = sum(v.numel() for k, v in run.after.items() if "bn.weight" in k or "bn.bias" in k)
    if stage == "single":
        assert sizes == head + bn
    for name, p in run.runner.strategy.module.named_parameters():
        assert p.requires_grad == (not name.startswith("backbone.")), name


def test_precision_auto() -> None:
    from spark_seg.engine.strategy import resolve_precision

    expected = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
    assert resolve_precision("auto") == expected
    assert resolve_precision("bf16") == "bf16"
    assert resolve_precision("fp32") == "fp32"


def test_unknown_strategy(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no strategy 'ddp': there are deepspeed, single"):
        training_runner(tiny.tiny_config(tree, tmp_path), "ddp")
