"""A frozen backbone is a fixed function, whatever mode the model is put into."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mmengine.structures import PixelData
from torch import nn

from spark_seg.models.freeze import freeze_backbone

IMAGE = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(build_model: Callable[..., nn.Module]) -> Any:
    torch.manual_seed(0)
    return build_model("b0")


def same_twice(model: Any) -> bool:
    first, second = model.backbone(IMAGE), model.backbone(IMAGE)
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def assert_frozen(model: Any) -> None:
    model.train()
    assert model.training
    assert model.decode_head.training
    assert not any(module.training for module in model.backbone.modules())
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert all(p.requires_grad for p in model.decode_head.parameters())
    assert same_twice(model)


def test_unfrozen_backbone_drops_paths(model: Any) -> None:
    # Otherwise the tests below would prove nothing.
    assert not same_twice(model.train())


def test_stays_frozen(model: Any) -> None:
    freeze_backbone(model)
    assert_frozen(model)
    model.backbone.train()
    assert_frozen(model)
    assert not model.eval().decode_head.training
    assert_frozen(model)
    freeze_backbone(model)
    assert_frozen(model)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_frozen(model: Any, duplicate: Callable[[Any], Any]) -> None:
    freeze_backbone(model)
    twin = duplicate(model)
    for module in twin.backbone.modules():
        module.training = True
    twin.backbone.train()
    assert_frozen(twin)
    assert twin.backbone.train.args[0] is twin.backbone


def test_only_the_head_learns(model: Any) -> None:
    from mmseg.structures import SegDataSample

    freeze_backbone(model)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    model.train()
    label = torch.zeros(1, 64, 64, dtype=torch.long)
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for _ in IMAGE]
    for _ in range(2):
        optimizer.zero_grad()
        loss, _ = model.parse_losses(model.loss(IMAGE, samples))
        loss.backward()
        optimizer.step()
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {k for k in before if k.startswith("decode_head.")}
