"""CUDA graphs change nothing but the time; without a GPU they change nothing at all."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from recordings import stand_in
from torch import Tensor, nn

from spark_seg.errors import UserError
from spark_seg.models import graphs
from spark_seg.models.graphs import Recorded, RecordedTraining, record_training

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def test_on_a_cpu_every_call_computes() -> None:
    calls = []
    run = Recorded(lambda x: calls.append(1) or [x + 1])  # type: ignore[func-returns-value]
    for _ in range(4):
        (out,) = run(torch.zeros(2))
        assert out.tolist() == [1, 1]
    assert len(calls) == 4


class Again:
    """A recording that computes when it is replayed."""

    def __init__(self, run: Callable[..., Any], places: list[Tensor], found: list[Tensor]) -> None:
        self.run, self.places, self.found = run, places, found

    def replay(self) -> None:
        for place, x in zip(self.found, self.run(*self.places), strict=True):
            place.copy_(x)


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, record: Callable[..., Any]) -> None:
    monkeypatch.setattr(graphs, "_on_gpu", lambda tensors: True)
    monkeypatch.setattr(graphs, "_record", record)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


def test_shapes_that_take_turns_are_not_recorded_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Crops of two passes, scales of test-time augmentation: four shapes are recorded, further ones compute plainly."""
    recorded: list[tuple[int, ...]] = []

    def record(run: Callable[..., Any], given: Any) -> Any:
        recorded.append(tuple(given[0].shape))
        places = [x.clone() for x in given]
        found = run(*places)
        return Again(run, places, found), places, found

    as_on_a_gpu(monkeypatch, record)
    run = Recorded(lambda x: [2 * x])
    for turn in range(6):
        for size in range(1, 7):
            (out,) = run(torch.full((size,), float(turn)))
            assert out.tolist() == [2.0 * turn] * size
    assert recorded == [(size,) for size in range(1, 5)]


def test_a_recording_that_fails_gives_the_others_memory_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def record(run: Callable[..., Any], given: Any) -> Any:
        if len(given[0]) > 1:
            raise torch.OutOfMemoryError("out of memory")
        found = run(*given)
        return Again(run, [*given], found), [*given], found

    as_on_a_gpu(monkeypatch, record)
    run = Recorded(lambda x: [x + 1])
    run(torch.zeros(1)), run(torch.zeros(1)), run(torch.zeros(2))
    assert len(run._graphs) == 1
    with pytest.warns(UserWarning, match="no CUDA graph"):
        (out,) = run(torch.zeros(2))
    assert out.tolist() == [1, 1]
    assert not run._graphs


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


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    return stand_in(monkeypatch)


class TwoScales(nn.Module):
    """Takes a list and has a buffer, as a decode head."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.map = nn.BatchNorm1d(4), nn.Linear(8, 2)
        self.map.bias.requires_grad_(False)

    def forward(self, scales: list[Tensor]) -> Tensor:
        return self.map(torch.cat([self.norm(x) for x in scales], 1))


def test_a_recording_is_of_the_modules_parameters(recordings: list[Any]) -> None:
    """Their gradients, the input's and the statistics are those of plain steps; no node of theirs is recorded."""
    torch.manual_seed(0)
    plain: Any = TwoScales()
    module = copy.deepcopy(plain)
    recorded = RecordedTraining(module)
    scales = [torch.randn(6, 4, requires_grad=True) for _ in range(2)]
    others = [x.detach().clone().requires_grad_() for x in scales]
    for step in range(5):
        recorded(scales).square().sum().backward()
        plain(others).square().sum().backward()
        assert len(recordings) == (step >= 2), "at the third step, once"
    places = [x.data_ptr() for x in torch.utils._pytree.tree_leaves(recordings[0])[2:]]
    assert places == [p.data_ptr() for p in module.parameters()]
    assert not {id(x) for x in recordings[0]} & {id(p) for p in module.parameters()}
    for (name, ours), theirs in zip(module.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (name == "map.bias")
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad)
    for x, other in zip(scales, others, strict=True):
        assert torch.equal(x.grad, other.grad)  # type: ignore[arg-type]
    assert torch.equal(module.norm.running_mean, plain.norm.running_mean)


def test_what_is_awaited(recordings: list[Any]) -> None:
    """Between a replay and its backward pass, or as long as anything could begin that, calls are plain."""
    layer = nn.Linear(3, 2)
    recorded = RecordedTraining(layer)
    plain = recorded._plain
    calls: list[int] = []
    recorded._plain = lambda *x: calls.append(1) or plain(*x)  # type: ignore[func-returns-value]
    x = torch.randn(4, 3)
    for _ in range(3):
        recorded(x).sum().backward()
    assert recordings
    calls.clear()
    first = recorded(x).sum()  # the output is gone, what its backward pass needs is not
    recorded(x)
    assert len(calls) == 1
    first.backward()
    recorded(x)
    assert len(calls) == 1, "its loss lives on, its backward pass is over"
    recorded(x)
    assert len(calls) == 1, "the one before was dropped"


def test_hooks_are_told(recordings: list[Any]) -> None:
    layer = nn.Linear(3, 2)
    layer.register_forward_hook(lambda *_: None)
    recorded = RecordedTraining(layer)
    x = torch.randn(4, 3)
    recorded(x), recorded(x)
    with pytest.raises(UserError, match="the Linear has hooks"):
        recorded(x)
    assert not recordings


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
    for recorded in (False, True):
        torch.manual_seed(0)
        model: Any = build_model("b0").cuda().train()
        accelerate(model)
        if recorded:
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
