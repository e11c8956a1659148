"""CUDA graphs of trainings without a GPU: recordings that compute plainly, through everything around them."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from spark_seg.models import graphs


class Replay(torch.autograd.Function):
    """A node of Python's in autograd's graph, one for all outputs, as the real one is."""

    @staticmethod
    def forward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.clone() for x in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients


def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Lets `RecordedTraining` record on a CPU; returns the list that receives each recording's sample arguments."""
    found: list[Any] = []

    def make_graphed_callables(function: Any, samples: Any) -> Any:
        assert all(x.is_leaf for x in tree_leaves(samples))
        found.append(samples)
        module = inspect.getclosurevars(function).nonlocals["module"]

        def replay(*given: Any) -> Any:
            forward = module.__dict__.pop("forward")  # a replay runs no Python
            try:
                outputs, form = tree_flatten(function(*given))
            finally:
                module.forward = forward
            return tree_unflatten(Replay.apply(*outputs), form)

        return replay

    monkeypatch.setattr(graphs, "_on_gpu", lambda tensors: True)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make_graphed_callables)
    monkeypatch.setattr(torch.cuda, "get_rng_state", torch.get_rng_state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", torch.set_rng_state)
    return found
