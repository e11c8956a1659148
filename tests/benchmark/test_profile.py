"""benchmark.py model and train, --profile: where the time goes."""

import pytest

from spark_seg.benchmark.profile import lines
from spark_seg.cli.benchmark import main

SMALL = "--variants b0 --sizes 64 --repeat 1 --threads 1 --profile".split()


def test_a_forward_pass(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino")
    assert main(["model", *SMALL, "--cases", "infer_fp32", "--impls", "ours", "openvino"]) == 0
    out = capsys.readouterr().out
    ours, theirs = (
        out.split(f"infer_fp32 b0 64, batch 1, {way}: ")[1] for way in ("ours", "openvino")
    )
    assert "| aten::" in ours.split("others")[0]
    assert "| Convolution |" in theirs.split("others")[0]
    shares = [
        int(line.split("|")[2].strip(" %")) for line in theirs.split("\n\n")[0].splitlines()[3:]
    ]
    assert 90 <= sum(shares) <= 110


def test_a_training_step(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["train", *SMALL, "--cases", "train_fp32", "--batches", "2", "--impls", "stock", "ours"]
    assert main(given) == 0
    out = capsys.readouterr().out
    assert "train_fp32 b0 64, batch 2, stock: " in out
    assert "aten::convolution_backward" in out


def test_the_rest_is_counted() -> None:
    found = lines("x", {str(n): 1.0 for n in range(20)})
    assert found[0] == "x: 20.0 ms"
    assert found[-2] == "| 8 others | 40 % | 8.00 |"
    assert lines("x", {}) == ["x: nothing was recorded"]
