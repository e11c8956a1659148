"""Loops: training that can be interrupted, and one way from logits to labels for validation and test.

The model stays mmseg's own; its stock prediction resizes the logits twice (to the network's input, then to the
picture). Here the head's logits go to the picture's size by one bilinear resize, in training's validation, in
`tools/test.py` and in `tools/infer.py` alike: identical counts in fp32 on the same device with the same batch size and
thread count. In bf16 and fp16 training's validation differs from the other two by rounding: those keep the sums between
blocks in the short type, where weights that are trained on keep them in fp32.
"""

import itertools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, TestLoop, ValLoop
from mmengine.structures import PixelData
from torch.utils.data import DataLoader

from spark_seg.engine.runner import untouched_random_state
from spark_seg.errors import UserError
from spark_seg.models.predict import labels_from_logits
from spark_seg.models.roi import RoiEncoderDecoder
from spark_seg.models.tta import labels_from_probabilities, mean_probabilities


class _Grouped(DataLoader):
    """A loader whose batches come in groups: the micro batches of one optimizer step. A rest is dropped.

    A DataLoader by type alone, because mmengine asks for one; all else is the wrapped loader's.
    """

    def __init__(self, loader: DataLoader, size: int) -> None:
        self.loader, self.size = loader, size

    def __len__(self) -> int:
        return len(self.loader) // self.size

    def __iter__(self) -> Iterator[list[Any]]:  # type: ignore[override]
        group = []
        for batch in self.loader:
            group.append(batch)
            if len(group) == self.size:
                yield group
                group = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


