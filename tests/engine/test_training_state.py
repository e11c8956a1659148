"""An optimizer's state by name: what is gathered and put back goes on as if nothing had been between."""

from typing import Any

import pytest
import torch
from torch import nn

from spark_seg.engine.training_state import gather_optimizer_state, scatter_optimizer_state

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "SGD": {"momentum": 0.9},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Adagrad": {},
    "Adadelta": {},
    "Adamax": {},
    "NAdam": {},
    "RAdam": {},
    "ASGD": {"lambd": 0.1, "t0": 1.0},
    "Rprop": {},
    "Adafactor": {},
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))


def steps(module: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_torch_goes_on(name: str) -> None:
    make = getattr(torch.optim, name)
    options = {"lr": 0.05, **OPTIMIZERS[name]}
    module, fresh = network(), network()
    optimizer = make(module.parameters(), **options)
    steps(module, optimizer, range(3))
    state = gather_optimizer_state(optimizer, module, keep=True)
    fresh.load_state_dict(module.state_dict())
    other = make(fresh.parameters(), **options)
    scatter_optimizer_state(other, fresh, state)
    steps(module, optimizer, range(3, 6))
    steps(fresh, other, range(3, 6))
    for ours, theirs in zip(fresh.parameters(), module.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_parameter_without_state_is_named() -> None:
    module = network()
    optimizer = torch.optim.NAdam(module.parameters())
    steps(module, optimizer, range(1))
    state = gather_optimizer_state(optimizer, module, keep=True)
    del state["2.weight//mu_product"]
    with pytest.raises(KeyError, match=r"2\.weight//mu_product"):
        scatter_optimizer_state(torch.optim.NAdam(module.parameters()), module, state)
    for name in list(state):  # as checkpoints were once
        if name.endswith("mu_product"):
            del state[name]
    with pytest.raises(KeyError, match="mu_product"):
        scatter_optimizer_state(torch.optim.NAdam(module.parameters()), module, state)
