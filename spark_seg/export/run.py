"""A whole export: files, and what each of them does differently from PyTorch."""

import copy
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spark_seg.atomic import make_folder
from spark_seg.errors import UserError
from spark_seg.export.backends import (
    ExportedSegmentor,
    Runner,
    check_backend,
    default_streams,
    load_backend,
    require_bf16,
)
from spark_seg.export.graph import (
    Graph,
    export_onnx,
    export_program,
    quantise,
    require,
    save_openvino,
    to_openvino,
)
from spark_seg.export.record import add_entries, checked_entry

if TYPE_CHECKING:
    from mmengine.config import Config

FORMATS = ("onnx", "openvino-fp32", "openvino-bf16", "openvino-int8", "torch")
CALIBRATION = 64  # training pictures
_FILES = {"onnx": "model.onnx", "int8": "model_int8.xml", "fp32": "model.xml", "torch": "model.pt2"}


def build_graph(
    cfg: "Config", checkpoint: str | Path, trust: bool
) -> tuple[Graph, dict[str, torch.Tensor]]:
    """The config's model with a checkpoint's weights, ready to export, and those weights."""
    from mmseg.registry import MODELS

    from spark_seg.engine.checkpoints import apply_state_dict, load_state_dict

    model, weights = MODELS.build(cfg.model), load_state_dict(checkpoint, trust)
    apply_state_dict(model, weights, checkpoint)
    return Graph(model), weights


def export(
    cfg: "Config",
    checkpoint: str | Path,
    out: str | Path,
    formats: Sequence[str] = ("onnx",),
    frames: int = 100,
    calibrate: int = CALIBRATION,
    trust: bool = False,
) -> list[dict[str, Any]]:
    """Writes files of a model and compares each with PyTorch on frames of the val split.

    What is in the folder already stays as it is until all of it is written and compared.

    Args:
        cfg: As from `spark_seg.config.load_config`; its `image_size` is the files'.
        checkpoint: What to export.
        out: Folder of the files and of `export.json`.
        formats: Of `FORMATS`. The OpenVINO fp32 and bf16 are one file, computed in either.
        frames: How many frames to compare on, taken from all of the split at equal distances.
        calibrate: How many training frames set int8's ranges.
        trust: Whether the checkpoint may be unpickled without restriction.

    Returns:
        A row of each format: `format`, `file`, `frames`, `logits` (max |difference| / max |value|), `labels` (share of
        pixels that change), `miou` and `change` (points of mIoU over the three classes; None without masks).

    Raises:
        UserError: A format whose package is missing, that this CPU cannot compute or that gives no numbers; a split
            without frames; a config that is no single graph.
    """
    _require_one_pass(cfg)
    if "openvino-bf16" in formats:  # before the minutes that the other formats take
        require("openvino")
        require_bf16(
            "--formats openvino-bf16",
            "leave that format out (openvino-fp32 writes the same file, for CPUs with and without)",
        )
    out = make_folder(out)
    from spark_seg.submission.run import weights_digest

    (graph, weights), size = build_graph(cfg, checkpoint, trust), int(cfg.image_size)
    digest = weights_digest(weights)
    with tempfile.TemporaryDirectory(prefix=".export_", dir=out) as name:
        fresh = Path(name)
        runs = {form: _write(graph, size, fresh, form, cfg, calibrate) for form in formats}
        rows = compare(cfg, graph, runs, frames)
        for path in fresh.iterdir():
            os.replace(path, out / path.name)
    add_entries(out, cfg, checkpoint, digest, rows)
    return rows


def _require_one_pass(cfg: "Config") -> None:
    if cfg.model.get("type") == "RoiEncoderDecoder":
        raise UserError(
            "a segmentor in two passes is no single graph and cannot be exported: its checkpoint also fits "
            f"segformer_{cfg.get('variant', 'b2')}_spark.py, which can (whole frames at one size)"
        )


def _write(
    graph: Graph, size: int, out: Path, name: str, cfg: "Config", calibrate: int
) -> tuple[Path, Runner]:
    if name == "torch":
        path = out / _FILES["torch"]
        program = export_program(graph, size, path).module()

        def run(images: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return program(torch.from_numpy(images)).numpy()

        return path, run
    onnx = out / _FILES["onnx"]
    if name == "onnx":
        export_onnx(graph, size, onnx)
        require("onnxruntime")
        return onnx, load_backend(onnx, "onnxruntime")
    precision = name.split("-")[1]
    path = write_openvino(graph, size, out, precision, cfg, calibrate)
    return path, load_backend(path, "openvino", precision)


def write_openvino(
    graph: Graph, size: int, out: Path, precision: str, cfg: "Config", calibrate: int
) -> Path:
    """OpenVINO's files of a graph: `model.xml`, or `model_int8.xml` for `int8`."""
    path = out / _FILES["int8" if precision == "int8" else "fp32"]
    model = to_openvino(graph, size)
    if precision == "int8":
        pictures = [p[None].numpy() for p, _ in pictures_of(cfg, "train", calibrate)]
        model = quantise(model, pictures)
    return save_openvino(model, path)


def pictures_of(
    cfg: "Config", split: str, count: int
) -> Iterator[tuple[torch.Tensor, np.ndarray | None]]:
    """Pictures as the test pipeline packs them, uint8 [3, S, S], and labels uint8 [H, W] where there is a mask.

    Taken from all of the split at equal distances.

    Args:
        cfg: A loaded config.
        split: `train` or `val`.
        count: At most so many.
    """
    from mmseg.registry import DATASETS

    evaluated = cfg.get("val_dataloader") or cfg.test_dataloader
    source = copy.deepcopy(cfg.train_dataloader.dataset if split == "train" else evaluated.dataset)
    source.pipeline = copy.deepcopy(evaluated.dataset.pipeline)
    source.cache = None  # for a few frames no cache is built
    dataset = DATASETS.build(source)
    for index in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int):
        packed = dataset[int(index)]
        sample = packed["data_samples"]
        truth = sample.gt_sem_seg.data[0].numpy() if "gt_sem_seg" in sample else None
        yield packed["inputs"], truth


