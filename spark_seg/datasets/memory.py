"""Keeps freed memory in the process instead of handing it back to the system after every frame.

glibc gives every block of over 128 kB back when it is freed, so each decoded frame of 3 MB is made
of pages that the kernel has to find and clear anew. On a virtual machine that took 3.4 ms of the 8
ms that decoding took.
"""

import ctypes
import functools
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
_LARGEST = 32 << 20  # glibc refuses more for the second
_KEPT = 256 << 20


@functools.cache
def reuse_memory() -> bool:
    """Raises glibc's thresholds, once, for this process and those forked from it.

    Up to 256 MB of freed memory stay at hand. Leaves everything alone under another C library, and
    where the user set `MALLOC_*` variables.

    Returns:
        Whether the thresholds are raised.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT))
