"""tools/benchmark.py eval: measures, prints Markdown, writes JSON."""

import json

import pytest

from spark_seg.benchmark.timing import markdown, measure
from spark_seg.cli.benchmark import main
from spark_seg.errors import UserError


def test_rows_as_markdown_and_json(tmp_path, capsys):
    target = tmp_path / "new" / "eval.json"
    assert main(["eval", "--size", "128", "--repeat", "3", "--json", str(target)]) == 0
    found = json.loads(target.read_text())
    cases = [row["case"] for row in found["rows"]]
    assert "confusion" in cases
    assert any(case.startswith("all: median craft") for case in cases)
    assert found["machine"]["cpu"]
    out = capsys.readouterr().out
    for row in found["rows"]:
        assert 0 < row["low_ms"] <= row["median_ms"] <= row["high_ms"]
        assert f"| {row['case']} | {row['median_ms']:.3f} |" in out


def test_measure_counts_calls():
    calls = []
    found = measure(lambda: calls.append(1), repeat=5, warmup=2)
    assert len(calls) == 7
    assert set(found) == {"median_ms", "low_ms", "high_ms", "cpu_ms"}
    assert set(measure(lambda: None, repeat=1)) == set(found)


def test_markdown():
    assert markdown([{"a": "x", "b": 1.5}]) == ["| a | b |", "|---|---|", "| x | 1.500 |"]


@pytest.mark.parametrize("args", [["eval", "--size", "3"], ["eval", "--repeat", "0"], ["evil"], []])
def test_mistakes(args):
    with pytest.raises(UserError):
        main(args)
