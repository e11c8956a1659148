"""tools/benchmark.py eval: measures, prints Markdown, writes JSON."""

import json

import pytest

from spark_seg.benchmark.timing import markdown, measure
from spark_seg.cli.benchmark import main
from spark_seg.errors import UserError


def test_rows_as_markdown_and_json(tmp_path, capsys):
    target = tmp_path / "new" / "eval.json"
    assert main(["eval", "--size", "128", "--repeat", "3", "--json", str(target)]) == 0
    rows = json.loads(target.read_text())
    assert isinstance(rows, list)
    assert {"labels", "confusion", "all_128", "npz", "zip", "label"} <= {
        row["case"] for row in rows
    }
    out = capsys.readouterr().out
    for row in rows:
        assert {"case", "variant", "size", "impl", "median_ms", "ratio_to_stock"} <= set(row)
        assert row["part"] == "eval"
        assert row["machine"]["cpu"]
        assert 0 < row["low_ms"] <= row["median_ms"] <= row["high_ms"]
        assert row["impl"] != "stock" or row["ratio_to_stock"] == 1
        assert (
            f"| {row['case']} | {row['variant']} | 128 | {row['impl']} | {row['median_ms']:.3f} |"
            in out
        )


def test_rows_are_written_before_the_table_is_read(tmp_path, monkeypatch):
    """A reader such as `head` that goes away takes the table with it, not the file."""
    import builtins

    say = print

    def gone(*args, **kwargs):
        if str(args[:1]).startswith("('cpu: "):
            raise BrokenPipeError
        say(*args, **kwargs)

    target = tmp_path / "eval.json"
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "print", gone)
        with pytest.raises(BrokenPipeError):
            main(["eval", "--size", "64", "--repeat", "1", "--json", str(target)])
    assert json.loads(target.read_text())


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
