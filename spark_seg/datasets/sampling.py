"""Sampling that can be taken up anywhere, and augmentation that depends on the sample alone.

An interrupted training goes on at the very sample where it stopped, without replaying the loader, and every sample is
augmented as it would have been: its random numbers come from (seed, epoch, index), not from the state of whichever
worker happens to load it.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS

from spark_seg.errors import UserError, nearest


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


BY = ("satellite", "small", "panel")
"""What `WeightedSampler` can go by."""


@DATA_SAMPLERS.register_module()
class WeightedSampler(ResumableSampler):
    """Draws some frames more often than others, with as many draws in an epoch as there are frames.

    A frame of weight w is in the epoch floor(w') or ceil(w') times, w' being w over the mean of all weights: which, is
    drawn anew in every epoch by systematic sampling (Madow 1949), so that the epoch's make-up hardly varies and frames
    of small weight take turns. Order, processes and resumption are `ResumableSampler`'s; copies of a frame in one epoch
    are augmented differently.

    Args:
        dataset: A `SparkDataset`.
        by: `satellite`: every satellite is seen equally often. `small`: frames whose craft covers less than `share`
            are seen `factor` times as often as others; a frame without one is such another. `panel`: likewise frames
            with panel. A list multiplies them.
        factor: For `small` and `panel`, above 0; below 1 they are seen less often.
        share: For `small`, of the frame's pixels, 0 to 1. The median craft covers 0.09.
        shuffle, seed, round_up: As mmengine's.

    Raises:
        UserError: An unknown `by`, a value out of range; what reading the masks raises (once, see `mask_counts`).
    """

    def __init__(
        self,
        dataset: Any,
        by: str | Sequence[str] = "satellite",
        factor: float = 3.0,
        share: float = 0.03,
        shuffle: bool = True,
        seed: int | None = None,
        round_up: bool = True,
    ) -> None:
        super().__init__(dataset, shuffle, seed, round_up)
        self.by = check_by(by)
        check_weighing(factor, share)
        self.weights = self._weights(factor, share)

    def _weights(self, factor: float, share: float) -> np.ndarray:
        """float64 [frames], mean 1."""
        weights = np.ones(len(self.dataset))
        if "satellite" in self.by:
            names = [frame.satellite for frame in self.dataset.list_frames()]
            _, which, count = np.unique(names, return_inverse=True, return_counts=True)
            weights /= count[which]
        if {"small", "panel"} & set(self.by):
            from spark_seg.datasets.mask_counts import counts_of

            counts = counts_of(self.dataset)
            if "small" in self.by:
                craft, labelled = counts[:, 1:].sum(1), counts.sum(1)
                # a frame without a craft, or whose mask cannot be read, has no small one
                weights[(craft > 0) & (craft < share * labelled)] *= factor
            if "panel" in self.by:
                weights[counts[:, 2] > 0] *= factor
        return weights / weights.mean()

    def _order(self) -> list[int]:
        """The epoch's frames, repeated as drawn, in the epoch's order."""
        generator = torch.Generator().manual_seed((self.seed or 0) + self.epoch)
        shift = torch.rand((), generator=generator, dtype=torch.float64).item()
        # One tick in every unit of the weights' running sum: each frame gets the ticks that fall on it.
        ticks = np.floor(np.concatenate([[0.0], np.cumsum(self.weights)]) + shift)
        ticks[-1] = ticks[0] + len(self.weights)  # whatever rounding did to the sum
        drawn = np.repeat(np.arange(len(self.weights)), np.diff(ticks).astype(int))
        if self.shuffle:
            drawn = drawn[torch.randperm(len(drawn), generator=generator).numpy()]
        return drawn.tolist()

    def __iter__(self) -> Iterator[int]:
        start, self.start = self.start, 0
        order = self._order()
        seen: dict[int, int] = {}
        copies = []  # how often the frame came before: part of its augmentation's seed
        for index in order:
            copies.append(seen.get(index, 0))
            seen[index] = copies[-1] + 1
        places = list(range(len(order)))
        if self.round_up:
            places = (places * (self.total_size // len(places) + 1))[: self.total_size]
        for place in places[self.rank : self.total_size : self.world_size][start:]:
            index = order[place]
            seed = (self.seed or 0, self.epoch, index)
            yield SampleIndex(index, (*seed, copies[place]) if copies[place] else seed)


def check_by(by: str | Sequence[str]) -> tuple[str, ...]:
    """What `WeightedSampler` shall go by.

    Raises:
        UserError: An unknown word, or none.
    """
    words = (by,) if not isinstance(by, list | tuple) else tuple(by)
    for word in words:
        if word not in BY:
            raise UserError(
                f"sampling: no {word!r}; there are {', '.join(BY)}{nearest(str(word), BY)}"
            )
    if not words:
        raise UserError(f"sampling: name one or several of {', '.join(BY)}")
    return words


def check_weighing(factor: Any, share: Any) -> None:
    """Checks the numbers of `WeightedSampler`.

    Raises:
        UserError: One is no number, or out of range.
    """
    for name, value, top in (("factor", factor, float("inf")), ("share", share, 1)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < top:
            meant = "above 0" if name == "factor" else "between 0 and 1"
            raise UserError(f"sampling: {name}={value!r} must be a number {meant}")
