"""Counting where the tensors are, without waiting for the device, and fetching the counts in one copy.

On CUDA each of these waits for everything queued so far, the model included, and none is used on the counts' way:
`torch.bincount` (its length depends on the largest value, which the host asks for), boolean indexing and `nonzero`,
`torch.tensor(..., device=)` and `torch.from_numpy(...).to(device)` (uploads from pageable memory).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

_LANES = 256


def tally(
    values: "torch.Tensor", bins: int, weights: "torch.Tensor | None" = None
) -> "torch.Tensor":
    """How often each of 0..bins-1 occurs, or the sum of its weights.

    Args:
        values: Integers 0..bins-1, of any shape; larger or negative ones are the caller's fault.
        bins: How many there are.
        weights: Whole numbers of any dtype and the values' shape whose sums stay below 2**53.

    Returns:
        int64 [bins] where the values are; exact in any order, and so the same each time.
    """
    import torch

    flat = values.reshape(-1)
    if flat.device.type == "cpu":  # nothing to wait for there, and three times as fast
        flat = flat.int() if flat.dtype == torch.uint8 else flat
        heavy = None if weights is None else weights.reshape(-1).double()
        return torch.bincount(flat, heavy, bins).long()
    return scattered(flat, bins, weights)


def scattered(
    values: "torch.Tensor", bins: int, weights: "torch.Tensor | None" = None
) -> "torch.Tensor":
    """`tally` by atomic additions; neighbouring pixels, mostly equal, add to different rows of a table."""
    import torch

    flat = values.reshape(-1).long()
    row = torch.arange(flat.numel(), device=flat.device) % _LANES
    table = torch.zeros(_LANES * bins, dtype=torch.int64, device=flat.device)
    if weights is None:
        ones = torch.ones((), dtype=torch.int64, device=flat.device).expand_as(flat)
    else:
        ones = weights.reshape(-1).long()
    return table.scatter_add_(0, row * bins + flat, ones).reshape(_LANES, bins).sum(0)


def fetch(vectors: Sequence["torch.Tensor"]) -> list[np.ndarray]:
    """Vectors int64 [k] of any lengths as arrays, by one copy for each device that they are on."""
    import torch

    found: list[np.ndarray] = [np.empty(0, np.int64)] * len(vectors)
    for device in dict.fromkeys(vector.device for vector in vectors):
        which = [n for n, vector in enumerate(vectors) if vector.device == device]
        joined = torch.cat([vectors[n] for n in which]).cpu().numpy()
        ends = np.cumsum([vectors[n].numel() for n in which])
        for n, part in zip(which, np.split(joined, ends[:-1]), strict=True):
            found[n] = part
    return found
