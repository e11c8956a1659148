"""A whole inference: checkpoint, images, zip."""

import copy
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from spark_seg.engine.launch import (
    first_process,
    from_first,
    is_first,
    require_one_process,
    start_process_group,
    this_process,
)
from spark_seg.errors import UserError
from spark_seg.submission.writer import SubmissionWriter

if TYPE_CHECKING:
    import torch
    from mmengine.config import Config

    from spark_seg.models.predict import Segmentor
    from spark_seg.submission.metric import SubmissionMetric

_T = TypeVar("_T")


def infer(
    cfg: "Config",
    checkpoint: str | Path | None,
    out: str | Path,
    dtype: str = "bool",
    overlays: int = 0,
    keep_npz: bool = False,
    strategy: str = "deepspeed",
    trust: bool = False,
    segmentor: "Segmentor | None" = None,
) -> SubmissionWriter:
    """Predicts the images of the config's test loader and writes `out/submission.zip`, checked.

    Interrupted and called again with the same weights, config, options and images it goes on where it was.

    Args:
        cfg: As from `spark_seg.config.load_config`, with `work_dir` set.
        checkpoint: Any form that `spark_seg.engine.checkpoints.load_state_dict` takes; None with a segmentor.
        out: Folder of the zip.
        dtype: `bool` or `uint8` (0/255).
        overlays: How many predictions to draw into `out/overlays/`.
        keep_npz: Leave the members beside the zip.
        strategy: `deepspeed` or `single`.
        trust: Whether the checkpoint may be unpickled without restriction.
        segmentor: Predicts instead of the config's model, in one process; `strategy` and the precision are not used.

    Returns:
        The writer, finished, with the check's report.

    Raises:
        UserError: A segmentor in several processes; no image; what the writer raises.
    """
    import torch
    from mmseg.registry import DATASETS

    from spark_seg.datasets.layout import fingerprint
    from spark_seg.engine.build import prediction_runner
    from spark_seg.engine.checkpoints import load_state_dict
    from spark_seg.submission.metric import SubmissionMetric

    if segmentor is not None:
        require_plain(cfg)
    if segmentor is None:
        if checkpoint is None:
            raise ValueError("infer wants a checkpoint or a segmentor")
        if strategy == "deepspeed":
            start_process_group()
        else:
            require_one_process()
        weights = load_state_dict(checkpoint, trust)
        identity = {
            **model_options(cfg, weights),
            "strategy": strategy,
            "device": "cuda" if torch.cuda.is_available() else "cpu",
        }
    else:
        identity = {"segmentor": segmentor.identity}
    dataloader = copy.deepcopy(cfg.test_dataloader)
    frames = DATASETS.build({**dataloader.dataset, "lazy_init": True}).list_frames()
    options = {
        **identity,
        "images": fingerprint(frames),
        "pipeline": dataloader.dataset.pipeline,
        # kernels differ with it, and with them the last bits of the logits
        "batch_size": dataloader.batch_size,
        "overlays": overlays,  # images that are done already are not drawn again
    }
    make = partial(
        SubmissionWriter,
        out,
        [frame.image for frame in frames],
        dtype=dtype,
        fingerprint=json.dumps(options, default=str, sort_keys=True),
        keep_npz=keep_npz,
    )
    if segmentor is None:
        first_process(_check_before_clearing, cfg, weights, checkpoint, out)
    # The first process clears what cannot be continued; the others come to what it left.
    writer = first_process(make) or make()
    pending = set(from_first(writer.pending))
    todo = [frame.id for frame in frames if frame.image in pending]
    if todo:
        dataloader.dataset.subset = todo
        metric = SubmissionMetric(writer, overlays)
        try:
            if segmentor is not None:
                predict_through(segmentor, dataloader, metric)
            elif checkpoint is not None:
                prediction_runner(cfg, weights, checkpoint, dataloader, metric, strategy).test()
        finally:
            metric.background.close()
    elif is_first():
        writer.finish(progress=True)
    return writer


