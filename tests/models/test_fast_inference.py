"""Frozen weights: the accelerated model's function, and when the freeze ends."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from same_network import difference, randomize
from torch import Tensor, nn

import spark_seg.register  # noqa: F401
from spark_seg.models import bands, fast_inference, frozen_layers
from spark_seg.models.fast_inference import freeze_weights
from spark_seg.models.fast_layers import attend


@pytest.fixture(scope="module")
def models(build_model: Callable[..., nn.Module]) -> tuple[Any, Any]:
    from spark_seg.models.fast_segformer import accelerate

    torch.manual_seed(0)
    stock = build_model("b0").eval()
    randomize(stock)
    fast = copy.deepcopy(stock)
    accelerate(fast)
    return stock, fast


@pytest.fixture
def fast(models: tuple[Any, Any]) -> Any:
    return copy.deepcopy(models[1])


def image(height: int = 64, width: int = 96, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def forwards(model: Any) -> list[Any]:
    """Counts the calls of the frozen forwards."""
    calls: list[Any] = []
    for module in (model.backbone, model.decode_head):
        frozen = module.frozen
        if frozen is not None:
            usable = frozen.usable
            frozen.usable = lambda m, x, u=usable: calls.append(u(m, x)) or calls[-1]
    return calls


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_logits(
    models: tuple[Any, Any], fast: Any, dtype: torch.dtype, fused: bool, monkeypatch: Any
) -> None:
    if not fused:  # as on a machine without oneDNN
        monkeypatch.setattr(frozen_layers, "fused_operators", lambda *_: False)
    stock = copy.deepcopy(models[0]).to(dtype)
    fast.to(dtype)
    assert freeze_weights(fast, dtype)
    calls = forwards(fast)
    limit = 1e-5 if dtype == torch.float32 else 1e-10
    with torch.no_grad():
        for x in (image(), image(97, 131, batch=1), image(33, 50, batch=5)):
            before = x.clone()
            assert difference(fast(x.to(dtype)), stock(x.to(dtype))) < limit
            assert torch.equal(x, before)
    assert calls == [True] * 6


@pytest.mark.parametrize("size", [1, 1 << 15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_logits_in_bands(
    models: tuple[Any, Any], fast: Any, dtype: torch.dtype, size: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr(bands, "BAND_BYTES", size)
    upsampled = []
    count = fast_inference.upsample_rows
    monkeypatch.setattr(
        fast_inference, "upsample_rows", lambda *a: upsampled.append(a[1]) or count(*a)
    )
    stock = copy.deepcopy(models[0]).to(dtype)
    assert freeze_weights(fast.to(dtype), dtype)
    limit = 1e-5 if dtype == torch.float32 else 1e-10
    with torch.no_grad():
        for x in (image(128, 64), image(96, 160, batch=1), image(97, 131, batch=1)):
            upsampled.clear()
            assert difference(fast(x.to(dtype)), stock(x.to(dtype))) < limit
            # sides that are no multiples of 32 have the head's maps whole
            assert (len(set(upsampled)) > 1) == (x.shape[2] != 97)


@pytest.mark.slow
def test_same_logits_b2(build_model: Callable[..., nn.Module]) -> None:
    from spark_seg.models.fast_segformer import accelerate

    torch.manual_seed(0)
    stock = build_model("b2").eval()
    randomize(stock)
    frozen = copy.deepcopy(stock)
    accelerate(frozen)
    assert freeze_weights(frozen)
    with torch.inference_mode():
        assert difference(frozen(image(128, 128)), stock(image(128, 128))) < 1e-5


def test_bf16_no_further_than_autocast(models: tuple[Any, Any], fast: Any) -> None:
    stock = models[0]
    assert freeze_weights(fast, torch.bfloat16)
    calls = forwards(fast)
    with torch.inference_mode():
        exact = stock(image())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            theirs, ours = stock(image()).float(), fast(image())
    assert calls == [True, True]
    assert ours.dtype == torch.bfloat16
    assert difference(ours.float(), exact) < 1.5 * difference(theirs, exact) < 0.1


def test_not_used_where_it_would_be_wrong(models: tuple[Any, Any], fast: Any) -> None:
    assert freeze_weights(fast)
    calls = forwards(fast)
    out = fast(image(batch=1))  # gradients are wanted
    out.sum().backward()
    assert fast.decode_head.conv_seg.weight.grad is not None
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert fast(image(batch=1)).dtype == torch.bfloat16
    assert calls == [False] * 4


@pytest.mark.parametrize("how", ["train", "load", "cast", "copy", "pickle"])
def test_what_ends_the_freeze(fast: Any, how: str) -> None:
    assert freeze_weights(fast)
    state = {k: t * 1.1 if t.is_floating_point() else t for k, t in fast.state_dict().items()}
    assert fast.backbone.frozen is not None
    assert fast.decode_head.frozen is not None
    if how == "train":
        fast.train()
    elif how == "load":
        fast.load_state_dict(state)
    elif how == "cast":
        fast.double()
    elif how == "copy":
        fast = copy.deepcopy(fast)
    else:
        fast = pickle.loads(pickle.dumps(fast))
    assert fast.backbone.frozen is None
    assert fast.decode_head.frozen is None


def test_nothing_is_added_to_the_state(fast: Any) -> None:
    names, count = list(fast.state_dict()), len(list(fast.modules()))
    assert freeze_weights(fast)
    assert (list(fast.state_dict()), len(list(fast.modules()))) == (names, count)


def test_what_cannot_be_frozen(models: tuple[Any, Any], fast: Any) -> None:
    assert not freeze_weights(copy.deepcopy(models[0]))  # not accelerated
    assert not freeze_weights(fast.train())
    fast.eval()
    fast.backbone.layers[0][1][0].ffn.layers[2] = nn.ReLU()
    assert freeze_weights(fast)  # the head alone
    assert fast.backbone.frozen is None
    assert fast.decode_head.frozen is not None


@pytest.mark.parametrize("tokens", [48, 300])
@pytest.mark.parametrize("grad", [True, False])
def test_attention_in_slices(tokens: int, grad: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr("spark_seg.models.fast_layers._SCORES", 1 << (16 if grad else 12))
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8) for n in (tokens, 40, 40))
    exact = torch.softmax(q @ k.transpose(-1, -2) * 8**-0.5, -1) @ v
    inputs = [t.bfloat16().requires_grad_(grad) for t in (q, k, v)]
    with torch.set_grad_enabled(grad):
        out = attend(*inputs)
        names = str(out.grad_fn.next_functions) if grad else ""
    assert difference(out.float(), exact.transpose(1, 2).flatten(2)) < 0.02
    assert out.requires_grad == grad
    if grad:
        assert "BmmBackward" in str(walk(out.grad_fn)), names
        out.float().sum().backward()
        assert all(t.grad.isfinite().all() for t in inputs)


def walk(node: Any) -> set[str]:
    """Names of an autograd graph's nodes."""
    found = {type(node).__name__}
    for child, _ in node.next_functions:
        if child is not None:
            found |= walk(child)
    return found
