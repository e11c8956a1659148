"""Parameter groups and the learning rate schedule."""

import math
from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import nn

from spark_seg.engine.optim import (
    GroupedOptimWrapperConstructor,
    WarmupConstantLR,
    WarmupCosineLR,
    WarmupPolyLR,
    WarmupStepLR,
)
from spark_seg.errors import UserError

LR, DECAY = 1e-2, 0.1


class Net(nn.Module):
    """A bit of everything: convolution, norms, attention (whose `in_proj_bias` mmengine does not know), a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.LayerNorm(4)
        self.gamma = nn.Parameter(torch.ones(4))
        self.head = nn.Linear(4, 3)


def groups_of(net: nn.Module, paramwise: dict | None) -> dict[str, tuple[float, float, int]]:
    """For each parameter that is optimized: its lr, weight decay, and the index of its group."""
    cfg = dict(
        type="OptimWrapper",
        optimizer=dict(type="AdamW", lr=LR, weight_decay=DECAY, _scope_="mmengine"),
        _scope_="mmengine",
    )
    wrapper: OptimWrapper = GroupedOptimWrapperConstructor(cfg, paramwise)(net)
    names = {id(p): name for name, p in net.named_parameters()}
    found = {}
    for i, group in enumerate(wrapper.optimizer.param_groups):
        for p in group["params"]:
            assert id(p) in names
            assert names[id(p)] not in found, "a parameter in two groups is stepped twice"
            found[names[id(p)]] = (group["lr"], group["weight_decay"], i)
    return found


PARAMWISE = {"norm_decay_mult": 0.0, "bias_decay_mult": 0.0}


@pytest.mark.parametrize("paramwise", [PARAMWISE, {}, None])
def test_decay_on_matrices_alone(paramwise: dict | None) -> None:
    net = Net()
    found = groups_of(net, paramwise)
    assert set(found) == {name for name, _ in net.named_parameters()}
    for name, p in net.named_parameters():
        assert found[name][:2] == (LR, DECAY if p.ndim >= 2 else 0.0), name
    assert len({i for *_, i in found.values()}) == 2


def test_frozen_parameters_are_left_out() -> None:
    net = Net()
    net.conv.requires_grad_(False)
    net.bn.requires_grad_(False)
    found = groups_of(net, PARAMWISE)
    assert not [name for name in found if name.startswith(("conv", "bn"))]
    assert set(found) == {name for name, p in net.named_parameters() if p.requires_grad}


def test_custom_keys_scale_the_rate() -> None:
    keys = {"head": {"lr_mult": 10.0}, "conv": {"lr_mult": 0.1, "decay_mult": 0.5}}
    found = groups_of(Net(), {**PARAMWISE, "custom_keys": keys})
    assert found["head.weight"][:2] == pytest.approx((10 * LR, DECAY))
    assert found["head.bias"][:2] == pytest.approx((10 * LR, 0.0))
    assert found["conv.weight"][:2] == pytest.approx((0.1 * LR, 0.5 * DECAY))
    assert found["attention.out_proj.weight"][:2] == pytest.approx((LR, DECAY))
    assert len({i for *_, i in found.values()}) == 6


def test_groups_of_a_whole_model_are_few() -> None:
    from mmseg.registry import MODELS

    from spark_seg.config import load_config

    cfg = load_config("segformer_b2_spark.py")
    model = MODELS.build(cfg.model)
    found = groups_of(model, cfg.optim_wrapper.paramwise_cfg)
    assert len(found) > 300
    assert len({i for *_, i in found.values()}) == 2


def test_construction_says_nothing_a_parameter_at_a_time(caplog: pytest.LogCaptureFixture) -> None:
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.addHandler(caplog.handler)
    try:
        logger.error("heard")
        groups_of(Net(), PARAMWISE)
    finally:
        logger.removeHandler(caplog.handler)
    said = [r.getMessage() for r in caplog.records]
    assert "heard" in said
    assert not [line for line in said if "paramwise" in line]
    assert logger.level == level


def by_hand(t: int, total: int, warmup: int, lr: float, start: float, low: float) -> float:
    if t < warmup:
        return start + (lr - start) * t / warmup
    return low + (lr - low) * (1 + math.cos(math.pi * (t - warmup) / (total - warmup))) / 2


def rates(
    epochs: int, length: int, lrs: tuple[float, ...] = (LR,), **options: Any
) -> list[list[float]]:
    """The rate of each group at each of the steps 0 to `epochs * length`, the last one past the training's end."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs]
    optimizer = torch.optim.SGD(groups, lr=LR)
    schedule = WarmupCosineLR.build_iter_from_epoch(
        optimizer, end=epochs, epoch_length=length, **options
    )
    seen = []
    for _ in range(epochs * length + 1):
        seen.append([g["lr"] for g in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize(
    ("epochs", "length", "warmup_epochs", "warmup_steps"),
    [
        (10, 7, 2, 14),
        (10, 7, 0, 0),
        (10, 7, 0.1, 7),
        (4, 5, 0.5, 10),
        (20, 3, 1, 3),
        (10, 4, 2.5, 10),
    ],
)
def test_schedule_is_the_formula(
    epochs: int, length: int, warmup_epochs: float, warmup_steps: int
) -> None:
    seen = rates(epochs, length, warmup_epochs=warmup_epochs, warmup_lr=1e-5, min_lr=1e-4)
    total = epochs * length
    wanted = [by_hand(t, total, warmup_steps, LR, 1e-5, 1e-4) for t in range(total + 1)]
    assert [s for (s,) in seen] == pytest.approx(wanted, rel=1e-12)
    assert seen[-1][0] == pytest.approx(1e-4, rel=1e-9), "ends at min_lr"
    assert max(s for (s,) in seen) == pytest.approx(LR), "reaches the base rate"


def test_it_is_a_cosine_and_no_line() -> None:
    """At a quarter of the way down a cosine has lost 15 % of its height, a line 25 %, a square 44 %."""
    seen = rates(100, 4, warmup_epochs=0, min_lr=0.0)
    share = [s / LR for (s,) in seen]
    assert share[100] == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert share[200] == pytest.approx(0.5)
    assert share[300] == pytest.approx((1 - math.sqrt(0.5)) / 2)


def test_groups_keep_their_ratio() -> None:
    seen = rates(10, 5, lrs=(LR, 10 * LR), warmup_epochs=1, warmup_lr=1e-5, min_lr=1e-4)
    for low, high in seen:
        assert high == pytest.approx(10 * low, rel=1e-9)


def test_warm_up_longer_than_half_is_cut_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        seen = rates(4, 5, warmup_epochs=5, min_lr=1e-6)
    finally:
        logger.removeHandler(caplog.handler)
    assert "warmup_epochs=5 is more than half of the 4 epochs: warming up for 2" in caplog.text
    assert seen[10][0] == pytest.approx(LR)
    assert seen[9][0] < LR
    assert seen[11][0] < LR


def test_negative_warm_up() -> None:
    with pytest.raises(UserError, match="warmup_epochs must not be negative"):
        rates(4, 5, warmup_epochs=-1)


def test_state_goes_on_where_it_was() -> None:
    def make() -> tuple[torch.optim.SGD, WarmupCosineLR]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
        return optimizer, WarmupCosineLR(optimizer, end=5, epoch_length=4, warmup_epochs=1)

    optimizer, schedule = make()
    for _ in range(9):
        optimizer.step()
        schedule.step()
    state = schedule.state_dict()
    other, resumed = make()
    other.step()
    resumed.load_state_dict(state)
    for one, its in ((optimizer, schedule), (other, resumed)):
        one.step()
        its.step()
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


# ---------------------------------------------------------------- other schedules


def curve(
    cls: Any, epochs: int = 10, length: int = 7, lr: float = LR, **options: Any
) -> list[float]:
    """The rate at each step of a training of one group."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = cls.build_iter_from_epoch(optimizer, end=epochs, epoch_length=length, **options)
    seen = []
    for _ in range(epochs * length + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize("warmup_epochs", [0, 2, 0.2])
@pytest.mark.parametrize(
    ("cls", "options", "after"),
    [
        (WarmupPolyLR, {}, lambda d: 1e-4 + (LR - 1e-4) * (1 - d)),
        (WarmupPolyLR, {"power": 0.9}, lambda d: 1e-4 + (LR - 1e-4) * (1 - d) ** 0.9),
        (WarmupConstantLR, {}, lambda d: LR),
        (
            WarmupStepLR,
            {"milestones": [0.5, 0.75], "gamma": 0.2},
            lambda d: LR * (1 if d < 0.5 else 0.2 if d < 0.75 else 0.04),
        ),
        # never below min_lr
        (WarmupStepLR, {"milestones": [0.5], "gamma": 1e-3}, lambda d: LR if d < 0.5 else 1e-4),
    ],
)
def test_schedules_are_their_formulas(
    cls: Any, options: dict, after: Any, warmup_epochs: float
) -> None:
    seen = curve(cls, warmup_epochs=warmup_epochs, warmup_lr=1e-5, min_lr=1e-4, **options)
    warmup = {0: 0, 2: 14, 0.2: 14}[warmup_epochs]
    wanted = [
        1e-5 + (LR - 1e-5) * t / warmup if t < warmup else after((t - warmup) / (70 - warmup))
        for t in range(71)
    ]
    assert seen == pytest.approx(wanted, rel=1e-9)


def test_schedules_refuse_nonsense() -> None:
    for cls, options, said in (
        (WarmupPolyLR, {"power": 0}, "power=0"),
        (WarmupStepLR, {"milestones": [30]}, "shares of the training"),
        (WarmupStepLR, {"gamma": 2}, "gamma=2"),
    ):
        with pytest.raises(UserError, match=said):
            curve(cls, **options)


# ---------------------------------------------------------------- rates by depth


def test_layer_decay_and_head_factor() -> None:
    from mmseg.registry import MODELS

    from spark_seg.config import load_config

    cfg = load_config("segformer_b0_spark.py", {"layer_decay": 0.5, "head_lr": 4})
    model = MODELS.build(cfg.model)
    found = groups_of(model, dict(cfg.optim_wrapper.paramwise_cfg))
    assert set(found) == {name for name, _ in model.named_parameters()}
    # b0 has 8 blocks, two a stage
    for name, power in (
        ("backbone.layers.0.0.projection.weight", 8),
        ("backbone.layers.0.1.0.attn.attn.in_proj_weight", 8),
        ("backbone.layers.0.1.1.ffn.layers.0.weight", 7),
        ("backbone.layers.0.2.weight", 7),
        ("backbone.layers.2.0.norm.bias", 4),
        ("backbone.layers.3.1.1.norm2.weight", 1),
        ("backbone.layers.3.2.weight", 1),
    ):
        assert found[name][0] == pytest.approx(LR * 0.5**power), name
    assert found["decode_head.conv_seg.weight"][0] == pytest.approx(4 * LR)
    assert found["decode_head.conv_seg.bias"][:2] == pytest.approx((4 * LR, 0.0))
    assert len({i for *_, i in found.values()}) == 2 * 9


def test_paramwise_keys_are_checked() -> None:
    with pytest.raises(UserError, match="did you mean 'layer_decay'"):
        groups_of(Net(), {"layer_decai": 0.9})
    with pytest.raises(UserError, match="layer_decay=2 must lie"):
        groups_of(Net(), {"layer_decay": 2})
    with pytest.raises(UserError, match="head_lr=0 must be"):
        groups_of(Net(), {"head_lr": 0})
    with pytest.raises(UserError, match="no backbone"):
        groups_of(Net(), {"layer_decay": 0.9})
