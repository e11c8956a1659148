"""How large a network is and what one image costs."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Numbers of parameters; buffers (running means ...) are none.

    Returns:
        `total`, `trainable`, and one entry for each direct child that has any (`backbone`,
        `decode_head`).
    """
    counts = {
        "total": sum(p.numel() for p in model.parameters()),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    for name, child in model.named_children():
        if own := sum(p.numel() for p in child.parameters()):
            counts[name] = own
    return counts


def count_flops(model: nn.Module, size: int | tuple[int, int]) -> int:
    """Floating-point operations of one image's forward pass, up to logits at a quarter of its size.

    One multiply-accumulate is two operations. Counted are convolutions, linear layers and the two
    matrix products of attention, in the model as it is built; norms, activations, softmax and
    resizes are not (about 1 %). Nothing is computed: the pass runs on shapes alone, in about a
    second, and leaves the model as it was.

    Args:
        model: mmseg's segmentor; its forward takes `[1, 3, H, W]`.
        size: H and W of the image in pixels, or both in one number.
    """
    height, width = (size, size) if isinstance(size, int) else size
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    image = torch.empty(1, 3, height, width, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(model, shapes, (image,))
    return int(counter.get_total_flops())
