"""How much memory a training step keeps for its backward pass, without a GPU and without computing anything."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from mmengine.config import Config

# The head's logits are resized to the frame and go through softmax, its logarithm and the Dice sums, in fp32.
_LOSS_COPIES = 6


def saved_bytes(model: nn.Module, cfg: "Config", bf16: bool) -> int:
    """Bytes that autograd saves in one forward pass of `batch_size` images as large as training samples: an estimate.

    The pass runs on tensors without content and every distinct storage that autograd's hooks see is counted, except
    weights and buffers. To that the loss adds six fp32 maps of `num_classes` channels at full size. Not in it:
    workspaces of cuDNN and attention, gradients of activations on the way back, fragmentation, and under activation
    checkpointing the one block that is computed again at a time.

    Args:
        model: mmseg's segmentor as it trains; left as it was.
        cfg: As from `spark_seg.config.load_config`.
        bf16: Whether under autocast.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from spark_seg.recipe_augment import training_window

    batch, (height, width) = int(cfg.batch_size), training_window(cfg)
    # The storages are kept until the end: a freed one's number may come again.
    seen: dict[int, Any] = {}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        tensors: dict[str, torch.Tensor] = {
            name: mode.from_tensor(t) for name, t in _tensors(model).items()
        }
        own = {t.untyped_storage()._cdata for t in tensors.values()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                seen[storage._cdata] = storage
            return tensor

        image = torch.empty(batch, 3, height, width)
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16),
        ):
            torch.func.functional_call(model, tensors, (image,))
        total = sum(storage.nbytes() for storage in seen.values())
    return total + _LOSS_COPIES * 4 * batch * int(cfg.num_classes) * height * width


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
