"""CUDA graphs: a forward pass is recorded once for each shape and replayed, so that a GPU need not wait for Python.

A SegFormer launches hundreds of kernels for an image, each after some work of the CPU's: for small batches that takes
longer than the kernels. Recordings share their memory; what one holds is what its shape needs.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_SHAPES = 4  # recordings kept; beyond that, the one used longest ago goes
_NUMBERS = 16 * 3 * 512 * 512  # of an input; with more, the kernels take longer than their launches


class Recorded:
    """A function of tensors that returns tensors, without gradients, replayed where it runs on a GPU.

    Args:
        run: What it reads besides its arguments must keep shapes and addresses.
    """

    def __init__(self, run: Callable[..., Sequence[Tensor]]) -> None:
        self._run = run
        self._graphs: OrderedDict[tuple[Any, ...], tuple[Any, list[Tensor], Sequence[Tensor]]]
        self._graphs = OrderedDict()
        self._seen: set[tuple[Any, ...]] = set()

    def __call__(self, *given: Tensor) -> Sequence[Tensor]:
        """What the function returns; the first call with a shape computes as ever, the second records."""
        first = given[0]
        if not first.is_cuda or first.numel() > _NUMBERS or torch.cuda.is_current_stream_capturing():
            return self._run(*given)
        key = tuple((tuple(x.shape), x.stride(), x.dtype, x.device) for x in given)
        if key not in self._graphs:
            if key not in self._seen:  # libraries choose their algorithms, Triton compiles
                self._seen.add(key)
                return self._run(*given)
            self._graphs[key] = _record(self._run, given)
            while len(self._graphs) > _SHAPES:
                self._graphs.popitem(last=False)
        graph, places, found = self._graphs[key]
        self._graphs.move_to_end(key)
        for place, x in zip(places, given, strict=True):
            place.copy_(x)
        graph.replay()
        return [x.clone() for x in found]


def _record(
    run: Callable[..., Sequence[Tensor]], given: Sequence[Tensor]
) -> tuple[Any, list[Tensor], Sequence[Tensor]]:
    device = given[0].device
    places = [x.clone() for x in given]
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        run(*places)
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run(*places)
    return graph, places, found
