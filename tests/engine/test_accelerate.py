"""`accelerate` in training and prediction, by both strategies and under every ZeRO stage."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import make_tree, tiny_config


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("tree"), train=2, val=1, test=1, size=64)


def train(tree: Path, work_dir: Path, strategy: str = "deepspeed", **options: Any) -> Any:
    from spark_seg.engine.build import training_runner

    runner = training_runner(
        tiny_config(tree, work_dir, epochs=1, warmup_epochs=0, precision="fp32", **options),
        strategy,
    )
    runner.train()
    return runner


def weights(runner: Any) -> dict[str, torch.Tensor]:
    return runner.strategy.full_state_dict()


def fast_parts(runner: Any) -> int:
    return sum(
        type(m).__module__.startswith("spark_seg.") for m in runner.strategy.module.modules()
    )


@pytest.fixture(scope="module")
def stock(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    runner = train(tree, tmp_path_factory.mktemp("stock"), "single", accelerate=False)
    assert fast_parts(runner) < 3  # the loss
    return weights(runner)


@pytest.mark.parametrize("stage", [None, 0, 1, 2, 3])
def test_trains_like_stock(
    tree: Path, tmp_path: Path, stock: dict[str, torch.Tensor], stage: int | None
) -> None:
    if stage is None:
        runner = train(tree, tmp_path, "single")
    else:
        runner = train(tree, tmp_path, zero_stage=stage)
        assert runner.strategy.zero_stage == stage
    assert fast_parts(runner) > 21
    ours = weights(runner)
    assert ours.keys() == stock.keys()
    print(max((ours[k].float() - stock[k].float()).abs().max().item() for k in ours))
