"""tools/test.py --corruptions --report: the whole way, and the report again from what it left."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from spark_seg.evaluation.identity import PARTS


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of an evaluation under one fault with a report of two images a set."""
    from mmseg.registry import MODELS

    from spark_seg.engine.checkpoints import save_safetensors

    folder = tmp_path_factory.mktemp("chain")
    tree = tiny.make_tree(folder / "tree", size=72)
    torch.manual_seed(3)
    model = MODELS.build(tiny.tiny_config(tree, folder / "run").model)
    model.init_weights()
    torch.nn.init.normal_(model.decode_head.conv_seg.weight, std=1.0)
    save_safetensors(model.state_dict(), folder / "model.safetensors")
    options = ["--corruptions", "jpeg", "--severities", "5", "2", "--corruption-images", "3"]
    assert evaluate(folder, {}, *options, "--report", "--report-images", "2") == 0
    return folder / "run" / "test_val"


def evaluate(folder: Path, changes: dict, *args: str) -> int:
    from spark_seg.cli.test import main

    common = [tiny.CONFIG, str(folder / "model.safetensors"), "--work-dir", str(folder / "run")]
    common += ["--strategy", "single", "--device", "cpu", "--overlays", "0"]
    return main([*common, *tiny.command_options(folder / "tree", changes), *args])


def test_files_of_the_chain(chain: Path) -> None:
    found = json.loads((chain / "robustness.json").read_text())
    record = json.loads((chain / "run.json").read_text())
    assert (found["images"], found["of"], found["severities"]) == (3, 6, [2, 5])
    assert list(found["kinds"]) == ["jpeg"]
    assert found["evaluation"] == {key: record[key] for key in found["evaluation"]}
    assert set(found["evaluation"]) == set(PARTS)
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


@pytest.mark.parametrize(
    ("changes", "args", "title"),
    [
        ({}, ["--split", "train"], "split, data"),
        ({"val_dataloader.dataset.leave_out": "Cheops"}, [], "data"),
        ({"val_evaluator.panel_share": 0.2}, [], "challenge rule"),
        ({"image_size": 96}, [], "model options"),
    ],
)
def test_faults_of_another_evaluation_in_the_same_folder(
    changes: dict,
    args: list[str],
    title: str,
    chain: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same weights again, with another split, part of the data, rule or size, without --corruptions."""
    out = shutil.copytree(chain, tmp_path / "out")
    assert evaluate(chain.parents[1], changes, "--out", str(out), "--report", *args) == 0
    told = capsys.readouterr().out
    assert f"{out / 'robustness.json'} is of another evaluation ({title}) and is left out" in told
    html = (out / "report.html").read_text()
    assert '<section id="robustness">' not in html
    assert '<section id="worst">' in html


def test_an_evaluation_again_keeps_its_faults(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same evaluation in batches of two has the same identity."""
    out = shutil.copytree(chain, tmp_path / "out")
    assert evaluate(chain.parents[1], {"val_batch_size": 2}, "--out", str(out), "--report") == 0
    assert "left out" not in capsys.readouterr().out
    assert '<section id="robustness">' in (out / "report.html").read_text()


def test_a_training_that_replaces_its_best_checkpoint_meanwhile(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Table, record, faults and pictures are of the weights that were there at the start."""
    from spark_seg.engine.checkpoints import load_state_dict, save_safetensors
    from spark_seg.evaluation import run

    weights = chain.parents[1] / "model.safetensors"
    before, scored = weights.read_bytes(), run.evaluate

    def replaced(*args: Any, **kwargs: Any) -> Any:
        found = scored(*args, **kwargs)
        other = {name: torch.zeros_like(x) for name, x in load_state_dict(weights).items()}
        save_safetensors(other, weights)
        return found

    monkeypatch.setattr(run, "evaluate", replaced)
    options = ["--corruptions", "jpeg", "--severities", "5", "2", "--corruption-images", "3"]
    options += ["--report", "--report-images", "2", "--out", str(tmp_path / "out")]
    try:
        assert evaluate(chain.parents[1], {}, *options) == 0
    finally:
        weights.write_bytes(before)
    for name in ("run.json", "robustness.json"):
        ours, theirs = (json.loads((f / name).read_text()) for f in (tmp_path / "out", chain))
        if name == "run.json":
            ours, theirs = ours["weights"], theirs["weights"]
        assert ours == theirs
    assert (tmp_path / "out" / "pictures.npz").read_bytes() == (chain / "pictures.npz").read_bytes()
