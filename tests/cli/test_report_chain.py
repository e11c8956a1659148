"""tools/test.py --corruptions --report: the whole way, and the report again from what it left."""

import json
from pathlib import Path

import pytest
import tiny
import torch


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of an evaluation under one fault with a report of two images a set."""
    from mmseg.registry import MODELS

    from spark_seg.cli.test import main
    from spark_seg.engine.checkpoints import save_safetensors

    folder = tmp_path_factory.mktemp("chain")
    tree = tiny.make_tree(folder / "tree", size=72)
    torch.manual_seed(3)
    model = MODELS.build(tiny.tiny_config(tree, folder / "run").model)
    model.init_weights()
    torch.nn.init.normal_(model.decode_head.conv_seg.weight, std=1.0)
    save_safetensors(model.state_dict(), folder / "model.safetensors")
    args = [tiny.CONFIG, str(folder / "model.safetensors"), "--work-dir", str(folder / "run")]
    args += ["--strategy", "single", "--device", "cpu", "--overlays", "0"]
    args += tiny.command_options(tree)
    args += ["--corruptions", "jpeg", "--severities", "5", "2", "--corruption-images", "3"]
    assert main([*args, "--report", "--report-images", "2"]) == 0
    return folder / "run" / "test_val"


def test_files_of_the_chain(chain: Path) -> None:
    found = json.loads((chain / "robustness.json").read_text())
    record = json.loads((chain / "run.json").read_text())
    assert (found["images"], found["of"], found["severities"]) == (3, 6, [2, 5])
    assert list(found["kinds"]) == ["jpeg"]
    assert found["weights"] == record["weights"]
    assert record["checkpoint"].endswith("model.safetensors")
    assert record["config"]["image_size"] == 64
    html = (chain / "report.html").read_text()
    for anchor in ("summary", "robustness", "calibration", "worst", "median", "images"):
        assert f'<section id="{anchor}">' in html
    assert html.count("<img ") == 2 * 2 * 5


def test_the_report_again_is_the_same(chain: Path, tmp_path: Path) -> None:
    from spark_seg.cli.report import main

    out = tmp_path / "again.html"
    assert main([str(chain), "--out", str(out)]) == 0
    assert out.read_bytes() == (chain / "report.html").read_bytes()
