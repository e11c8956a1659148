"""Writes SegFormer weights under the names of mmsegmentation, Hugging Face or NVlabs: see --help."""

import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # works from a clone without installation

from spark_seg.cli import run

if __name__ == "__main__":
    run("convert")
