"""Sizes and costs of the six variants."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from spark_seg.models.freeze import freeze_backbone
from spark_seg.models.summary import count_flops, count_parameters

PARAMETERS = {
    "b0": 3.716,
    "b1": 13.679,
    "b2": 24.724,
    "b3": 44.600,
    "b4": 61.370,
    "b5": 81.971,
}


@pytest.mark.parametrize("variant", PARAMETERS)
def test_parameters(build_model: Callable[..., nn.Module], variant: str) -> None:
    model = build_model(variant)
    counts = count_parameters(model)
    assert round(counts["total"] / 1e6, 3) == PARAMETERS[variant]
    assert counts["trainable"] == counts["total"] == counts["backbone"] + counts["decode_head"]


def test_frozen_parameters_are_not_trainable(build_model: Callable[..., Any]) -> None:
    model = build_model("b0")
    freeze_backbone(model)
    counts = count_parameters(model)
    assert counts["trainable"] == counts["decode_head"] > 0
    assert set(counts) == {"total", "trainable", "backbone", "decode_head"}


# Multiply-accumulates worked out by hand from the architecture.
@pytest.mark.parametrize(
    ("variant", "size", "gmac"),
    [("b0", 512, 7.77), ("b0", 1024, 43.6), ("b2", 512, 25.1), ("b5", 1024, 419)],
)
def test_flops(build_model: Callable[..., nn.Module], variant: str, size: int, gmac: float) -> None:
    model = build_model(variant)
    start = time.monotonic()
    flops = count_flops(model, size)
    assert time.monotonic() - start < 10
    assert flops / 2e9 == pytest.approx(gmac, rel=0.01)


def test_flops_of_one_layer() -> None:
    # 5 x 7 outputs, 4 channels, each 3 * 3 * 3 multiply-accumulates.
    conv = nn.Conv2d(3, 4, 3, padding=1)
    assert count_flops(conv, (5, 7)) == 2 * 5 * 7 * 4 * 27


def test_counting_leaves_the_model_alone(build_model: Callable[..., nn.Module]) -> None:
    model = build_model("b0").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rng = torch.get_rng_state()
    first = count_flops(model, (64, 96))
    assert count_flops(model.eval(), (64, 96)) == first
    assert torch.equal(torch.get_rng_state(), rng)
    for key, tensor in model.state_dict().items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, before[key])
