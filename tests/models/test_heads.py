"""The paper's head: its parameters, what it computes, and the same when accelerated."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@pytest.fixture(scope="module")
def model(model_config: Callable[..., Any]) -> nn.Module:
    from mmengine.registry import DefaultScope
    from mmseg.registry import MODELS

    import spark_seg.register  # noqa: F401

    cfg = model_config("b0", 3)
    cfg.decode_head.type = "PaperSegformerHead"
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmseg"):
        built = MODELS.build(cfg)
    for name, tensor in built.named_buffers():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            tensor.normal_()
    return built


def test_parameters(model: nn.Module) -> None:
    head = model.decode_head
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters()}
    wanted = {f"convs.{i}.conv.weight": (256, c, 1, 1) for i, c in enumerate((32, 64, 160, 256))}
    wanted |= {f"convs.{i}.conv.bias": (256,) for i in range(4)}
    wanted |= {"fusion_conv.conv.weight": (256, 1024, 1, 1)}
    wanted |= {f"fusion_conv.bn.{leaf}": (256,) for leaf in ("weight", "bias")}
    assert shapes == wanted | {"conv_seg.weight": (3, 256, 1, 1), "conv_seg.bias": (3,)}


def plain(head: nn.Module, maps: list[Tensor]) -> Tensor:
    """The paper's equation 4, in eval mode."""
    p = dict(head.named_parameters()) | dict(head.named_buffers())
    each = [
        F.interpolate(
            F.conv2d(x, p[f"convs.{i}.conv.weight"], p[f"convs.{i}.conv.bias"]),
            maps[0].shape[2:], mode="bilinear", align_corners=False,
        )
        for i, x in enumerate(maps)
    ]  # fmt: skip
    x = F.conv2d(torch.cat(each, 1), p["fusion_conv.conv.weight"])
    norm = [
        p[f"fusion_conv.bn.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")
    ]
    return F.conv2d(F.batch_norm(x, *norm).relu(), p["conv_seg.weight"], p["conv_seg.bias"])


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_it_computes_the_papers_function_accelerated_too(
    model: nn.Module, fast: bool, training: bool
) -> None:
    from spark_seg.models.fast_segformer import FastPaperSegformerHead, accelerate

    stock, other = copy.deepcopy(model).double(), copy.deepcopy(model).double()
    if fast:
        accelerate(other)
        assert type(other.decode_head) is FastPaperSegformerHead
    assert other.state_dict().keys() == stock.state_dict().keys()
    image = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    results = []
    for one in (stock, other):
        one.train(training)
        torch.manual_seed(1)  # dropout draws alike
        maps = [m.detach() for m in one.backbone.eval()(image)]
        logits = one.decode_head(maps)
        logits.square().sum().backward()
        grads = {name: p.grad for name, p in one.decode_head.named_parameters()}
        results.append((logits.detach(), grads, maps))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-10, atol=1e-10)
    for name, grad in results[0][1].items():
        scale = float(grad.abs().max())
        assert (results[1][1][name] - grad).abs().max() <= 1e-10 * max(scale, 1), name
    if not training:
        torch.testing.assert_close(
            results[1][0], plain(stock.decode_head, results[1][2]), rtol=1e-10, atol=1e-10
        )
