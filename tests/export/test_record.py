"""An exported file predicts only for what it was made of."""

from pathlib import Path
from typing import Any

import pytest
import torch

import spark_seg.register  # noqa: F401
from spark_seg.config import load_config
from spark_seg.engine.checkpoints import save_safetensors
from spark_seg.errors import UserError
from spark_seg.export.record import RECORD, add_entries, checked_entry, read_entries
from spark_seg.submission.run import weights_digest


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Any, Path]:
    """A file and its entry, the config, the checkpoint."""
    cfg, weights = load_config("segformer_b0_spark"), {"w": torch.arange(3.0)}
    checkpoint = tmp_path / "w.safetensors"
    save_safetensors(weights, checkpoint)
    (tmp_path / "model.xml").write_bytes(b"graph")
    (tmp_path / "model.bin").write_bytes(b"weights")
    rows = [
        {"format": "openvino-fp32", "file": "model.xml", "change": 0.0},
        {"format": "openvino-bf16", "file": "model.xml", "change": -0.9},
    ]
    add_entries(tmp_path, cfg, checkpoint, weights_digest(weights), rows)
    return tmp_path / "model.xml", cfg, checkpoint


def test_the_file_that_was_recorded(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path, cfg, checkpoint = made
    for given in (checkpoint, None):
        entry = checked_entry(path, cfg, given, False, "openvino-fp32")
        assert (entry["image_size"], len(entry["checks"])) == (512, 2)
    assert capsys.readouterr().err == ""
    checked_entry(path, cfg, None, False, "openvino-bf16")
    assert "openvino-bf16 cost 0.90 points of mIoU" in capsys.readouterr().err


def test_other_weights(made: Any) -> None:
    path, cfg, checkpoint = made
    save_safetensors({"w": torch.arange(3.0) + 1}, checkpoint)
    with pytest.raises(UserError, match="whose weights are not those of"):
        checked_entry(path, cfg, checkpoint, False, "openvino-fp32")


@pytest.mark.parametrize("part", ["model.xml", "model.bin"])
def test_another_file(made: Any, part: str) -> None:
    path, cfg, _ = made
    (path.parent / part).write_bytes(b"other")
    with pytest.raises(UserError, match=r"is not the file that export\.json was written for"):
        checked_entry(path, cfg, None, False, "openvino-fp32")


def test_another_normalisation(made: Any) -> None:
    path, _, _ = made
    cfg = load_config("segformer_b0_spark", {"model.data_preprocessor.mean": [36, 36, 36]})
    with pytest.raises(UserError, match=r"exported with mean=.*the config has \[36, 36, 36\]"):
        checked_entry(path, cfg, None, False, "openvino-fp32")


@pytest.mark.parametrize("text", [None, "{", "[]", '{"image_size": 512}'])
def test_no_entry(made: Any, text: str | None) -> None:
    path, cfg, _ = made
    (path.parent / RECORD).unlink()
    if text is not None:
        (path.parent / RECORD).write_text(text)
    assert read_entries(path.parent) == {}
    with pytest.raises(UserError, match=r"does not say what model\.xml was made of"):
        checked_entry(path, cfg, None, False, "openvino-fp32")


def test_entries_of_other_files_stay(made: Any) -> None:
    path, _, checkpoint = made
    (path.parent / "model.onnx").write_bytes(b"onnx")
    cfg = load_config("segformer_b0_spark", {"image_size": 640})
    rows = [{"format": "onnx", "file": "model.onnx", "change": None}]
    add_entries(path.parent, cfg, checkpoint, "other", rows)
    sizes = {name: entry["image_size"] for name, entry in read_entries(path.parent).items()}
    assert sizes == {"model.xml": 512, "model.onnx": 640}


def test_weights_in_short_types_have_a_digest() -> None:
    digests = {
        weights_digest({"w": torch.ones(3, dtype=dtype)})
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    }
    assert len(digests) == 3
