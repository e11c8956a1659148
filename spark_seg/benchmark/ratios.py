"""Ratios to stock that a change must not lose: `python -m spark_seg.benchmark.ratios ROWS.json ... > ratios.json`."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

KEPT = 0.8  # share of the committed ratio that a run must reach: what a shared machine's noise leaves sure
OURS = ("ours", "spark_seg", "openvino")  # how the names of our ways begin
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
        if row["impl"].startswith(OURS) and row.get("ratio_to_stock")
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


def commands(rows: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """The runs of `benchmark.py` that measure committed rows again: one of a part, or a race of each row's own.

    Rows without a part are of `model` or `train`. `data` and `infer` have their frames rendered, as for the tables.
    """
    found: list[list[str]] = []
    for row in rows:
        case, variant = str(row["case"]), str(row["variant"])
        part = row.get("part") or ("train" if case.startswith("train") else "model")
        if part == "data":
            command = ["data", "--jpeg-kb", "165"]
        elif part == "eval":
            command = ["eval", "--size", str(row["size"])]
        elif part == "infer":
            precision = case.removeprefix("infer_")
            backend = "openvino" if "OpenVINO" in row["impl"] else "pytorch"
            command = ["infer", "--variants", variant, "--sizes", str(row["size"])]
            command += ["--precisions", precision, "--backends", backend]
        else:
            command = [part, "--variants", variant, "--sizes", str(row["size"]), "--cases", case]
            command += ["--batches", str(row["batch"]), "--impls", "stock", str(row["impl"])]
        if command not in found:
            found.append(command)
    return found


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in _KEY if key in row)


if __name__ == "__main__":
    print(json.dumps(committed(sys.argv[1:]), indent=1))
