"""What only a GPU's path computes differently: the whole network by kernels, parameters anywhere, shared graphs."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from same_network import accelerate, assert_same, difference, image, randomize
from torch import Tensor, nn

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def pair(build_model: Callable[..., nn.Module], device: str) -> tuple[Any, Any]:
    torch.manual_seed(0)
    stock = randomize(build_model("b0")).to(device).train()
    fast = copy.deepcopy(stock)
    accelerate(fast)
    return stock, fast


@pytest.mark.slow
def test_the_whole_network_by_kernels(
    build_model: Callable[..., nn.Module], kernels_on: str
) -> None:
    """fp32; interpreted, it takes minutes."""
    from spark_seg.models.fast_inference import freeze_weights

    stock, fast = pair(build_model, kernels_on)
    x = image().to(kernels_on)
    assert_same(fast, stock, x)
    fast.eval(), stock.eval()
    assert freeze_weights(fast, torch.float32)
    with torch.no_grad():
        assert difference(fast(x), stock(x)) < 1e-5


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_whole_network_on_a_gpu(
    build_model: Callable[..., nn.Module], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    stock, fast = (m.to(dtype) for m in pair(build_model, "cuda"))
    assert_same(fast, stock, image(dtype=dtype).cuda())


def misplaced(norm: nn.BatchNorm2d) -> None:
    """Parameters three numbers behind a place that vector instructions can read from, as DeepSpeed lays them."""
    flat = torch.zeros(3 + 2 * norm.num_features, device=norm.weight.device)
    for i, name in enumerate(("weight", "bias")):
        value = flat[3 + i * norm.num_features :][: norm.num_features]
        getattr(norm, name).data = value.copy_(getattr(norm, name).data)


@pytest.mark.usefixtures("build_model")
def test_batch_norm_with_parameters_anywhere() -> None:
    """On a GPU stock fails with a misaligned address, with channels last."""
    from spark_seg.models.fast_layers import FastBatchNorm2d

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    stock = nn.BatchNorm2d(16).to(device)
    nn.init.uniform_(stock.weight), nn.init.normal_(stock.bias)
    fast = copy.deepcopy(stock)
    fast.__class__ = FastBatchNorm2d
    misplaced(fast)
    assert fast.weight.data_ptr() % 16
    x = torch.randn(2, 16, 8, 8, device=device).to(memory_format=torch.channels_last)
    for norm in (stock, fast):
        norm(x).square().sum().backward()
    assert torch.allclose(fast.weight.grad, stock.weight.grad, rtol=1e-5)
    assert fast.state_dict().keys() == stock.state_dict().keys()
    for name, value in stock.state_dict().items():
        assert torch.allclose(fast.state_dict()[name], value), name


@pytest.mark.usefixtures("build_model")  # with its shims
@pytest.mark.parametrize("size", [(8, 12), (9, 12)])
def test_patches_as_a_linear_map(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's way, on whatever is there; sizes that leave a border out go the usual way."""
    from spark_seg.models.fast_layers import PatchConv2d

    torch.manual_seed(0)
    stock = nn.Conv2d(5, 7, 4, 4).double()
    fast: Any = copy.deepcopy(stock)
    fast.__class__ = PatchConv2d
    x = torch.randn(2, 5, *size, dtype=torch.float64)
    monkeypatch.setattr(Tensor, "is_cuda", True)
    out = fast(x)
    monkeypatch.undo()
    assert (out - stock(x)).abs().max() < 1e-12


def test_blocks_that_differ_in_drop_path_share_a_graph(
    build_model: Callable[..., nn.Module],
) -> None:
    """Each stage's blocks are two graphs at most: the first has no drop path."""
    from spark_seg.models.compiling import compile_regions

    model: Any = build_model("b2").train()
    accelerate(model)
    plain = copy.deepcopy(model)
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compile_regions(model, {"backend": backend}, training=True)
    x = torch.randn(2, 3, 64, 64)
    torch.manual_seed(1)
    out = model(x)
    assert len(graphs) <= 4 + 1 + 1, "four stages, one of them twice, and the head's fusion"
    torch.manual_seed(1)
    assert difference(out.detach(), plain(x).detach()) < 1e-5, "the same blocks dropped"
