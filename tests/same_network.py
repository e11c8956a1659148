"""Whether two networks compute the same: outputs, gradients, statistics."""

from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def accelerate(model: nn.Module) -> int:
    from spark_seg.models.fast_segformer import accelerate

    return accelerate(model)


def randomize(model: nn.Module) -> nn.Module:
    """Nothing may be hidden by weights of 1, shifts and means of 0."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
        if isinstance(module, nn.MultiheadAttention):
            nn.init.normal_(module.in_proj_bias, 0, 0.2)
    return model


def image(height: int = 64, width: int = 64, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1)).to(dtype)


def run(
    model: nn.Module, x: Tensor, relus: list[Tensor] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and the gradients of a sum with random weights; masks are drawn from a fixed seed.

    `relus` receives what goes into each ReLU.
    """
    handles = []
    if relus is not None:
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                hook = module.register_forward_pre_hook(
                    lambda _, a: relus.append(a[0].detach().clone())
                )
                handles.append(hook)
    model.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    out = model(x)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out)
    (out * weight).mean().backward()
    for handle in handles:
        handle.remove()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return out.detach(), grads


def difference(ours: Any, theirs: Any) -> float:
    """max |difference| / max |value|, of two tensors or over all tensors of two dicts."""
    if isinstance(ours, Tensor):
        ours, theirs = {"": ours}, {"": theirs}
    assert ours.keys() == theirs.keys()
    assert all(ours[k].shape == theirs[k].shape for k in ours)
    largest = max(t.abs().max().item() for t in theirs.values())
    return max((ours[k] - theirs[k]).abs().max().item() for k in ours) / largest


def assert_same(fast: Any, stock: Any, x: Tensor) -> None:
    tolerance = TOLERANCE[x.dtype]
    for _ in range(5):
        ours, theirs = [], []
        out, grads = run(fast, x, ours)
        stock_out, stock_grads = run(stock, x, theirs)
        assert difference(out, stock_out) < tolerance
        switched = [(a - b).abs()[(a > 0) != (b > 0)] for a, b in zip(ours, theirs, strict=True)]
        if not sum(s.numel() for s in switched):
            break
        # Rounding took a value over ReLU's kink, where the gradient jumps: that tells nothing. Another image.
        assert max(s.max().item() for s in switched if s.numel()) < 1e-5
        x = x.roll(1, 0) * 1.1 + 0.1
    else:
        raise AssertionError("a ReLU switched for every image")
    assert difference(grads, stock_grads) < tolerance
    # number of batches, running mean and variance
    ours, theirs = (dict(m.decode_head.named_buffers()) for m in (fast, stock))
    assert len(ours) == 15
    assert difference(ours, theirs) < tolerance
