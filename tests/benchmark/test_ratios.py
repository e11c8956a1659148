"""benchmark.py model and train; the ratios to stock that must not be lost."""

import json
import os
from pathlib import Path

import pytest

from spark_seg.benchmark.contestants import some
from spark_seg.benchmark.ratios import _key, commands, committed, lost
from spark_seg.benchmark.timing import race, write_json
from spark_seg.cli.benchmark import main
from spark_seg.errors import UserError

RATIOS = Path(__file__).with_name("ratios.json")
PARTS = ("model", "data", "infer", "eval", "train")
COLUMNS = {"case", "variant", "size", "batch", "impl", "median_ms", "ratio_to_stock", "peak_mb"}


@pytest.mark.parametrize(
    ("part", "cases"),
    [("model", ["infer_fp32", "infer_bf16"]), ("train", ["train_fp32", "train_bf16"])],
)
def test_rows(part, cases, tmp_path, capsys):
    file = tmp_path / "rows.json"
    small = ["--variants", "b0", "--sizes", "64", "--repeat", "1", "--threads", "1"]
    options = [*small, "--impls", "stock", "ours", "--json", str(file)]
    assert main([part, *options]) == 0
    rows = json.loads(file.read_text())
    expected = [(case, impl) for case in cases for impl in ("stock", "ours")]
    if part == "model":  # what bf16 is compared with, measured again
        expected.insert(2, ("infer_bf16", "stock_fp32"))
    assert [(r["case"], r["impl"]) for r in rows] == expected
    assert all(set(row) >= COLUMNS for row in rows)
    assert rows[0]["ratio_to_stock"] == 1
    assert all(row["median_ms"] > 0 and row["ratio_to_stock"] > 0 for row in rows)
    table = capsys.readouterr().out
    assert all(f"| {case} |" in table for case in cases)
    assert [row["impl"] for row in committed([file])] == ["ours", "ours"]
    assert not lost(rows, committed([file]))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--variants", "b9"], "b9"),
        (["--sizes", "100"], "multiples of 32"),
        (["--cases", "infer_fp23"], "infer_fp32"),
        (["--impls", "our"], "ours"),
        (["--batches", "0"], "1 or more"),
        (["--impls", "stock_kept", "--together", "--device", "cpu"], "in one process"),
        (["--impls", "onnxruntime", "--cases", "infer_bf16"], "no bf16"),
    ],
)
def test_mistakes(option, message):
    with pytest.raises(UserError, match=message):
        main(["model", *option])


def test_the_file_of_rows(tmp_path):
    """A value that could not be measured is null, and a folder that cannot be written is told before measuring."""
    file = tmp_path / "rows.json"
    write_json(str(file), [{"peak_mb": float("nan"), "median_ms": 1.0}], {"part": "x"})
    assert json.loads(file.read_text()) == [{"peak_mb": None, "median_ms": 1.0, "part": "x"}]
    with pytest.raises(UserError, match="choose another output folder"):
        main(["model", "--json", str(file / "below" / "rows.json")])


def test_graphs_need_a_gpu():
    with pytest.raises(UserError, match="need a GPU"):
        main(["train", "--impls", "ours_graphs", "--device", "cpu"])


def test_nothing_measured_is_said():
    with pytest.raises(UserError, match="nothing was measured"):
        some([])


def test_race_backs_off():
    def full():
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
        )

    calls = []
    found = race({"large": full, "small": lambda: calls.append(1)}, repeat=3, warmup=2)
    assert list(found) == ["small"]
    assert len(calls) == 2 + 1 + 2 * 3, "each timed call has one before it"
    done = []

    def full_later():
        done.append(1)
        if len(done) > 4:
            full()

    found = race({"later": full_later, "small": lambda: None}, repeat=3, warmup=2)
    assert list(found) == ["small"], "out of memory in a round that counts"
    with pytest.raises(RuntimeError, match="else"):
        race({"x": lambda: (_ for _ in ()).throw(RuntimeError("something else"))}, repeat=1)


def test_peak_memory_is_the_calls_own():
    np = pytest.importorskip("numpy")
    found = race({"64 MB": lambda: np.ones(8_000_000), "none": lambda: None}, repeat=1)
    assert 55 < found["64 MB"]["peak_mb"] < 90
    assert found["none"]["peak_mb"] < 5


