"""Triton's kernels compute what torch computes, gradients too: on a GPU, else interpreted on the CPU."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spark_seg.models import kernels
from spark_seg.models.depthwise import depthwise_gelu, usable
from spark_seg.models.linears import linear
from spark_seg.models.norms import FastLayerNorm, scaled_sum
from spark_seg.models.resizing import fits, shrink, sum_enlarged

# rounding of the result, in parts of the largest: bf16 has 8 bits
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
DTYPES = list(TOLERANCE)


def draw(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()


def assert_same(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], given: Sequence[Tensor], low: Any
) -> None:
    """Outputs and all gradients, against fp64; and the same numbers again, bit for bit."""
    found = []
    for run in (ours, ours, theirs):
        double = run is theirs
        leaves = [x.detach().to(torch.float64 if double else x.dtype) for x in given]
        leaves = [x.requires_grad_() for x in leaves]
        out = run(*leaves)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(low)
        out.backward(grad.to(out))
        found.append([out.detach(), *(x.grad for x in leaves)])
    for once, again, true in zip(*found, strict=True):
        assert torch.equal(once, again)
        error = (once.double() - true).abs().max() / true.abs().max()
        assert error < TOLERANCE[once.dtype], error


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 5, 7, 24), (1, 19, 33, 70)])
def test_depthwise_gelu(kernels_on: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    channels = shape[-1]
    given = [
        draw(*shape, dtype=dtype, device=kernels_on),
        draw(channels, 1, 3, 3, device=kernels_on),
        draw(channels, device=kernels_on),
    ]

    def theirs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        maps = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=channels)
        return F.gelu(maps).permute(0, 2, 3, 1)

    assert_same(depthwise_gelu, theirs, given, dtype)


def test_depthwise_as_an_operator(kernels_on: str) -> None:
    """What `torch.compile` sees: shapes and gradients are torch's to check."""
    given = [draw(1, 3, 4, 8), draw(8, 1, 3, 3), draw(8)]
    given = [x.detach().to(kernels_on).requires_grad_() for x in given]
    torch.library.opcheck(torch.ops.spark_seg.depthwise_gelu, tuple(given))
    plain = depthwise_gelu(*given)
    assert torch.equal(torch.ops.spark_seg.depthwise_gelu(*given), plain)


@pytest.mark.parametrize(
    "options",
    [{"stride": 2}, {"padding": 0}, {"dilation": 2}, {"groups": 4}, {"bias": False}],
)
def test_other_convolutions_are_left_alone(kernels_on: str, options: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"kernel_size": 3, "padding": 1, "groups": 8}
    x = draw(1, 8, 4, 4, device=kernels_on)
    assert usable(x, nn.Conv2d(8, 8, **usual))
    assert not usable(x, nn.Conv2d(8, 8, **{**usual, **options}))
    assert not usable(x.double(), nn.Conv2d(8, 8, **usual))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 35, 24), (1, 70, 160)])
def test_layer_norm(kernels_on: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    channels = shape[-1]
    norm = FastLayerNorm(channels, eps=1e-6).to(kernels_on)
    given = [
        draw(*shape, dtype=dtype, device=kernels_on),
        draw(channels, device=kernels_on),
        draw(channels + 0, device=kernels_on),
    ]

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x,))

    def theirs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, (channels,), weight, bias, 1e-6)

    assert_same(ours, theirs, given, dtype)


def test_layer_norm_writes_what_is_read_next(kernels_on: str) -> None:
    norm = FastLayerNorm(24).to(kernels_on)
    x = draw(2, 35, 24, device=kernels_on)
    with torch.autocast(kernels_on, dtype=torch.bfloat16):
        assert norm(x).dtype == torch.float32, "as torch on a GPU"
        assert norm(x.bfloat16()).dtype == torch.float32
        norm.low_precision = True
        assert norm(x).dtype == torch.bfloat16
    assert norm(x).dtype == torch.float32
    assert norm(x.bfloat16()).dtype == torch.bfloat16, "no autocast: as it comes"


