"""Builds the networks of `configs/_base_/models`, which leave `$num_classes` and `$activation_checkpointing` open."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "_base_" / "models"


@pytest.fixture(scope="session")
def model_config() -> Callable[..., Any]:
    """`model_config('b0', num_classes=3)`: the model part of that variant's base config."""
    from mmengine import Config

    def config(variant: str, num_classes: int = 3) -> Any:
        cfg = Config.fromfile(CONFIGS / f"segformer_mit-{variant}.py").model
        assert cfg.decode_head.num_classes == "$num_classes"
        cfg.decode_head.num_classes = num_classes
        # an open value would count as true, and every block would be computed twice
        assert cfg.backbone.with_cp == "$activation_checkpointing"
        cfg.backbone.with_cp = False
        return cfg

    return config


@pytest.fixture(scope="session")
def build_model(model_config: Callable[..., Any]) -> Callable[..., nn.Module]:
    """`build_model('b0', num_classes=3)`: that network, with random weights."""
    from spark_seg import compat

    compat.install()
    import mmseg.models
    from mmengine.registry import DefaultScope
    from mmseg.registry import MODELS

    import spark_seg.register  # noqa: F401

    assert mmseg.models

    def build(variant: str, num_classes: int = 3) -> nn.Module:
        with DefaultScope.overwrite_default_scope("mmseg"):
            return MODELS.build(model_config(variant, num_classes))

    return build


@pytest.fixture
def kernels_on() -> str:
    """Where Triton's kernels run in this test: on the GPU, else interpreted on the CPU."""
    from spark_seg.models import kernels

    if not kernels.INSTALLED:
        pytest.skip("Triton is not installed")
    if torch.cuda.is_available():
        return "cuda"
    if not kernels.INTERPRETED:
        pytest.skip("test_kernels_interpreted.py runs it: Triton must know before it is imported")
    return "cpu"
