"""Training at several picture sizes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor, nn

from spark_seg.errors import UserError

PER = ("step", "batch")


class BatchResize(nn.Module):
    """Resizes a batch on its device: pictures bilinearly with antialiasing, masks by the nearest pixel.

    What mmseg's data preprocessor calls a batch augmentation, in training.

    Args:
        next_side: Gives the longer side, in pixels, that a batch's pictures shall have.
    """

    def __init__(self, next_side: Callable[[], int]) -> None:
        super().__init__()
        self._next_side = next_side

    def forward(self, inputs: Tensor, data_samples: Any = None) -> tuple[Tensor, Any]:
        """[B, 3, H, W] and samples with `gt_sem_seg` [1, H, W] -> the same, resized; metainfo `img_shape` follows."""
        side = self._next_side()
        height, width = inputs.shape[2:]
        scale = side / max(height, width)
        # the longer side is a multiple of 32, the shorter one is made so
        size = [max(32, 32 * round(scale * s / 32)) for s in (height, width)]
        if tuple(size) == (height, width):
            return inputs, data_samples
        inputs = F.interpolate(
            inputs, size=size, mode="bilinear", align_corners=False, antialias=True
        )
        for sample in data_samples or ():
            mask = sample.gt_sem_seg.data
            small = F.interpolate(mask[None].float(), size=size, mode="nearest-exact")[0]
            # a new one: a PixelData refuses data of another size
            sample.gt_sem_seg = type(sample.gt_sem_seg)(data=small.to(mask.dtype))
            sample.set_metainfo({"img_shape": tuple(size)})
        return inputs, data_samples


@HOOKS.register_module()
class MultiScaleHook(Hook):
    """Trains each step (or batch) at a size drawn from a set.

    Frames leave the loader at `image_size` and are shrunk on the device. The draw depends on seed, step and place in
    the step alone, so that all processes draw alike and a resumed training draws what the whole one would have.
    Validation keeps `image_size`.

    Args:
        sizes: Sides in pixels, multiples of 32.
        per: `step`: all micro batches of an optimizer step have one size; `batch`: each its own.

    Raises:
        UserError: A size that is no multiple of 32, or another `per`.
    """

    def __init__(self, sizes: Sequence[int], per: str = "step") -> None:
        if not sizes or any(
            isinstance(s, bool) or not isinstance(s, int) or s < 32 or s % 32 for s in sizes
        ):
            raise UserError(f"multi_scale={list(sizes)}: give sides that are multiples of 32")
        if per not in PER:
            raise UserError(f"multi_scale: per={per!r}; choose 'step' or 'batch'")
        self.sizes, self.per = tuple(sizes), per
        self._seed, self._step, self._batch = 0, 0, 0

    def before_train(self, runner: Any) -> None:
        """Puts the resizing into the model's data preprocessor."""
        self._seed = int(runner.seed or 0)
        preprocessor = runner.strategy.module.data_preprocessor
        if not isinstance(preprocessor.batch_augments, BatchResize | None):
            raise UserError("multi_scale: the data preprocessor has batch_augments of its own")
        preprocessor.batch_augments = BatchResize(self.draw)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """A step begins."""
        self._step, self._batch = runner.iter, 0

    def draw(self) -> int:
        """The side of the step's next batch."""
        batch, self._batch = self._batch, self._batch + 1
        key = [self._seed, self._step] + ([batch] if self.per == "batch" else [])
        return int(np.random.default_rng(key).choice(self.sizes))
