"""Without a GPU, the tests of the kernels run in a process in which Triton interprets them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spark_seg.models import kernels

HERE = Path(__file__).resolve().parent


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs them as they are")
@pytest.mark.skipif(not kernels.INSTALLED, reason="Triton is not installed")
@pytest.mark.parametrize(
    ("file", "mark"),
    [
        ("test_kernels.py", "not slow"),
        pytest.param("test_fast_on_gpu.py", "slow", marks=pytest.mark.slow),
    ],
)
def test_interpreted(file: str, mark: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-m", mark, str(HERE / file)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=900, cwd=HERE.parents[1], env=environment
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
    assert "test_kernels_interpreted.py runs it" not in done.stdout
