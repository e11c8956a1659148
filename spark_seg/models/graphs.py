"""CUDA graphs: a forward pass is recorded once for each shape and replayed, so that a GPU need not wait for Python.

A SegFormer launches hundreds of kernels for an image, each after some work of the CPU's: for small batches that takes
longer than the kernels. Each recording keeps the memory that its shape needs.
"""

import copy
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from spark_seg.compat import capture_in_this_thread
from spark_seg.errors import UserError

# Recordings of one function; further shapes compute as ever. Recording anew costs far more than it saves, and shapes
# that take turns would do so at every call.
_SHAPES = 4
_STEPS = (
    3  # of a training before its recording: libraries choose algorithms, optimizers move parameters
)
_NUMBERS = 16 * 3 * 512 * 512  # of an input; with more, the kernels take longer than their launches


class Recorded:
    """A function of tensors that returns tensors, without gradients, replayed where it runs on a GPU.

    Args:
        run: What it reads besides its arguments must keep shapes and addresses.
    """

    def __init__(self, run: Callable[..., Sequence[Tensor]]) -> None:
        self._run = run
        self._graphs: dict[tuple[Any, ...], tuple[Any, list[Tensor], Sequence[Tensor]]] = {}
        self._seen: set[tuple[Any, ...]] = set()
        self._never = False

    def __call__(self, *given: Tensor) -> Sequence[Tensor]:
        """What the function returns; the first call with a shape computes as ever, the second records."""
        first = given[0]
        if self._never or not _on_gpu(given) or first.numel() > _NUMBERS:
            return self._run(*given)
        if torch.cuda.is_current_stream_capturing():
            return self._run(*given)
        key = tuple((tuple(x.shape), x.stride(), x.dtype, x.device) for x in given)
        if key not in self._graphs:
            # at the first call libraries choose their algorithms and Triton compiles
            if key not in self._seen or len(self._graphs) == _SHAPES:
                self._seen.add(key)
                return self._run(*given)
            try:
                self._graphs[key] = _record(self._run, given)
            except RuntimeError as error:
                self._never = True
                self._graphs.clear()  # memory may be what was short
                warnings.warn(f"no CUDA graph, slower for small batches: {error}", stacklevel=2)
                return self._run(*given)
        graph, places, found = self._graphs[key]
        for place, x in zip(places, given, strict=True):
            place.copy_(x)
        graph.replay()
        return [x.clone() for x in found]


def _record(
    run: Callable[..., Sequence[Tensor]], given: Sequence[Tensor]
) -> tuple[Any, list[Tensor], Sequence[Tensor]]:
    device = given[0].device
    places = [x.clone() for x in given]
    own, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(own)
    with torch.cuda.stream(side):
        run(*places)
    own.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        # other threads go on using the GPU: a loader's pins memory
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            found = run(*places)
    finally:
        torch.cuda.set_stream(own)  # a recording that fails leaves its own behind
    return graph, places, found


class RecordedTraining:
    """A module's forward and backward pass, replayed in training; everything else computes as ever.

    The recording of a shape is made at its third step. What it needs: no gradients accumulated over steps (`.grad` may
    be the recording's own memory), one backward pass for each forward pass, no hooks on the module, parameters that
    stay where they are, outputs that nobody reads after the next call. Drop path and dropout draw anew at each replay.
    A second call before the backward pass of the first computes as ever too, as the activations of the first lie in
    the recording.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module, self._plain = module, module.forward
        self._replays: dict[Any, Callable[..., Any]] = {}
        self._steps: Counter[Any] = Counter()
        # the node of the last replay in autograd's graph, until its backward pass is done or the graph is dropped
        self._awaited: Callable[[], Any] = _nothing
        module.forward = self

    def __call__(self, *args: Any) -> Any:
        """The module's forward."""
        given = tree_leaves(args)
        training = self._module.training and torch.is_grad_enabled()
        if not training or not _on_gpu(given) or self._awaited() is not None:
            return self._plain(*args)
        low = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        key = (low, *((x.shape, x.stride(), x.dtype, x.requires_grad) for x in given))
        if key not in self._replays:
            self._steps[key] += 1
            if self._steps[key] < _STEPS or len(self._replays) == _SHAPES:
                return self._plain(*args)
            self._replays[key] = self._record(args, low)
        found = self._replays[key](*args)
        node = tree_leaves(found)[0].grad_fn
        if node is not None:
            node.register_hook(self._arrived)
            self._awaited = weakref.ref(node)
        return found

    def _arrived(self, *_: Any) -> None:
        self._awaited = _nothing

    def __deepcopy__(self, memo: dict[int, Any]) -> "RecordedTraining":
        """A copy of the module has recordings of its own: these hold the parameters of this one."""
        copied = copy.copy(self)
        memo[id(self)] = copied
        copied._module = copy.deepcopy(self._module, memo)
        copied._plain = copy.deepcopy(self._plain, memo)
        copied._replays, copied._steps, copied._awaited = {}, Counter(), _nothing
        return copied

    def _record(self, args: tuple[Any, ...], low: torch.dtype | None) -> Callable[..., Any]:
        module = self._module
        kinds = ("forward", "forward_pre", "backward", "backward_pre")
        if any(getattr(module, f"_{kind}_hooks") for kind in kinds):
            raise UserError(
                f"cuda_graphs: the {type(module).__name__} has hooks, which a recording would miss: set "
                "cuda_graphs=False"
            )
        samples = tree_map(lambda x: x.detach().clone().requires_grad_(x.requires_grad), args)
        # A parameter's own node in autograd's graph belongs to the stream of the step that made it, and lives as long
        # as that step's loss or a hook of DeepSpeed's: the recording would have to wait for a stream outside it.
        names, parameters = zip(*module.named_parameters(), strict=True)
        aliases = [p.detach().requires_grad_(p.requires_grad) for p in parameters]

        def forward(*given: Any) -> Any:
            inputs, tensors = given[: len(args)], given[len(args) :]
            return functional_call(module, dict(zip(names, tensors, strict=True)), inputs)

        buffers = [b.clone() for b in module.buffers()]  # recording runs the module: norms count
        random = torch.cuda.get_rng_state()
        module.forward = self._plain
        # a copy of weights that autocast keeps must not lie in the recording
        low_precision = torch.autocast(
            "cuda", dtype=low, enabled=low is not None, cache_enabled=False
        )
        torch.clear_autocast_cache()
        try:
            with low_precision, capture_in_this_thread():
                replay: Any = torch.cuda.make_graphed_callables(forward, (*samples, *aliases))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise UserError(
                f"cuda_graphs: the {type(module).__name__} cannot be recorded here, set cuda_graphs=False: {error}"
            ) from error
        finally:
            module.forward = self
            torch.cuda.set_rng_state(random)
            with torch.no_grad():
                for buffer, before in zip(module.buffers(), buffers, strict=True):
                    buffer.copy_(before)
        return lambda *given: replay(*given, *parameters)


def _nothing() -> None:
    return None


def _on_gpu(tensors: Sequence[Tensor]) -> bool:
    return all(x.is_cuda for x in tensors)


def record_training(model: Any) -> None:
    """Has a segmentor's backbone and head recorded once their shapes are known, in place."""
    RecordedTraining(model.backbone)
    RecordedTraining(model.decode_head)