def test_openvino_with_an_image_a_core(tmp_path):
    pytest.importorskip("openvino")
    from spark_seg.benchmark.model import make

    one = make("openvino", "b0", "infer_fp32", 64, 3, "cpu")()
    several = make("openvino_streams", "b0", "infer_fp32", 64, 3, "cpu")()
    assert [logits.shape for logits in several] == [(1, 3, 16, 16)] * 3
    file = tmp_path / "rows.json"
    small = "model --variants b0 --sizes 64 --cases infer_fp32 --batches 2 --repeat 1".split()
    assert main([*small, "--impls", "stock", "openvino_streams", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert [row["impl"] for row in rows] == ["stock", "openvino_streams"]
    assert one.shape == (3, 3, 16, 16)


def test_int8_with_its_ratio(tmp_path):
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    file = tmp_path / "rows.json"
    small = (
        "model --variants b0 --sizes 64 --cases infer_int8 --repeat 1 --impls ours openvino".split()
    )
    assert main([*small, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert [(row["case"], row["impl"]) for row in rows] == [
        ("infer_int8", "stock_fp32"),
        ("infer_int8", "openvino"),
    ]
    assert all(row["ratio_to_stock"] for row in rows)
    with pytest.raises(UserError, match="add openvino to --backends"):
        main(["infer", "--precisions", "int8"])


def test_rows_of_the_input_pipeline_are_committed_too(tmp_path):
    file = tmp_path / "rows.json"
    row = {
        "case": "train_batch",
        "variant": "164 kB JPEGs",
        "size": 512,
        "impl": "ours, labels cached",
    }
    write_json(str(file), [{**row, "ratio_to_stock": 6.954}], {"part": "data"})
    before = committed([file])
    assert before == [{"part": "data", **row, "ratio_to_stock": 6.95}]
    assert not lost([{**row, "ratio_to_stock": 5.6}], before)
    assert lost([{**row, "ratio_to_stock": 5.5}], before)


def test_every_part_is_measured_again():
    """A committed row's command, as the parts name their rows; what begins alike is run once."""
    model = {"case": "infer_bf16", "variant": "b2", "size": 1024, "batch": 1}
    rows = [
        {**model, "impl": "openvino"},
        {"part": "train", **model, "case": "train_fp32", "batch": 2, "impl": "ours"},
        {"part": "data", "case": "train_batch", "variant": "163 kB JPEGs", "impl": "ours"},
        {"part": "data", "case": "train_batch_uint8", "variant": "163 kB JPEGs", "impl": "ours"},
        {"part": "eval", "case": "zip", "variant": "median craft", "size": 1024, "impl": "ours"},
        {
            "part": "infer",
            "case": "infer_bf16",
            "variant": "b0",
            "size": 512,
            "impl": "spark_seg, OpenVINO bf16",
        },
    ]
    lines = [" ".join(command) for command in commands(rows)]
    assert lines == [
        "model --variants b2 --sizes 1024 --cases infer_bf16 --batches 1 --impls stock openvino",
        "train --variants b2 --sizes 1024 --cases train_fp32 --batches 2 --impls stock ours",
        "data --jpeg-kb 165",
        "eval --size 1024",
        "infer --variants b0 --sizes 512 --precisions bf16 --backends openvino",
    ]


def test_committed_ratios_have_a_command_and_a_key():
    before = json.loads(RATIOS.read_text())
    keys = [_key(row) for row in before]
    assert before
    assert len(set(keys)) == len(before)
    assert {command[0] for command in commands(before)} == set(PARTS)
    assert all(row["ratio_to_stock"] > 1 for row in before)


def test_what_is_lost():
    row = {"case": "infer_fp32", "variant": "b0", "size": 512, "batch": 1, "impl": "ours"}
    before = [{**row, "ratio_to_stock": 2.0}]
    assert not lost([{**row, "ratio_to_stock": 1.61}], before)
    assert lost([{**row, "ratio_to_stock": 1.5}], before) == [
        "infer_fp32 b0 512 1 ours: is 1.50, committed 2.00"
    ]
    assert "was not measured" in lost([], before)[0]


@pytest.mark.benchmark
@pytest.mark.skipif(
    "SPARK_BENCHMARK" not in os.environ, reason="set SPARK_BENCHMARK=1 on a quiet machine"
)
def test_ratios_are_kept(tmp_path):
    before = json.loads(RATIOS.read_text())
    if not before:
        pytest.skip("no ratios are committed yet: python -m spark_seg.benchmark.ratios says how")
    file, rows = tmp_path / "rows.json", []
    for command in commands(before):
        assert main([*command, "--json", str(file)]) == 0
        rows += json.loads(file.read_text())
    assert not lost(rows, before)
