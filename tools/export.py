"""Exports a model for other runtimes: `python tools/export.py CONFIG CHECKPOINT --out DIR`."""

import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # works from a clone without installation
from spark_seg.cli import run

if __name__ == "__main__":
    run("export")
