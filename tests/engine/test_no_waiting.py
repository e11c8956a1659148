"""Between two log lines the host waits for no result of the device.

Without a GPU: every operator that hands a tensor's value to the host is seen by a dispatch mode, every method that does
so without an operator is patched. What DeepSpeed itself asks for inside of its step is told apart by the stack.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from mmengine.hooks import Hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spark_seg.engine.build import training_runner
from spark_seg.engine.stepping import LaggedNumber, StepGuard

LOG_EVERY, STEPS = 3, 8
WAITING = {
    "aten::_local_scalar_dense",
    "aten::bincount",
    "aten::equal",
    "aten::is_nonzero",
    "aten::item",
    "aten::masked_select",
    "aten::nonzero",
    "aten::_unique2",
    "aten::unique_dim",
}
METHODS = ("tolist", "numpy", "cpu", "__array__")
ON_CPUS = "spark_seg.datasets.preprocess._batch_on_cpu"  # pictures that no device holds


class Watch(TorchDispatchMode, Hook):
    """Notes who asks for values within the steps: (step, module and function of the asking code)."""

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        super().__init__()
        self.step: int | None = None
        self.found: list[tuple[int, str]] = []

    def note(self, what: str) -> None:
        if self.step is not None and _asker() != ON_CPUS:
            self.found.append((self.step, f"{_asker()} {what}"))

    def before_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        self.step = runner.iter + 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        mask = name in ("aten::index", "aten::index_put", "aten::index_put_") and any(
            leaf.dtype == torch.bool for leaf in tree_leaves(args[1]) if torch.is_tensor(leaf)
        )
        if name in WAITING or mask:
            self.note(name)
        return func(*args, **(kwargs or {}))


class Leave(Hook):
    """After all others: the step is over, what the loader does is no step's."""

    priority = "LOWEST"

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def after_train_iter(self, *_: Any, **__: Any) -> None:
        self.watch.step = None


def _asker() -> str:
    """The innermost function that is neither torch's nor a test's."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        if not name.startswith("torch") and name != __name__:
            return f"{name}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "?"


def watched(
    tree: Path, folder: Path, stage: Any, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> list[tuple[int, str]]:
    given = {"log_every": LOG_EVERY, "ema_decay": 0.9, "val_every": 9, "epochs": 2, **options}
    if stage != "single":
        given["zero_stage"] = stage
    runner = training_runner(
        tiny.tiny_config(tree, folder, **given), "single" if stage == "single" else "deepspeed"
    )
    watch = Watch()
    runner.register_hook(watch)
    runner.register_hook(Leave(watch))
    for method in METHODS:
        real = getattr(torch.Tensor, method)

        def asked(
            tensor: Any, *args: Any, _real: Any = real, _name: str = method, **kw: Any
        ) -> Any:
            watch.note(_name)
            return _real(tensor, *args, **kw)

        monkeypatch.setattr(torch.Tensor, method, asked)
    with watch:
        runner.train()
    assert runner.iter == STEPS
    return watch.found


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tree(tmp_path_factory.mktemp("data") / "tree", train=4, val=1, size=64)


LOGGED = {3, 6, 8}  # every third step and the last


@pytest.mark.parametrize("stage", ["single", 0])
def test_none_between_log_lines(
    stage: Any, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = watched(tree, tmp_path / "run", stage, monkeypatch)
    between = Counter(who for step, who in found if step not in LOGGED)
    # made once: the host's side of the number that is read a step late
    between.pop("spark_seg.engine.stepping.push numpy", None)
    assert not between
    assert {step for step, _ in found} >= LOGGED, "the log lines do ask, and it is seen"


@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeeds_own_look_at_the_norm_is_all(
    stage: int, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = watched(tree, tmp_path / "run", stage, monkeypatch)
    between = {who.split()[0] for step, who in found if step not in LOGGED}
    # torch.optim.AdamW counts its steps in tensors on the host
    between.discard("deepspeed.runtime.zero.stage_1_and_2._optimizer_step")
    assert between == {"deepspeed.runtime.utils.is_invalid_grad_norm"}


def test_the_watch_sees(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mmengine's own hook and a look at the norm before the step would be found."""
    options = {
        "default_hooks__runtime_info": {"type": "RuntimeInfoHook"},
        "optim_wrapper__optimizer__fused": False,
    }
    found = watched(tree, tmp_path / "run", "single", monkeypatch, **options)
    between = {who.split()[0] for step, who in found if step not in LOGGED}
    assert "mmengine.logging.message_hub._get_valid_value" in between
    assert "spark_seg.engine.stepping.guarded" in between


def test_a_late_number() -> None:
    late = LaggedNumber()
    assert late.take() is None
    for value in (1.5, float("nan")):
        late.push(torch.tensor(value))
        assert str(late.take()) == str(value)
        assert late.take() is None


def parameters() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
    weight = torch.nn.Parameter(torch.ones(3))
    return weight, torch.optim.AdamW([weight], lr=0.1, fused=True)


def test_told_late_all_the_same_skipped_at_once() -> None:
    """As on a GPU: the step is left out by the device, the host counts it one step later."""
    guard = StepGuard(limit=2)
    guard.lag = True
    weight, optimizer = parameters()
    guard.attach(optimizer)
    counts = []
    for index, grad in enumerate((1.0, float("nan"), float("inf"), 1.0)):
        before = weight.detach().clone()
        weight.grad = torch.full_like(weight, grad)
        optimizer.step()
        guard.after_step()
        assert torch.equal(weight, before) == (index in (1, 2))
        counts.append(guard._skipped)
        assert torch.isfinite(weight).all()
        if index == 3:
            guard._in_a_row = 2  # as if the third had not been the last of them
            with pytest.raises(ValueError, match=r"2 steps in a row.*held late3"):
                guard.check(["late4"])
        else:
            guard.check([f"late{index + 1}"])
    assert counts == [0, 0, 1, 2]
    assert guard.skipped == 2
    step = optimizer.state[weight]["step"]
    assert float(step) == 2, "bias correction counts the steps that were made"


@pytest.mark.parametrize("unscale", [1.0, 1 / 1024])
def test_gated_steps_equal_stock(unscale: float) -> None:
    """Fused and guarded, unscaled and clipped: torch's own AdamW after torch's own clipping."""
    guard = StepGuard(clip_grad=0.5)
    weight, optimizer = parameters()
    guard.attach(optimizer)
    guard.unscale = unscale
    other = torch.nn.Parameter(torch.ones(3))
    stock = torch.optim.AdamW([other], lr=0.1, fused=False, foreach=False)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        grad = torch.randn(3, generator=generator)
        weight.grad, other.grad = grad / unscale, grad.clone()
        norm = torch.nn.utils.clip_grad_norm_([other], 0.5)
        optimizer.step()
        assert guard.after_step() == pytest.approx(float(norm), rel=1e-6)
        stock.step()
        torch.testing.assert_close(weight, other, rtol=1e-6, atol=1e-6)
