"""Where Triton's kernels take the place of torch's: on a GPU, and not in graphs that Inductor fuses by itself."""

import functools
import importlib.util
import os

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


# Triton comes with PyTorch's CUDA builds for Linux; looked up once, as compiled code cannot.
INSTALLED = _installed()
# It can run on the CPU, number by number: how the kernels are tested without a GPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def computes(*given: Tensor) -> bool:
    """Whether kernels of this package take such tensors."""
    return INSTALLED and all((x.is_cuda or INTERPRETED) and x.dtype in DTYPES for x in given)


def usable(*given: Tensor) -> bool:
    """`computes`, and nothing compiles or traces."""
    return computes(*given) and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def low_dtype(x: Tensor) -> torch.dtype:
    """What linear layers compute in: autocast's dtype where it is on, else `x`'s."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