@LOOPS.register_module()
class SparkTrainLoop(EpochBasedTrainLoop):
    """mmengine's epochs, counted in optimizer steps, that can be left and taken up between any two of them.

    Args:
        runner: The runner.
        dataloader: The loader or its config.
        max_epochs: Epochs to train.
        val_interval: Epochs between two validations.
        accumulate: Micro batches in an optimizer step (gradient accumulation).
        val_begin: The first epoch that may be validated.

    Attributes:
        waited: Seconds that this process has waited for data. (mmengine's timer counts what hooks do after a step, such
            as saving, as the next one's waiting.)
    """

    def __init__(
        self,
        runner: Any,
        dataloader: DataLoader | dict,
        max_epochs: int,
        val_interval: int = 1,
        accumulate: int = 1,
        val_begin: int = 1,
    ) -> None:
        super().__init__(runner, dataloader, max_epochs, val_begin, val_interval)
        self.accumulate = accumulate
        self.dataloader: Any = _Grouped(self.dataloader, accumulate)
        if len(self.dataloader) == 0:
            held = len(self.dataloader.loader.dataset)  # type: ignore[arg-type]
            raise UserError(
                f"an epoch has no step: {held} samples, {self.global_batch} to a step (batch_size x accumulate x "
                "processes): choose a smaller batch_size"
            )
        self._max_iters = self._max_epochs * len(self.dataloader)
        self._start = 0
        self._validate_first = False
        self.waited = 0.0

    @property
    def global_batch(self) -> int:
        """Samples that one optimizer step sees, over all processes."""
        return int(self.dataloader.batch_size) * self.accumulate * self.runner.world_size

    def position(self) -> dict[str, int]:
        """Where in the data the training is, for `take_up`."""
        length = len(self.dataloader)
        return {
            "in_epoch": self._iter - self._epoch * length,
            "epoch_length": length,
            "global_batch": self.global_batch,
        }

    def take_up(self, state: Mapping[str, Any]) -> None:
        """Goes on where a checkpoint was written.

        Raises:
            UserError: It was written inside an epoch with another number of samples in a step.
        """
        length = len(self.dataloader)
        same = state["global_batch"] == self.global_batch and state["epoch_length"] == length
        if state["in_epoch"] and not same:
            raise UserError(
                f"the checkpoint was written inside an epoch, {state['global_batch']} samples to a step of "
                f"{state['epoch_length']} an epoch; now it is {self.global_batch} and {length}: keep batch_size x "
                "accumulate x processes, or go on from a checkpoint between two epochs"
            )
        if state["epoch"] > self._max_epochs:
            raise UserError(
                f"the checkpoint has {state['epoch']} epochs, the config only {self._max_epochs}"
            )
        self._epoch = state["epoch"]
        self._start = state["in_epoch"]
        self._iter = self._epoch * length + self._start
        self._validate_first = bool(state["validate"])

    def run(self) -> torch.nn.Module:
        """Trains to the last epoch."""
        self.runner.stop.begin()
        accumulated = f" x {self.accumulate} accumulated" if self.accumulate > 1 else ""
        self.runner.logger.info(
            f"effective batch {self.global_batch} ({self.dataloader.batch_size}{accumulated} x "
            f"{self.runner.world_size} process(es)), {len(self.dataloader)} steps an epoch, {self._max_iters} in all"
        )
        self.runner.call_hook("before_train")
        if self._validate_first:
            self._validate()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            due = self.validation_due(self._epoch)
            self.runner.stop_if_requested(validate=due)
            if due:
                self._validate()
        self.runner.call_hook("after_train")
        return self.runner.model

    def validation_due(self, epoch: int) -> bool:
        """Whether a validation follows a number of finished epochs."""
        return (
            self.runner.val_loop is not None
            and epoch >= self.val_begin
            and (epoch % self.val_interval == 0 or epoch == self._max_epochs)
        )

    def _validate(self) -> None:
        self.runner.val_loop.run()

    def run_epoch(self) -> None:
        """The epoch's steps, or those of them that are left."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        start, self._start = self._start, 0
        self.dataloader.sampler.start = start * self.accumulate * int(self.dataloader.batch_size)
        source = iter(self.dataloader)
        for index in itertools.count(start):
            begun = time.monotonic()
            batches = next(source, None)
            self.waited += time.monotonic() - begun
            if batches is None:
                break
            self.run_iter(index, batches)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """One optimizer step over a list of micro batches."""
        self.runner.call_hook("before_train_iter", batch_idx=idx, data_batch=data_batch)
        strategy = self.runner.strategy
        outputs = strategy.train_step(data_batch)
        self.runner.call_hook(
            "after_train_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs
        )
        self._iter += 1
        strategy.guard.check([_name(s) for batch in data_batch for s in batch["data_samples"]])
        if idx + 1 < len(self.dataloader):  # after an epoch's last step the epoch is finished first
            self.runner.stop_if_requested()


def _name(sample: Any) -> str:
    return str(sample.get("sample_id", None) or sample.get("img_path", "?"))


@torch.no_grad()  # not inference_mode: what ZeRO-3 gathers in it could not be trained on afterwards
def predict(runner: Any, data_batch: Any, observers: Sequence[Any] = ()) -> list:
    """Predicts a batch: the samples with `pred_sem_seg`, uint8 labels [1, H, W] at the picture's own size.

    Where the runner has a `tta`, labels are those of the mean probabilities over its views.

    Args:
        runner: The runner that holds model and strategy.
        data_batch: `inputs` and `data_samples` as a loader of mmseg samples yields them.
        observers: Their `observe_logits(logits [B, C, h, w], samples)` sees what is gone afterwards (with test-time
            augmentation a list of the mean probabilities' logarithms [C, H, W]; in two passes a list as
            `RoiEncoderDecoder.predict_frames` returns it).
    """
    strategy = runner.strategy
    data = strategy.module.data_preprocessor(data_batch, False)
    forward = getattr(
        runner.model, "model", runner.model
    )  # DeepSpeed's engine, or the model itself
    sizes = [sample.metainfo["ori_shape"][:2] for sample in data["data_samples"]]
    tta = getattr(runner, "tta", None)
    logits: Any

    def view(inputs: torch.Tensor) -> torch.Tensor:
        with strategy.autocast():
            return forward(inputs, mode="tensor")

    def find(inputs: torch.Tensor) -> torch.Tensor:
        with strategy.autocast():
            return strategy.module.finder(inputs)

    if isinstance(strategy.module, RoiEncoderDecoder):
        found, logits = strategy.module.predict_frames(
            view,
            data["inputs"],
            data["data_samples"],
            tta,
            want_logits=bool(observers),
            coarse_forward=find if strategy.module.finder else None,
        )
    elif tta is None:
        with strategy.autocast():
            logits = forward(data["inputs"], data["data_samples"], mode="tensor")
        found = labels_from_logits(logits, sizes)
    else:
        probs = mean_probabilities(view, data["inputs"], sizes, tta)
        found = [labels_from_probabilities(p) for p in probs]
        # at full size; a softmax of these gives the mean probabilities again
        logits = [p.clamp_min(torch.finfo(p.dtype).tiny).log() for p in probs]
    for observer in observers:
        observer.observe_logits(logits, data["data_samples"])
    for sample, labels in zip(data["data_samples"], found, strict=True):
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
    """Validation during training, of the averaged weights where there are any; leaves no trace in the training."""

    stage = "val"

    def run(self) -> dict:
        """Validates; the hooks that follow see the training's own weights again."""
        runner = self.runner
        runner.strategy.share_buffers()
        with untouched_random_state(), runner.strategy.evaluation_weights():
            runner.call_hook("before_val")
            runner.call_hook("before_val_epoch")
            runner.model.eval()
            for index, batch in enumerate(self.dataloader):
                self.run_iter(index, batch)
                if runner.stop.agreed():  # a validation can take minutes
                    break
            else:
                metrics = self.evaluator.evaluate(len(self.dataloader.dataset))
                if isinstance(runner.strategy.module, RoiEncoderDecoder):
                    runner.logger.info(runner.strategy.module.told())
        runner.stop_if_requested(validate=True)
        runner.call_hook("after_val_epoch", metrics=metrics)
        runner.call_hook("after_val")
        return metrics


@LOOPS.register_module()
class SparkTestLoop(_PredictLabels, TestLoop):
    """Evaluation and inference."""

    stage = "test"

    def run(self) -> dict:
        """Predicts; in two passes, says on stderr what the first process' second passes were."""
        metrics = super().run()
        module = self.runner.strategy.module
        if isinstance(module, RoiEncoderDecoder) and self.runner.rank == 0:
            print(module.told(), file=sys.stderr, flush=True)
        return metrics
