"""A sheet of samples as training sees them: `python tools/browse_dataset.py CONFIG --out sheet.png`."""

import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # works from a clone without installation
from spark_seg.cli import run

if __name__ == "__main__":
    run("browse_dataset")
