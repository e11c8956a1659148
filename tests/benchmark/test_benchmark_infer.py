"""tools/benchmark.py infer: both ways make a zip, the rows say what they cost."""

import json
import zipfile
from pathlib import Path

import pytest
import tiny

from spark_seg.cli.benchmark import main
from spark_seg.errors import UserError


@pytest.mark.slow
def test_rows_of_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "infer.json"
    folder = tiny.make_tree(tmp_path / "tree", train=1, val=1, test=3, size=64) / "stream-1-test"
    options = ["--variants", "b0", "b1", "--sizes", "64", "--images", "3", "--repeat", "1"]
    more = ["--images-dir", str(folder), "--workers", "0", "--json", str(target)]
    assert main(["infer", *options, *more]) == 0
    rows = json.loads(target.read_text())
    assert [row["variant"] for row in rows] == ["b0", "b0", "b1", "b1"], (
        "each in a folder of its own"
    )
    stock, ours = rows = rows[:2]
    assert [row["impl"] for row in rows] == ["first project's way", "spark_seg, PyTorch fp32"]
    assert stock["ratio_to_stock"] == stock["equal_pixels"] == 1
    assert ours["ratio_to_stock"] == pytest.approx(stock["median_ms"] / ours["median_ms"])
    assert {row["case"] for row in rows} == {"infer_fp32"}
    assert {(row["variant"], row["size"]) for row in rows} == {("b0", 64)}
    assert 0.9 < ours["equal_pixels"] <= 1
    assert "| infer_fp32 | b0 | 64 | spark_seg, PyTorch fp32 |" in capsys.readouterr().out


@pytest.mark.slow
def test_rows_of_exported_models(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    target = tmp_path / "infer.json"
    folder = tiny.make_tree(tmp_path / "tree", train=1, val=1, test=3, size=64) / "stream-1-test"
    options = ["--variants", "b0", "--sizes", "64", "--images", "3", "--repeat", "1"]
    more = ["--backends", "openvino", "onnxruntime", "--images-dir", str(folder), "--workers", "0"]
    assert main(["infer", *options, *more, "--json", str(target)]) == 0
    rows = json.loads(target.read_text())
    names = ["first project's way", "spark_seg, OpenVINO fp32", "spark_seg, ONNX Runtime fp32"]
    assert [row["impl"] for row in rows] == names
    assert min(row["equal_pixels"] for row in rows) > 0.9


def test_the_first_projects_way_makes_a_zip_that_passes(tmp_path: Path) -> None:
    import torch

    from spark_seg.benchmark.infer_ways import FirstProject
    from spark_seg.submission.check import check_zip

    folder = tiny.make_tree(tmp_path / "tree", train=1, val=1, test=2, size=64) / "stream-1-test"
    images = sorted(map(str, folder.iterdir()))

    class Config:
        image_size = 32

    def bright(x: torch.Tensor, mode: str) -> torch.Tensor:
        assert x.shape == (1, 3, 32, 32)
        gray = torch.nn.functional.avg_pool2d(x, 4).mean(1, keepdim=True)
        return torch.cat([0 * gray, gray, gray - 100], 1)

    _, _, path = FirstProject(Config(), bright, images).timed(tmp_path, 2)  # type: ignore[arg-type]
    report = check_zip(path, images)
    assert report.ok, report.problems
    assert not report.empty
    assert len(zipfile.ZipFile(path).namelist()) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--variants", "b7"], "--variants b7: unknown"),
        (["--precisions", "fp16"], "--precisions fp16"),
        (["--backends", "tensorrt"], "--backends tensorrt"),
        (["--backends", "openvino", "--roi", "known"], "--roi"),
        (["--backends", "onnxruntime", "--precisions", "bf16"], "fp32 only"),
        (["--images", "0"], "--images"),
        (["--workers", "-1"], "--workers"),
        (["--checkpoints", "a.pth"], "1 files for 2 variants"),
    ],
)
def test_mistakes(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(["infer", *options])


def test_backends_of_the_cpu_are_not_compared_with_a_gpu() -> None:
    from argparse import Namespace

    from spark_seg.benchmark.infer import _check_device

    _check_device(Namespace(backends=["pytorch"]), True)
    _check_device(Namespace(backends=["pytorch", "openvino"]), False)
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES= before the command"):
        _check_device(Namespace(backends=["pytorch", "openvino"]), True)