@pytest.mark.parametrize("dtype", DTYPES)
def test_scaled_sum(kernels_on: str, dtype: torch.dtype) -> None:
    """Drop path: what is added up stays in fp32, whatever the branch comes in."""
    scale = torch.tensor([0.0, 1.25], device=kernels_on)
    given = [draw(2, 35, 24, device=kernels_on), draw(2, 35, 24, dtype=dtype, device=kernels_on)]
    assert_same(
        lambda x, branch: scaled_sum(x, branch, scale),
        lambda x, branch: x + branch * scale[:, None, None],
        given,
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factors", [(1, 2, 4, 8), (1, 2), (1, 4, 8)])
def test_sum_of_enlarged_maps(
    kernels_on: str, factors: tuple[int, ...], dtype: torch.dtype
) -> None:
    given = [draw(2, 24 // f, 40 // f, 20, dtype=dtype, device=kernels_on) for f in factors]

    def theirs(*maps: Tensor) -> Tensor:
        wide = [x.permute(0, 3, 1, 2) for x in maps]
        parts = [F.interpolate(x, (24, 40), mode="bilinear", align_corners=False) for x in wide]
        return sum(parts[1:], parts[0]).permute(0, 2, 3, 1)

    assert fits(given)
    assert_same(lambda *maps: sum_enlarged(maps), theirs, given, dtype)
    with torch.no_grad():
        assert torch.equal(sum_enlarged(given, relu=True), sum_enlarged(given).relu())


def test_maps_that_do_not_fit(kernels_on: str) -> None:
    own, half = draw(1, 8, 8, 4, device=kernels_on), draw(1, 4, 4, 4, device=kernels_on)
    assert fits([own, half])
    assert not fits([own])
    assert not fits([own, half, half, half, half])
    assert not fits([own, draw(1, 4, 2, 4, device=kernels_on)])
    assert not fits([own, draw(1, 3, 3, 4, device=kernels_on)])
    assert not fits([own, half.double()])


def test_shrinking_is_the_transpose_of_enlarging() -> None:
    """In fp64, without any kernel, to odd factors and sizes too."""
    x = draw(2, 5, 3, 4).double().detach().requires_grad_()
    wide = F.interpolate(x.permute(0, 3, 1, 2), (15, 9), mode="bilinear", align_corners=False)
    grad = torch.randn(2, 15, 9, 4, dtype=torch.float64)
    wide.permute(0, 2, 3, 1).backward(grad)
    assert x.grad is not None
    assert (shrink(grad, (5, 3)) - x.grad).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 50, 24), (2, 4, 5, 24), (7, 24)])
def test_linear(kernels_on: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Under autocast, weights and their gradients stay fp32, which bf16 products round."""
    given = [
        draw(*shape, dtype=dtype, device=kernels_on),
        draw(70, 24, device=kernels_on),
        draw(70, device=kernels_on),
    ]
    low = dtype == torch.bfloat16

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with torch.autocast(kernels_on, dtype=torch.bfloat16, enabled=low):
            out = linear(x, weight, bias)
        assert out.dtype == dtype
        return out

    if not low:
        assert_same(ours, F.linear, given, dtype)
        return
    out = ours(*given)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    out.backward(grad)
    exact = [x.detach().double().requires_grad_() for x in given]
    true = F.linear(*exact)
    true.backward(grad.double())
    pairs = [(out, true), *((a.grad, b.grad) for a, b in zip(given, exact, strict=True))]
    for mine, theirs in pairs:
        assert mine is not None
        assert theirs is not None
        assert (mine.double() - theirs).abs().max() < 1e-2 * theirs.abs().max()
    assert [x.grad.dtype for x in given if x.grad is not None] == [dtype, *[torch.float32] * 2]


def test_nothing_changes_where_kernels_are_not() -> None:
    """On a CPU: torch's own functions, bit for bit."""
    if kernels.INTERPRETED:
        pytest.skip("Triton is interpreted here")
    x, weight, bias = draw(3, 50, 24), draw(70, 24), draw(70)
    assert not kernels.usable(x)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    norm = FastLayerNorm(24)
    assert torch.equal(norm(x), F.layer_norm(x, (24,), norm.weight, norm.bias))