def _check_before_clearing(
    cfg: "Config", weights: "Mapping[str, torch.Tensor]", checkpoint: str | Path, out: str | Path
) -> None:
    """Raises a UserError for weights that are not of the config's model, where an interrupted run left anything."""
    if not SubmissionWriter.is_begun(out):
        return  # the runner tells it, and nothing is lost
    from mmseg.registry import MODELS

    from spark_seg.engine.checkpoints import apply_state_dict

    apply_state_dict(MODELS.build(cfg.model), weights, checkpoint)


def require_plain(cfg: "Config") -> None:
    """Raises a UserError for what an exported model does not do."""
    if cfg.get("tta") is not None:
        raise UserError(
            "tta is not for an exported model: add --cfg-options tta=None, or leave --backend out"
        )
    if this_process().world_size > 1:
        raise UserError("an exported model predicts in one process: start without torchrun or srun")


def model_options(cfg: "Config", weights: "Mapping[str, torch.Tensor]") -> dict[str, object]:
    """What the logits of the config's model depend on, besides the device and the number of threads and processes."""
    from spark_seg.engine.strategy import resolve_precision

    given: dict[str, object] = {
        key: cfg[key] for key in ("tta", "allow_tf32") if cfg.get(key) is not None
    }
    if cfg.model.get("finder"):
        from spark_seg.models.finder import finder_identity

        given["finder"] = finder_identity(cfg.model.finder)
    if cfg.model.get("boxes") and Path(cfg.model.boxes).is_file():  # else building the model tells
        given["boxes"] = hashlib.sha256(Path(cfg.model.boxes).read_bytes()).hexdigest()
    return {
        **given,
        "weights": weights_digest(weights),
        "model": cfg.model,
        "precision": resolve_precision(cfg.get("precision", "auto")),
        "accelerate": cfg.get("accelerate", True),
    }


def predict_through(segmentor: "Segmentor", dataloader: dict, metric: "SubmissionMetric") -> None:
    """Predicts a loader's pictures with a segmentor and finishes the zip.

    Args:
        segmentor: Pictures to logits.
        dataloader: The loader's config; its dataset's pipeline ends in `PackSegInputs`.
        metric: What takes the labels; no evaluator is needed around it.
    """
    import torch

    from spark_seg.engine.runner import SparkRunner
    from spark_seg.models.predict import labels_from_logits
    from spark_seg.progress import Progress

    loader = SparkRunner.build_dataloader(dataloader)

    def predict(batch: dict) -> "tuple[dict, torch.Tensor]":
        with torch.inference_mode():
            return batch, segmentor(batch["inputs"])

    with (
        Progress(len(loader.dataset), "infer") as progress,  # type: ignore[arg-type]
        ThreadPoolExecutor(segmentor.streams, "streams") as pool,
    ):
        # one more than are computed at a time: no stream waits for this thread
        for batch, logits in ahead(pool, predict, loader, segmentor.streams + 1):
            samples = batch["data_samples"]
            sizes = [sample.metainfo["ori_shape"][:2] for sample in samples]
            with torch.inference_mode():
                found = labels_from_logits(logits, sizes)
            metric.process(
                batch,
                [
                    {"img_path": sample.img_path, "pred_sem_seg": {"data": labels}}
                    for sample, labels in zip(samples, found, strict=True)
                ],
            )
            progress.update(len(samples))
    metric.evaluate(len(loader.dataset))  # type: ignore[arg-type]


def ahead(
    pool: ThreadPoolExecutor, function: Callable[[Any], _T], items: Iterable[Any], count: int
) -> Iterator[_T]:
    """The function's results in the items' order, of which `count` are begun before they are asked for."""
    waiting: deque[Future[_T]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def weights_digest(weights: "Mapping[str, torch.Tensor]") -> str:
    """A name for weights: SHA-256 over names, shapes and values."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.ndim:  # as bytes: numpy knows no bf16
            digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(tensor.item()).encode())
    if (norms := getattr(weights, "norms", None)) not in (None, "mmseg"):
        digest.update(str(norms).encode())  # the layer norms' eps: part of the function
    return digest.hexdigest()
