"""The averaged weights are the formula's, step by step."""

import contextlib

import pytest
import torch
from torch import nn

from spark_seg.engine.ema import ModelEma
from spark_seg.errors import UserError


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average(on_device: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 2).to(dtype)
    ema = ModelEma(module, decay=0.3, zero_stage=0)
    expected = [p.detach().double().clone() for p in module.parameters()]
    steps = 0
    for applied in (True, True, False, True, True, True):
        with torch.no_grad():
            for p in module.parameters():
                p.add_(torch.randn_like(p))
        ema.update(torch.tensor(applied) if on_device else applied)
        if applied:
            steps += 1
            decay = min(0.3, (1 + steps) / (10 + steps))
            for mean, p in zip(expected, module.parameters(), strict=True):
                mean.copy_(decay * mean + (1 - decay) * p.detach().double())
        for shadow, mean in zip(ema.shadow, expected, strict=True):
            assert shadow.dtype == torch.float32
            torch.testing.assert_close(shadow.double(), mean, rtol=1e-5, atol=1e-6)
    assert ema.steps == steps == 5


def test_swapped_in_and_out_bit_for_bit() -> None:
    module = nn.Linear(3, 2)
    own = [p.detach().clone() for p in module.parameters()]
    ema = ModelEma(module, decay=0.9, zero_stage=0)
    with torch.no_grad():
        for shadow in ema.shadow:
            shadow.add_(1)
    with contextlib.suppress(RuntimeError), ema.swapped_in():
        for p, before in zip(module.parameters(), own, strict=True):
            assert torch.equal(p, before + 1)
        raise RuntimeError
    for p, before in zip(module.parameters(), own, strict=True):
        assert torch.equal(p, before)


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0, 2.0])
def test_a_decay_out_of_range(decay: float) -> None:
    with pytest.raises(UserError, match="ema_decay must lie between 0 and 1"):
        ModelEma(nn.Linear(1, 1), decay, 0)
