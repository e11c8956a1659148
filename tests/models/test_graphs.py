"""CUDA graphs change nothing but the time; without a GPU they change nothing at all."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spark_seg.models.graphs import Recorded, RecordedTraining, record_training

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def test_on_a_cpu_every_call_computes() -> None:
    calls = []
    run = Recorded(lambda x: calls.append(1) or [x + 1])  # type: ignore[func-returns-value]
    for _ in range(4):
        (out,) = run(torch.zeros(2))
        assert out.tolist() == [1, 1]
    assert len(calls) == 4


def test_training_on_a_cpu_is_the_modules_own() -> None:
    torch.manual_seed(0)
    layer, plain = nn.Linear(3, 2), nn.Linear(3, 2)
    plain.load_state_dict(layer.state_dict())
    recorded = RecordedTraining(layer)
    assert layer.forward is recorded
    assert list(layer.state_dict()) == list(plain.state_dict())
    x = torch.randn(4, 3)
    for _ in range(5):
        assert torch.equal(layer(x), plain(x))


def test_a_copy_computes_with_its_own_parameters() -> None:
    layer = nn.Linear(3, 2)
    recorded = RecordedTraining(layer)
    recorded._replays["shape"] = lambda *_: pytest.fail("another module's recording")
    copied: Any = copy.deepcopy(layer)
    nn.init.zeros_(copied.weight), nn.init.ones_(copied.bias)
    assert copied.forward is not recorded
    assert copied.forward._replays == {}
    assert copied(torch.randn(4, 3)).eq(1).all()
    assert not layer(torch.randn(4, 3)).eq(1).all()


@gpu
def test_replays_compute_anew() -> None:
    calls = []
    weight = torch.randn(8, 8, device="cuda")

    def run(x: Tensor) -> list[Tensor]:
        calls.append(1)
        return [x @ weight, x.relu()]

    recorded = Recorded(run)
    outs = []
    for seed in range(6):
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed)).cuda()
        outs.append((x, recorded(x)))
    assert len(calls) == 3, "once plainly, twice for the recording"
    for x, (product, relu) in outs:  # later calls must not have changed them
        assert torch.equal(product, x @ weight)
        assert torch.equal(relu, x.relu())


@gpu
@pytest.mark.parametrize("held", [False, True])
def test_training_replays_are_plain_steps(
    build_model: Callable[..., nn.Module], held: bool
) -> None:
    """Also where parameters' nodes outlive a step, as `loss` does here and DeepSpeed's hooks on parameters do."""
    from spark_seg.models.fast_segformer import accelerate

    losses, models = [], []
    for graphs in (False, True):
        torch.manual_seed(0)
        model: Any = build_model("b0").cuda().train()
        accelerate(model)
        if graphs:
            record_training(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        nodes = [p.expand_as(p).grad_fn.next_functions for p in model.parameters()] if held else []
        torch.manual_seed(1)
        losses.append([])
        for _ in range(7):
            loss = model(torch.randn(2, 3, 64, 64, device="cuda")).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(loss.item())
        models.append(model.state_dict())
        assert len(nodes) == held * len(list(model.parameters()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for name, value in models[0].items():
        assert torch.allclose(models[1][name].float(), value.float(), rtol=1e-3, atol=1e-4), name


@gpu
def test_a_second_call_before_the_backward_pass_keeps_the_first() -> None:
    layer = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)).cuda()
    RecordedTraining(layer)
    for _ in range(5):
        layer(torch.randn(3, 4, device="cuda")).sum().backward()
    layer.zero_grad()
    one, two = torch.randn(2, 3, 4, device="cuda")
    (layer(one).sum() + layer(two).sum()).backward()
    ours = layer[0].weight.grad.clone()
    layer.zero_grad()
    layer.eval()
    (layer(one).sum() + layer(two).sum()).backward()
    assert torch.allclose(ours, layer[0].weight.grad, atol=1e-5)
