"""Files that cannot be read: counted in all workers, and named at the end of the epoch."""

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from spark_seg.datasets.sampling import SampleIndex

ATTEMPTS = 10
"""How many samples in a row may be bad before the run ends."""

_NAMED = 5


class BadFiles:
    """Which samples of a dataset could not be read: a byte each, in memory that the loader's workers share.

    Args:
        total: Samples in the dataset.
    """

    def __init__(self, total: int) -> None:
        self._flags = torch.zeros(total, dtype=torch.uint8).share_memory_()

    def add(self, index: int) -> bool:
        """Notes a sample; returns whether it is new."""
        new = not self._flags[index]
        self._flags[index] = 1
        return new

    def found(self) -> list[int]:
        """The samples noted so far, by any process of this machine."""
        return [int(index) for index in self._flags.nonzero()]


def replacement(index: int, attempt: int, total: int) -> int:
    """The sample that is taken in place of a bad one: drawn from its seed, the same in every worker.

    Args:
        index: The bad sample; a `SampleIndex` lends its seed, which the new one's augmentation takes too.
        attempt: 1 for the first, 2 if that is bad as well.
        total: Samples in the dataset.
    """
    import numpy as np

    seed = (*(index.seed if isinstance(index, SampleIndex) else (int(index),)), attempt)
    drawn = int(np.random.default_rng(seed).integers(total))
    return SampleIndex(drawn, seed) if isinstance(index, SampleIndex) else drawn


@HOOKS.register_module()
class BadFilesHook(Hook):
    """Logs after every training epoch how many files were skipped, and which; silent where none was."""

    def after_train_epoch(self, runner: Any) -> None:
        """Looks at the training loader's dataset, on the first process of every machine."""
        dataset: Any = getattr(runner.train_dataloader, "dataset", None)
        names = dataset.skipped() if hasattr(dataset, "skipped") else []
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            runner.logger.warning(
                f"{len(names)} of {len(dataset)} frames could not be read and were replaced: "
                f"{', '.join(names[:_NAMED])}{more} (tools/check_dataset.py says why)"
            )
