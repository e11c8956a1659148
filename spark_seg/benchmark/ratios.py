"""Ratios to stock that a change must not lose: `python -m spark_seg.benchmark.ratios ROWS.json ... > ratios.json`."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

KEPT = 0.8  # share of the committed ratio that a run must reach: what a shared machine's noise leaves sure
PARTS = ("data", "model", "train")  # that the test runs again
_KEY = ("case", "variant", "size", "batch", "impl")  # where a part's rows have it


def committed(files: Iterable[str | Path]) -> list[dict[str, Any]]:
    """What to commit of `benchmark.py`'s JSON files: our rows' keys and ratios, two decimals."""
    rows = [row for file in files for row in json.loads(Path(file).read_text())]
    return [
        {
            **{key: row[key] for key in ("part", *_KEY) if key in row},
            "ratio_to_stock": round(row["ratio_to_stock"], 2),
        }
        for row in rows
        if row["impl"].startswith("ours") and row.get("ratio_to_stock") and row["part"] in PARTS
    ]


def lost(rows: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each committed ratio that `rows` do not reach `KEPT` of, or do not hold."""
    found = {_key(row): row["ratio_to_stock"] for row in rows}
    lines = []
    for row in before:
        key, ratio = _key(row), row["ratio_to_stock"]
        now = found.get(key)
        if now is None or now < KEPT * ratio:
            told = "was not measured" if now is None else f"is {now:.2f}"
            lines.append(f"{' '.join(map(str, key))}: {told}, committed {ratio:.2f}")
    return lines


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in _KEY if key in row)


if __name__ == "__main__":
    print(json.dumps(committed(sys.argv[1:]), indent=1))
