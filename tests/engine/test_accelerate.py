"""`accelerate` in training and prediction, by both strategies and under every ZeRO stage."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from mmengine.hooks import Hook
from rank_tasks import with_hooks
from recordings import stand_in
from torch import nn

from spark_seg.models.graphs import record_training


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tree(tmp_path_factory.mktemp("tree"), train=2, val=1, test=1, size=64)


def train(tree: Path, work_dir: Path, strategy: str = "deepspeed", **options: Any) -> Any:
    from spark_seg.engine.build import training_runner

    # Adam divides by a gradient's size: where that is rounding alone, `eps` keeps it what it is.
    chosen = {"lr": 0.1, "optim_wrapper__optimizer__eps": 1.0, "epochs": 1, "warmup_epochs": 0}
    cfg = tiny.tiny_config(tree, work_dir, precision="fp32", **{**chosen, **options})
    # 0: ZeRO-3 partitions small parameters too, and must gather every one in time
    cfg.strategy.zero_optimization.stage3_param_persistence_threshold = 0
    runner = training_runner(cfg, strategy)
    runner.train()
    return runner


def weights(runner: Any) -> dict[str, torch.Tensor]:
    return runner.strategy.full_state_dict()


def fast_parts(model: nn.Module) -> int:
    return sum(type(m).__module__ == "spark_seg.models.fast_segformer" for m in model.modules())


@pytest.fixture(scope="module")
def stock(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    runner = train(tree, tmp_path_factory.mktemp("stock"), "single", accelerate=False)
    assert fast_parts(runner.strategy.module) == 0
    trained = weights(runner)
    assert trained["decode_head.conv_seg.bias"].abs().max() > 1e-3  # began at 0
    return trained


@pytest.mark.parametrize("stage", [None, 0, 1, 2, 3])
def test_trains_like_stock(
    tree: Path, tmp_path: Path, stock: dict[str, torch.Tensor], stage: int | None
) -> None:
    if stage is None:
        runner = train(tree, tmp_path, "single")
    else:
        runner = train(tree, tmp_path, zero_stage=stage)
        assert runner.strategy.zero_stage == stage
    assert fast_parts(runner.strategy.module) == 22  # the backbone itself is one
    ours = weights(runner)
    assert ours.keys() == stock.keys()
    for key, value in stock.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("stage", [None, 0, 1, 2])
def test_recorded_trainings_are_plain_ones(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int | None
) -> None:
    """Gradients of a recording reach parameters, their hooks and the optimizer as any: all but the GPU's own part."""
    strategy = "single" if stage is None else "deepspeed"
    options: dict[str, Any] = {"epochs": 4} | ({} if stage is None else {"zero_stage": stage})
    plain = weights(train(tree, tmp_path / "plain", strategy, **options))
    samples = stand_in(monkeypatch)

    class Record(Hook):
        """As `cuda_graphs=True`, which is refused without a GPU."""

        def before_train(self, runner: Any) -> None:
            record_training(runner.strategy.module)

    with with_hooks(Record()):
        runner = train(tree, tmp_path / "recorded", strategy, **options)
    assert len(samples) == 2, "the backbone and the head, from the third step on"
    assert runner.iter > 3
    for key, value in weights(runner).items():
        torch.testing.assert_close(value, plain[key], rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("fast", [True, False])
def test_predicts_the_same(tree: Path, stock: dict[str, torch.Tensor], fast: bool) -> None:
    from mmengine.evaluator import BaseMetric

    from spark_seg.engine.build import prediction_runner

    class Nothing(BaseMetric):
        def process(self, data_batch: Any, data_samples: Any) -> None:
            self.results.append(data_samples)

        def compute_metrics(self, results: list) -> dict:
            return {"frames": len(results)}

    cfg = tiny.tiny_config(tree, tree / "unused", accelerate=fast, precision="fp32")
    runner = prediction_runner(cfg, stock, "weights", cfg.test_dataloader, Nothing(), "single")
    assert runner.test()["frames"] > 0
    assert fast_parts(runner.strategy.module) == (22 if fast else 0)
    assert all(torch.equal(v, stock[k]) for k, v in runner.strategy.module.state_dict().items())
