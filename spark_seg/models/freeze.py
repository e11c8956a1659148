"""Freezes the backbone, so that only the decode head learns."""

from functools import partial

from torch import nn


def freeze_backbone(model: nn.Module) -> None:
    """Turns a segmentor's backbone into a fixed function.

    Its parameters ask for no gradient, and it is in eval mode (no drop path, no dropout) and stays
    so whatever `train()` is called on the model or on the backbone itself. To be called before the
    optimizer is built, which must leave out parameters that ask for no gradient. Copies and pickles
    of the model are frozen too; calling it again changes nothing.

    Args:
        model: A segmentor with a `backbone`.
    """
    backbone = model.backbone
    assert isinstance(backbone, nn.Module), type(backbone)
    backbone.requires_grad_(False)
    # On the instance: a subclass made here could not be pickled. `partial` is copied and pickled
    # with its argument, so that a copy's `train` belongs to the copy.
    backbone.train = partial(_stay_in_eval, backbone)  # type: ignore[method-assign]
    backbone.eval()


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    """Takes the place of `module.train`: whatever the mode asked for, it is eval."""
    return type(module).train(module, False)
