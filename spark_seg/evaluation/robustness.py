"""A model under the faults of a space camera: the validation set again, each frame with every fault.

Each frame is decoded once and all its variants are made from it, by threads (OpenCV and numpy let go of Python's lock),
a few ahead of the model. Only the counts are kept: 72 bytes for each variant of a frame.

The variants go through the config's own validation pipeline and through the same forward pass as any evaluation; the
variant without a fault has the same counts as `tools/test.py` has.
"""

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from mmengine.registry import LOOPS

from spark_seg.corruptions import corrupt
from spark_seg.datasets.transforms.loading import LoadSparkImage, LoadSparkMask
from spark_seg.engine.loops import SparkTestLoop, predict
from spark_seg.errors import UserError
from spark_seg.evaluation.counts import confusion
from spark_seg.evaluation.faults import CLEAN, FaultCounts
from spark_seg.progress import Progress
from spark_seg.submission.metric import spread

if TYPE_CHECKING:
    import torch
    from mmengine.config import Config


class Variant(NamedTuple):
    """One frame with one fault, ready for the model.

    Attributes:
        frame: The frame's place in the dataset.
        fault: The place in the list of (kind, severity).
        sample: As the pipeline packs it: `inputs` uint8 [3, h, w], `data_samples`.
        truth: Class indices uint8 [H, W], shared by the frame's variants.
    """

    frame: int
    fault: int
    sample: dict
    truth: np.ndarray


class Variants:
    """Every frame of a dataset with every fault, frame by frame.

    Args:
        dataset: With a pipeline that starts with `LoadSparkImage` and holds `LoadSparkMask`.
        faults: (kind, severity); severity 0 is the frame itself.
        threads: How many make variants; 0 makes them in the caller's thread.
        ahead: How many variants are made before they are asked for.

    Raises:
        UserError: The pipeline is another.
    """

    def __init__(
        self, dataset: Any, faults: Sequence[tuple[str, int]], threads: int, ahead: int
    ) -> None:
        steps = list(dataset.pipeline.transforms)
        if not steps or not isinstance(steps[0], LoadSparkImage):
            raise UserError("corruptions need a val_pipeline that starts with LoadSparkImage")
        masks = [step for step in steps if isinstance(step, LoadSparkMask)]
        if not masks:
            raise UserError("corruptions need a val_pipeline with LoadSparkMask")
        self.dataset, self.faults = dataset, list(faults)
        self.threads, self.ahead = threads, max(1, ahead)
        self._load, self._load_mask = steps[0], masks[0]
        self._rest = [step for step in steps[1:] if not isinstance(step, LoadSparkMask)]

    def __len__(self) -> int:
        return len(self.dataset) * len(self.faults)

    def __iter__(self) -> Iterator[Variant]:
        jobs = self._jobs()
        if not self.threads:
            for job in jobs:
                yield self._make(*job)
            return
        with ThreadPoolExecutor(self.threads, "corruptions") as pool:
            try:
                waiting: deque[Future[Variant]] = deque()
                waiting.extend(pool.submit(self._make, *job) for job in islice(jobs, self.ahead))
                while waiting:
                    yield waiting.popleft().result()
                    waiting.extend(pool.submit(self._make, *job) for job in islice(jobs, 1))
            finally:
                pool.shutdown(cancel_futures=True)

    def _jobs(self) -> Iterator[tuple[int, int, dict, np.ndarray]]:
        for frame in range(len(self.dataset)):
            info = self._load.transform(self.dataset.get_data_info(frame))
            truth = self._load_mask.transform({**info, "seg_fields": []})["gt_seg_map"]
            for fault in range(len(self.faults)):
                yield frame, fault, info, truth

    def _make(self, frame: int, fault: int, info: dict, truth: np.ndarray) -> Variant:
        kind, severity = self.faults[fault]
        result: Any = {**info, "seg_fields": []}
        if severity:
            result["img"] = corrupt(info["img"], kind, severity, info["sample_id"])
        for step in self._rest:
            result = step(result)
        return Variant(frame, fault, result, truth)


