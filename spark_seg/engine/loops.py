"""Loops: training that can be interrupted, and one way from logits to labels for validation and test.

The model stays mmseg's own; its stock prediction resizes the logits twice (to the network's input, then to the
picture). Here the head's logits go to the picture's size by one bilinear resize, in training's validation, in
`tools/test.py` and in `tools/infer.py` alike: identical counts on the same device, precision, batch size and
thread count.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, TestLoop, ValLoop
from mmengine.structures import PixelData

from spark_seg.models.predict import labels_from_logits


@LOOPS.register_module()
class SparkTrainLoop(EpochBasedTrainLoop):
    """mmengine's epochs, with a look between two steps whether the user wants to stop."""

    def run_iter(self, idx: int, data_batch: Any) -> None:
        super().run_iter(idx, data_batch)
        self.runner.stop_if_requested()


@torch.no_grad()  # not inference_mode: what ZeRO-3 gathers in it could not be trained on afterwards
def predict(runner: Any, data_batch: Any, observers: Sequence[Any] = ()) -> list:
    """Predicts a batch: the samples with `pred_sem_seg`, uint8 labels [1, H, W] at the picture's own size.

    Args:
        runner: The runner that holds model and strategy.
        data_batch: `inputs` and `data_samples` as a loader of mmseg samples yields them.
        observers: Their `observe_logits(logits [B, C, h, w], samples)` sees what is gone afterwards.
    """
    strategy = runner.strategy
    data = strategy.module.data_preprocessor(data_batch, False)
    forward = getattr(
        runner.model, "model", runner.model
    )  # DeepSpeed's engine, or the model itself
    with strategy.autocast():
        logits = forward(data["inputs"], data["data_samples"], mode="tensor")
    for observer in observers:
        observer.observe_logits(logits, data["data_samples"])
    sizes = [sample.metainfo["ori_shape"][:2] for sample in data["data_samples"]]
    for sample, labels in zip(data["data_samples"], labels_from_logits(logits, sizes), strict=True):
        sample.pred_sem_seg = PixelData(data=labels[None])
    return data["data_samples"]


class _PredictLabels:
    """`run_iter` of both evaluation loops."""

    runner: Any
    evaluator: Any
    stage: str

    def run_iter(self, idx: int, data_batch: Sequence[dict]) -> None:
        self.runner.call_hook(f"before_{self.stage}_iter", batch_idx=idx, data_batch=data_batch)
        observers = [m for m in self.evaluator.metrics if hasattr(m, "observe_logits")]
        outputs = predict(self.runner, data_batch, observers)
        self.evaluator.process(data_samples=outputs, data_batch=data_batch)
        self.runner.call_hook(
            f"after_{self.stage}_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs
        )


@LOOPS.register_module()
class SparkValLoop(_PredictLabels, ValLoop):
    """Validation during training."""

    stage = "val"

    def run_iter(self, idx: int, data_batch: Sequence[dict]) -> None:
        super().run_iter(idx, data_batch)
        self.runner.stop_if_requested()  # a validation can take minutes; the state is the epoch's end


@LOOPS.register_module()
class SparkTestLoop(_PredictLabels, TestLoop):
    """Evaluation and inference."""

    stage = "test"
