"""Which process this is among how many, and the process group."""

import os
import socket

import torch

from spark_seg import compat


def start_process_group() -> None:
    import deepspeed

    if torch.distributed.is_initialized():
        return
    compat.skip_deepspeed_cpu_build()
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for key, value in {
            "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }.items():
            os.environ[key] = value
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def first_process(function, *args):
    """Calls a function on the first process while the others wait; returns its result there and None elsewhere."""
    result = None
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        result = function(*args)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    return result
