"""A whole inference: checkpoint, images, zip."""

import copy
import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from spark_seg.submission.writer import SubmissionWriter

if TYPE_CHECKING:
    import torch
    from mmengine.config import Config


def infer(
    cfg: "Config",
    checkpoint: str | Path,
    out: str | Path,
    dtype: str = "bool",
    overlays: int = 0,
    keep_npz: bool = False,
    strategy: str = "deepspeed",
    trust: bool = False,
) -> SubmissionWriter:
    """Predicts the images of the config's test loader and writes `out/submission.zip`, checked.

    Interrupted and called again with the same weights, config, options and images it goes on where it was.

    Args:
        cfg: As from `spark_seg.config.load_config`, with `work_dir` set.
        checkpoint: Any form that `spark_seg.engine.checkpoints.load_state_dict` takes.
        out: Folder of the zip.
        dtype: `bool` or `uint8` (0/255).
        overlays: How many predictions to draw into `out/overlays/`.
        keep_npz: Leave the members beside the zip.
        strategy: `deepspeed` or `single`.
        trust: Whether the checkpoint may be unpickled without restriction.

    Returns:
        The writer, finished, with the check's report.
    """
    from mmseg.registry import DATASETS

    from spark_seg.datasets.layout import fingerprint
    from spark_seg.engine.build import prediction_runner
    from spark_seg.engine.checkpoints import load_state_dict
    from spark_seg.engine.launch import first_process, from_first, is_first, start_process_group
    from spark_seg.engine.strategy import resolve_precision
    from spark_seg.submission.metric import SubmissionMetric

    if strategy == "deepspeed":
        start_process_group()
    weights = load_state_dict(checkpoint, trust)
    dataloader = copy.deepcopy(cfg.test_dataloader)
    frames = DATASETS.build({**dataloader.dataset, "lazy_init": True}).list_frames()
    options = {
        "weights": weights_digest(weights),
        "images": fingerprint(frames),
        "model": cfg.model,
        "pipeline": dataloader.dataset.pipeline,
        "precision": resolve_precision(cfg.get("precision", "auto")),
        "strategy": strategy,
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
    # The first process clears what cannot be continued; the others come to what it left.
    writer = first_process(make) or make()
    pending = set(from_first(writer.pending))
    todo = [frame.id for frame in frames if frame.image in pending]
    if todo:
        dataloader.dataset.subset = todo
        metric = SubmissionMetric(writer, overlays)
        runner = prediction_runner(cfg, weights, checkpoint, dataloader, metric, strategy)
        runner.test()
    elif is_first():
        writer.finish(progress=True)
    return writer


def weights_digest(weights: "Mapping[str, torch.Tensor]") -> str:
    """A name for weights: SHA-256 over names, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(
            tensor.view(-1).numpy().tobytes() if tensor.ndim else repr(tensor.item()).encode()
        )
    return digest.hexdigest()
