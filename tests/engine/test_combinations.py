"""What cannot be combined is refused in one line, for each entry of the list; what can be is built."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from spark_seg.config import load_config
from spark_seg.engine import build, combinations
from spark_seg.engine.build import _set_strategy, synchronise_norms, training_runner
from spark_seg.engine.combinations import (
    REFUSALS,
    Setting,
    missing_for_offload,
    require_possible,
    zero_stage,
)
from spark_seg.engine.launch import ProcessEnvironment
from spark_seg.engine.plan import make_plan
from spark_seg.engine.train import train
from spark_seg.errors import UserError

# name: options, how it is started, what is said
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "single-many": ({}, {"strategy": "single", "world_size": 2}, "in one process, not in 2"),
    "fp16-cpu": ({"precision": "fp16"}, {"cuda": False}, "precision='fp16' is for GPUs"),
    "bf16-old-gpu": ({"precision": "bf16"}, {"cuda": True}, "does not compute in bf16"),
    "tf32-cpu": ({"allow_tf32": True}, {"cuda": False}, "torch sees none here"),
    "tf32-low-precision": (
        {"allow_tf32": True, "precision": "bf16"},
        {},
        "computes in bf16, not in fp32",
    ),
    "offload-single": ({"offload": "optimizer"}, {"strategy": "single"}, "is DeepSpeed's"),
    "offload-stage-0": ({"offload": "optimizer", "zero_stage": 0}, {}, "nothing is partitioned"),
    "offload-parameters": (
        {"offload": "optimizer+parameters", "zero_stage": 2},
        {},
        "use zero_stage=3",
    ),
    "offload-optimizer": (
        {"offload": "optimizer", "optim_wrapper.optimizer": {"type": "SGD", "lr": 0.1}},
        {},
        "with SGD: DeepSpeed has Adam and AdamW for the CPU",
    ),
    "offload-amsgrad": (
        {"offload": "optimizer", "optim_wrapper.optimizer.amsgrad": True},
        {},
        "use amsgrad=False",
    ),
    "offload-build": ({"offload": "optimizer"}, {"cuda": False}, "no C\\+\\+ compiler"),
    "lbfgs": ({"optim_wrapper.optimizer": {"type": "LBFGS"}}, {}, "use AdamW"),
    "zero-optimizer": (
        {"optim_wrapper.optimizer": {"type": "Adafactor"}},
        {"world_size": 2},
        "Adafactor with zero_stage=1",
    ),
    "checkpointing-frozen": (
        {"activation_checkpointing": True, "freeze_backbone": True},
        {},
        "nothing would be saved",
    ),
    "graphs-cpu": ({"cuda_graphs": True}, {"cuda": False}, "is for GPUs"),
    "graphs-many": ({"cuda_graphs": True}, {"world_size": 2}, "cannot be recorded"),
    "graphs-accumulate": ({"cuda_graphs": True, "accumulate": 2}, {}, "accumulate=1"),
    "graphs-stage-3": ({"cuda_graphs": True, "zero_stage": 3}, {}, "parameters move"),
    "graphs-checkpointing": (
        {"cuda_graphs": True, "activation_checkpointing": True},
        {},
        "keeps its memory anyway",
    ),
    "graphs-compile": ({"cuda_graphs": True, "compile": True}, {}, "never tried"),
    "graphs-multi-scale": (
        {"cuda_graphs": True, "multi_scale": [32, 64]},
        {},
        "every size would be recorded",
    ),
    "trackers": ({"wandb": {"projekt": "x"}}, {"cuda": False}, "no key 'projekt'; did you mean"),
}


def config(options: dict[str, Any]) -> Any:
    return load_config("segformer_b0_spark", {"pretrained": None, "image_size": 64, **options})


def test_every_entry_has_a_case() -> None:
    assert [refusal.name for refusal in REFUSALS] == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_refused_with_the_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options, start, told = CASES[name]
    if name == "offload-build":
        monkeypatch.setattr(combinations.shutil, "which", lambda command: None)
    if name == "bf16-old-gpu":
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    given = {"strategy": "deepspeed", "world_size": 1, "cuda": None, **start}
    with pytest.raises(UserError, match=told) as caught:
        require_possible(config(options), **given)
    assert "\n" not in str(caught.value)
    setting = Setting.of(config(options), **given)
    assert [r.name for r in REFUSALS if r.applies(setting)] == [name], "one reason, the right one"


@pytest.fixture
def _torchs_tf32() -> Iterator[None]:
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True


@pytest.mark.usefixtures("_torchs_tf32")
@pytest.mark.parametrize("allowed", [None, True, False])
def test_tf32_is_torchs_choice_or_the_configs(
    allowed: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of matrix products and convolutions alike, in trainings and predictions."""
    _set_strategy(config({"allow_tf32": allowed}), "deepspeed", None)
    found = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    assert found == ((False, True) if allowed is None else (allowed, allowed))
    told = "changes nothing without a GPU" in capsys.readouterr().err
    assert told == (allowed is True and not torch.cuda.is_available())


