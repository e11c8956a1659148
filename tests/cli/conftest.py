"""A small tree, weights for it, and commands run in this process."""

import logging
from pathlib import Path

import pytest
import tiny
import torch
from commands import Command


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tree(tmp_path_factory.mktemp("data") / "tree", train=2, val=2, size=64)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Path:
    """A b0 with random weights whose predictions hold all classes."""
    from mmseg.registry import MODELS

    from spark_seg.engine.checkpoints import save_safetensors

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    model = MODELS.build(tiny.tiny_config(tree, folder).model)
    model.init_weights()
    torch.nn.init.normal_(model.decode_head.conv_seg.weight, std=1.0)
    save_safetensors(model.state_dict(), folder / "best.safetensors")
    return folder / "best.safetensors"


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Command:
    for name in ("SPARK_DATA_ROOT", "SPARK_TEST_ROOT"):
        monkeypatch.delenv(name, raising=False)
    # mmengine's loggers outlive a test, and with them the stream that pytest has closed since
    monkeypatch.setattr(logging, "raiseExceptions", False)
    return Command(capsys, tmp_path)