@LOOPS.register_module()
class RobustnessLoop(SparkTestLoop):
    """Predicts every frame of the loader's dataset with every fault.

    The loader's batch size is the model's; its workers' number is that of the threads.

    Args:
        faults: (kind, severity).
        kwargs: As `SparkTestLoop`; the evaluator is not asked.

    Attributes:
        counts: int64 [faults, frames, 3, 3].
    """

    def __init__(self, *args: Any, faults: Sequence[tuple[str, int]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.faults = [(str(kind), int(severity)) for kind, severity in faults]
        self.counts = np.zeros((len(faults), len(self.dataloader.dataset), 3, 3), np.int64)

    def run(self) -> dict:
        """Fills `counts`; no metrics, they are functions over them."""
        self.runner.call_hook("before_test")
        self.runner.model.eval()
        batch, threads = self.dataloader.batch_size, self.dataloader.num_workers
        variants = Variants(self.dataloader.dataset, self.faults, threads, 2 * threads + batch)
        stream = iter(variants)
        with Progress(len(variants), "corruptions") as progress:
            while group := list(islice(stream, batch)):
                self._count(group)
                progress.update(len(group))
        self.runner.call_hook("after_test")
        return {}

    def _count(self, group: list[Variant]) -> None:
        samples = {
            key: [variant.sample[key] for variant in group] for key in ("inputs", "data_samples")
        }
        for variant, sample in zip(group, predict(self.runner, samples), strict=True):
            labels = sample.pred_sem_seg.data[0].cpu().numpy()
            self.counts[variant.fault, variant.frame] = confusion(labels, variant.truth)


def measure(
    cfg: "Config",
    checkpoint: str | Path,
    kinds: Sequence[str],
    severities: Sequence[int],
    images: int | None = 50,
    split: str = "val",
    strategy: str = "deepspeed",
    trust: bool = False,
    weights: "dict[str, torch.Tensor] | None" = None,
) -> FaultCounts:
    """Predicts a labelled split under faults.

    Args:
        cfg: As from `spark_seg.config.load_config`, with `work_dir` set.
        checkpoint: Any form that `spark_seg.engine.checkpoints.load_state_dict` takes.
        kinds: Of `spark_seg.corruptions.KINDS`.
        severities: 1 to 5.
        images: How many, spread evenly over the split; None takes all.
        split: `train` or `val`.
        strategy: `deepspeed` or `single`.
        trust: Whether the checkpoint may be unpickled without restriction.
        weights: What was read from the checkpoint already; None reads it.

    Raises:
        UserError: Checkpoint or data do not fit; see there.
    """
    from mmengine.evaluator import BaseMetric
    from mmseg.registry import DATASETS

    from spark_seg.engine.build import prediction_runner
    from spark_seg.engine.checkpoints import load_state_dict

    class _Nothing(BaseMetric):
        default_prefix = ""  # None would make mmengine warn

        def process(self, data_batch: Any, data_samples: Any) -> None: ...
        def compute_metrics(self, results: list) -> dict:
            return {}

    weights = load_state_dict(checkpoint, trust) if weights is None else weights
    dataloader = copy.deepcopy(cfg.val_dataloader)
    dataloader.dataset.split = split
    frames = DATASETS.build({**dataloader.dataset, "lazy_init": True}).list_frames()
    chosen = frames
    if images is not None and images < len(frames):
        chosen = [frames[k] for k in spread(images, len(frames))]
        dataloader.dataset.subset = [frame.id for frame in chosen]
    faults = [(CLEAN, 0), *((kind, severity) for kind in kinds for severity in severities)]
    loop = dict(type="RobustnessLoop", faults=faults)
    runner = prediction_runner(
        cfg, weights, checkpoint, dataloader, _Nothing(), strategy, test_cfg=loop
    )
    runner.test()
    return FaultCounts(
        ids=np.array([frame.id for frame in chosen], dtype=np.str_),
        kinds=np.array([kind for kind, _ in faults], dtype=np.str_),
        severities=np.array([severity for _, severity in faults], np.int64),
        confusion=runner.test_loop.counts,
        total=len(frames),
    )