@pytest.mark.parametrize(
    ("options", "world_size", "stage"),
    [
        ({}, 1, 0),
        ({}, 2, 1),
        ({"offload": "optimizer"}, 1, 1),
        ({"strategy.zero_optimization.offload_optimizer": {"device": "cpu"}}, 1, 1),
        ({"zero_stage": 1}, 1, 1),
        ({"zero_stage": 3}, 8, 3),
        ({"optimizer": "MuonAdamW"}, 1, 0),
    ],
)
def test_the_zero_stage_that_is_left_to_the_number_of_processes(
    options: dict[str, Any], world_size: int, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the checks, in the dry run and in what DeepSpeed is given alike."""
    cfg = config(options)
    assert zero_stage(cfg, world_size) == stage
    assert Setting.of(cfg, "deepspeed", world_size, None).stage == stage
    assert make_plan(cfg, world_size).zero_stage == stage
    monkeypatch.setattr(build, "this_process", lambda: ProcessEnvironment(0, world_size))
    _set_strategy(cfg, "deepspeed", None)
    assert cfg.strategy.zero_optimization.stage == stage


@pytest.mark.parametrize("group", [None, "deleted"])
def test_a_strategy_that_says_nothing_of_zero(group: str | None) -> None:
    cfg = config({})
    cfg.strategy.zero_optimization = None
    if group == "deleted":
        del cfg.strategy["zero_optimization"]
    _set_strategy(cfg, "deepspeed", None)
    assert cfg.strategy.zero_optimization == {"stage": 0}


def test_the_default_is_refused_nowhere() -> None:
    for strategy, world in (("deepspeed", 1), ("deepspeed", 24), ("single", 1)):
        for cuda in (None, False):
            require_possible(config({}), strategy, world, cuda)


def test_asked_by_training_before_anything_moves_and_by_the_dry_run(tmp_path: Path) -> None:
    cfg = config({"offload": "optimizer", "zero_stage": 0})
    cfg.work_dir = str(tmp_path / "run")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="nothing is partitioned"):
        train(cfg)
    with pytest.raises(UserError, match="nothing is partitioned"):
        make_plan(cfg, 8)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_offload_reaches_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config({"offload": "optimizer+parameters", "zero_stage": 3})
    _set_strategy(cfg, "deepspeed", None)
    zero = cfg.strategy.zero_optimization
    assert zero.offload_optimizer.device == zero.offload_param.device == "cpu"
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.adamw_mode) == ("DeepSpeedCPUAdam", True)
    cfg = config({"offload": "optimizer", "zero_stage": 2})
    _set_strategy(cfg, "deepspeed", None)
    assert "offload_param" not in cfg.strategy.zero_optimization


def test_fp16_reaches_deepspeed() -> None:
    """Autocast with fp32 weights, and the loss scale in our hands: see `LossScale`."""
    from spark_seg.engine.strategy import SparkDeepSpeedStrategy

    for precision, name in (("fp16", "float16"), ("bf16", "bfloat16")):
        made = SparkDeepSpeedStrategy(precision=precision, zero_optimization={"stage": 2})
        assert made.config["torch_autocast"] == {"enabled": True, "dtype": name}
        assert "fp16" not in made.config
        assert "bf16" not in made.config
        assert (made.guard.scale is not None) == (precision == "fp16")
    assert "torch_autocast" not in SparkDeepSpeedStrategy(precision="fp32").config


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tree(tmp_path_factory.mktemp("data") / "tree", train=4, val=1, size=64)


def trained(tree: Path, folder: Path, strategy: str, **options: Any) -> Any:
    bare = {"val_every": 9, "custom_hooks": [], "epochs": 1, "warmup_epochs": 0}
    given = {"default_hooks__checkpoint": None, **bare, **options}
    cfg = tiny.tiny_config(tree, folder, **given)
    cfg.pop("val_dataloader"), cfg.pop("val_evaluator"), cfg.pop("val_cfg")
    runner = training_runner(cfg, strategy)
    runner.train()
    return runner


@pytest.mark.parametrize("stage", ["single", 0, 2, 3])
def test_fp16s_loss_scale_leaves_no_trace(
    stage: Any, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp16 autocast is computed by this CPU too: scaled and unscaled, losses and norms are those of fp32 nearly.

    The first steps overflow with a scale that is far too large; they are left out and the scale falls.
    """
    import spark_seg.engine.build as build
    import spark_seg.engine.strategy as module

    monkeypatch.setattr(build, "require_possible", lambda *_: None)
    zero = {} if stage == "single" else {"zero_stage": stage}
    strategy = "single" if stage == "single" else "deepspeed"
    seen: dict[str, list[dict[str, Any]]] = {}
    for precision in ("fp32", "fp16"):
        steps: list[dict[str, Any]] = []
        real = module._Common.train_step

        def kept(self: Any, batches: Any, _real: Any = real, _steps: Any = steps) -> Any:
            logs = _real(self, batches)
            _steps.append({k: float(logs[k]) for k in ("loss", "grad_norm")})
            return logs

        monkeypatch.setattr(module._Common, "train_step", kept)
        runner = trained(tree, tmp_path / precision, strategy, precision=precision, **zero)
        monkeypatch.setattr(module._Common, "train_step", real)
        seen[precision] = steps
    guard = runner.strategy.guard
    assert guard.scale is not None
    assert guard.skipped == 0
    assert guard.scale.value == 65536
    for half, full in zip(seen["fp16"], seen["fp32"], strict=True):
        assert half["loss"] == pytest.approx(full["loss"], rel=0.03)
        assert half["grad_norm"] == pytest.approx(full["grad_norm"], rel=0.15)


def test_a_scale_that_is_too_large_falls(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import spark_seg.engine.build as build
    import spark_seg.engine.stepping as stepping

    monkeypatch.setattr(build, "require_possible", lambda *_: None)
    monkeypatch.setattr(stepping.LossScale.__init__, "__defaults__", (2.0**40, 2000))
    runner = trained(tree, tmp_path, "deepspeed", precision="fp16", zero_stage=1)
    guard = runner.strategy.guard
    assert guard.skipped == 4
    assert guard.scale.value == 2.0**36
    state = runner.strategy.full_state_dict()
    assert all(torch.isfinite(v).all() for v in state.values())


def test_loss_scale() -> None:
    from spark_seg.engine.stepping import LossScale

    scale = LossScale(1024, growth_interval=3)
    for applied, value in ((True, 1024), (True, 1024), (True, 2048), (False, 1024), (True, 1024)):
        scale.update(applied)
        assert scale.value == value
    other = LossScale()
    other.load(scale.state())
    assert other.state() == scale.state()
    for _ in range(40):
        scale.update(False)
    assert scale.value == 1


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_other_optimizers_under_zero(kind: str, tree: Path, tmp_path: Path) -> None:
    options = {
        "optim_wrapper__optimizer": {"type": kind, "lr": 0.01, "weight_decay": 0.0},
        "zero_stage": 1,
    }
    runner = trained(tree, tmp_path, "deepspeed", **options)
    assert type(runner.strategy.optim_wrapper.optimizer.optimizer).__name__ == kind


def test_norms_over_processes() -> None:
    from mmseg.registry import MODELS

    model = MODELS.build(config({}).model)
    keys = list(model.state_dict())
    assert synchronise_norms(model, 1, True) is None
    told = synchronise_norms(model, 4, False)
    assert told is not None
    assert "not synchronised" in told
    assert not [m for m in model.modules() if isinstance(m, torch.nn.SyncBatchNorm)]
    told = synchronise_norms(model, 4, True)
    assert told == "5 batch norm(s) synchronised over 4 processes"
    assert isinstance(model.decode_head.fusion_conv.norm, torch.nn.SyncBatchNorm)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("stage", ["single", 3])
def test_activation_checkpointing_trains_alike(stage: Any, tree: Path, tmp_path: Path) -> None:
    zero = {} if stage == "single" else {"zero_stage": stage}
    strategy = "single" if stage == "single" else "deepspeed"
    states = [
        trained(tree, tmp_path / str(on), strategy, activation_checkpointing=on, **zero)
        for on in (False, True)
    ]
    plain, again = (runner.strategy.full_state_dict() for runner in states)
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fast", [False, True])
def test_activation_checkpointing_changes_no_number(fast: bool) -> None:
    """Outputs and gradients in train mode, with drop path and dropout from the same random state."""
    from mmseg.registry import MODELS

    from spark_seg.models.fast_segformer import accelerate

    results = []
    for kept in (False, True):
        torch.manual_seed(0)
        options = {"activation_checkpointing": kept}
        model = MODELS.build(config(options).model).double().train()
        assert all(b.with_cp == kept for layer in model.backbone.layers for b in layer[1])
        if fast:
            accelerate(model)
        torch.manual_seed(1)
        out = model(torch.rand(2, 3, 64, 64, dtype=torch.float64))
        torch.manual_seed(2)
        (out * torch.rand_like(out)).sum().backward()
        results.append((out.detach(), {n: p.grad for n, p in model.named_parameters()}))
    (out, grads), (again, others) = results
    torch.testing.assert_close(again, out, rtol=0, atol=1e-10)
    assert grads.keys() == others.keys()
    for name, grad in grads.items():
        assert grad is not None
        torch.testing.assert_close(others[name], grad, rtol=1e-10, atol=1e-10)


def test_the_large_variants_have_stage_2() -> None:
    for variant, stage in {"b0": 1, "b1": 1, "b2": 1, "b3": 1, "b4": 2, "b5": 2}.items():
        cfg = load_config(f"segformer_{variant}_spark", {"pretrained": None})
        assert zero_stage(cfg, 2) == stage
        assert zero_stage(cfg, 1) == 0, "nothing is partitioned"


@pytest.mark.slow  # compiles for minutes where it was not compiled yet
@pytest.mark.timeout(1500)
@pytest.mark.skipif(missing_for_offload() is not None, reason=str(missing_for_offload()))
@pytest.mark.parametrize(("stage", "offload"), [(2, "optimizer"), (3, "optimizer+parameters")])
def test_offloading_trains_alike_and_is_taken_up(
    stage: int, offload: str, tree: Path, tmp_path: Path
) -> None:
    """Against the same stage without; from eps 1e-2, where AdamW's steps do not magnify rounding."""
    options: dict[str, Any] = {"zero_stage": stage, "ema_decay": 0.9, "val_every": 9}
    options |= {"optim_wrapper__optimizer__eps": 1e-2, "epochs": 2, "tensorboard": False}
    states = []
    for name, extra in (("kept", {}), ("moved", {"offload": offload})):
        cfg = tiny.tiny_config(tree, tmp_path / name, **options, **extra)
        runner = train(cfg)
        states.append((runner.strategy.full_state_dict(), runner.strategy.evaluated_state_dict()))
    for plain, moved in zip(*states, strict=True):
        for name, value in plain.items():
            torch.testing.assert_close(moved[name], value, rtol=1e-3, atol=1e-4, msg=name)
    cfg = tiny.tiny_config(tree, tmp_path / "moved", **{**options, "epochs": 3}, offload=offload)
    runner = train(cfg, resume=True)
    assert runner.iter == 12
    state = runner.strategy.full_state_dict()
    assert all(torch.isfinite(v).all() for v in state.values())