def compare(
    cfg: "Config", graph: Graph, runs: dict[str, tuple[Path, Runner]], frames: int
) -> list[dict[str, Any]]:
    """Rows as `export` returns them, of the frames of the val split."""
    from spark_seg.evaluation.counts import confusion
    from spark_seg.models.predict import labels_from_logits

    worst = dict.fromkeys(runs, 0.0)
    changed = dict.fromkeys(runs, 0)
    tables = {name: np.zeros((3, 3), np.int64) for name in ("", *runs)}
    largest = pixels = seen = masks = 0.0
    for picture, truth in pictures_of(cfg, "val", frames):
        with torch.no_grad():
            exact = graph(picture[None])
        if not torch.isfinite(exact).all():
            raise UserError(
                "PyTorch's own logits are no finite numbers: the training of these weights has failed"
            )
        target = exact.shape[2] * 4, exact.shape[3] * 4
        target = target if truth is None else (truth.shape[0], truth.shape[1])
        (labels,) = labels_from_logits(exact, [target])
        largest, pixels, seen = (
            max(largest, float(exact.abs().max())),
            pixels + labels.numel(),
            seen + 1,
        )
        masks += truth is not None
        if truth is not None:
            tables[""] += confusion(labels.numpy(), truth)
        for name, (_, run) in runs.items():
            logits = torch.from_numpy(np.array(run(picture[None].numpy()), np.float32))
            if not torch.isfinite(logits).all():
                raise UserError(
                    f"{name} computes logits that are no finite numbers: leave that format out"
                )
            worst[name] = max(worst[name], float((logits - exact).abs().max()))
            (found,) = labels_from_logits(logits, [target])
            changed[name] += int((found != labels).sum())
            if truth is not None:
                tables[name] += confusion(found.numpy(), truth)
    if not seen:
        raise UserError("the val split holds no frames to compare on")
    base = _miou(tables[""]) if masks else None
    rows = []
    for name, (path, _) in runs.items():
        miou = _miou(tables[name]) if masks else None
        change = None if miou is None or base is None else miou - base
        row = {"format": name, "file": path.name, "frames": int(seen)}
        row |= {"logits": worst[name] / (largest or 1.0), "labels": changed[name] / pixels}
        rows.append(row | {"miou": miou, "change": change})
    return rows


def _miou(table: np.ndarray) -> float:
    """Mean IoU in points over the classes that occur, from counts [3, 3]."""
    hit = np.diag(table)
    union = table.sum(0) + table.sum(1) - hit
    return float(100 * (hit[union > 0] / union[union > 0]).mean())


def load_segmentor(
    cfg: "Config",
    checkpoint: str | Path | None,
    backend: str,
    precision: str,
    exported: str | None = None,
    trust: bool = False,
) -> ExportedSegmentor:
    """What predicts in the PyTorch model's place.

    Args:
        cfg: A loaded config.
        checkpoint: Exported on the fly where `exported` is None; else what that should have been made of, or None.
        backend: `onnxruntime` or `openvino`.
        precision: Of the backend.
        exported: A folder that `export` wrote.
        trust: As for `export`.

    Raises:
        UserError: A combination that is not offered; a file that the folder lacks, or of other weights.
    """
    from spark_seg.submission.run import require_plain

    check_backend(backend, precision)
    _require_one_pass(cfg)
    require_plain(cfg)
    require(backend)
    if precision == "bf16":
        require_bf16("--backend-precision bf16")
    size, streams = int(cfg.image_size), default_streams()
    wanted = "onnx" if backend == "onnxruntime" else f"openvino-{precision}"
    if exported is not None:
        folder = Path(exported)
        path = folder / _file_of(backend, precision)
        if not path.is_file():
            raise UserError(
                f"{folder} has no {path.name}: run tools/export.py with --formats {wanted}"
            )
        entry = checked_entry(path, cfg, checkpoint, trust, wanted)
        run = load_backend(path, backend, precision, streams)
        identity = f"{backend} {precision} {entry['sha256']}"
        return ExportedSegmentor(run, entry["image_size"], identity, streams)
    if checkpoint is None:
        raise ValueError("there is a checkpoint, or an exported file")
    if precision == "int8":
        print(
            "warning: int8 made for this run is not compared with PyTorch; tools/export.py does that",
            file=sys.stderr,
        )
    from spark_seg.submission.run import weights_digest

    graph, weights = build_graph(cfg, checkpoint, trust)
    # not the file's digest: exporters write the same graph in different bytes
    digest = weights_digest(weights)
    with tempfile.TemporaryDirectory() as name:
        if backend == "onnxruntime":
            path = export_onnx(graph, size, Path(name) / _FILES["onnx"])
        else:
            path = write_openvino(graph, size, Path(name), precision, cfg, CALIBRATION)
        run = load_backend(path, backend, precision, streams)
    identity = f"{backend} {precision} {size} {digest} {cfg.model}"
    return ExportedSegmentor(run, size, identity, streams)


def _file_of(backend: str, precision: str) -> str:
    if backend == "onnxruntime":
        return _FILES["onnx"]
    return _FILES["int8" if precision == "int8" else "fp32"]
