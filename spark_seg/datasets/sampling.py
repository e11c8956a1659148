"""Sampling that can be taken up anywhere, and augmentation that depends on the sample alone.

An interrupted training goes on at the very sample where it stopped, without replaying the loader, and every sample is
augmented as it would have been: its random numbers come from (seed, epoch, index), not from the state of whichever
worker happens to load it.
"""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS


class SampleIndex(int):
    """A dataset index that knows the seed of its augmentation."""

    seed: tuple[int, ...]

    def __new__(cls, index: int, seed: tuple[int, ...]) -> "SampleIndex":
        made = super().__new__(cls, index)
        made.seed = seed
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return SampleIndex, (int(self), self.seed)


def seed_augmentation(index: int) -> None:
    """Seeds numpy's and Python's generators from a `SampleIndex`; leaves them alone for a plain int."""
    if isinstance(index, SampleIndex):
        words = np.random.SeedSequence(index.seed).generate_state(2)
        np.random.seed(int(words[0]))  # noqa: NPY002  # what mmcv's transforms draw from
        random.seed(int(words[1]))


@DATA_SAMPLERS.register_module()
class ResumableSampler(DefaultSampler):
    """mmengine's DefaultSampler with a start position and seeded indices.

    The order of an epoch is a permutation drawn from seed + epoch; process r of W takes every W-th from the r-th on.
    So the first k steps of B samples on W processes use the first k * B * W of the permutation, whatever W is.

    Attributes:
        start: How many samples of this process's share to leave out in the next pass; back to 0 after it.
    """

    start = 0

    def __iter__(self) -> Iterator[int]:
        start, self.start = self.start, 0
        for position, index in enumerate(super().__iter__()):
            if position >= start:
                yield SampleIndex(index, (self.seed or 0, self.epoch, int(index)))
