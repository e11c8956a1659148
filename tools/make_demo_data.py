"""Renders the demo data: `python tools/make_demo_data.py --out D`."""

import sys
from pathlib import Path

# Works from a clone without installation.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from spark_seg.cli import run

if __name__ == "__main__":
    run("make_demo_data")
