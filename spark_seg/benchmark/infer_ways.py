"""The ways from image files to submission.zip that `benchmark infer` races.

Each has `timed(folder, count)`: predicts the first `count` images into `folder` and returns seconds, CPU seconds of all
threads and processes, and the zip.
"""

import multiprocessing
import os
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spark_seg.errors import UserError

if TYPE_CHECKING:
    import torch
    from mmengine.config import Config

_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_CALIBRATION = 8  # pictures that set int8's ranges


def prepare(path: str, size: int) -> "torch.Tensor":
    """An image as the first project gives it to the network: float32 [1, 3, size, size], RGB, normalised."""
    import torch
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    values = (np.asarray(small, np.float32) - np.asarray(_MEAN, np.float32)) / np.asarray(
        _STD, np.float32
    )
    return torch.from_numpy(values.transpose(2, 0, 1).copy())[None]


class FirstProject:
    """As its inference script goes: on the GPU where there is one, as ours."""

    def __init__(self, cfg: "Config", model: Any, images: Sequence[str]) -> None:
        import torch

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.size, self.images = model, cfg.image_size, images

    def timed(self, folder: Path, count: int) -> tuple[float, float, Path]:
        start = _clock()
        for path in self.images[:count]:
            self._predict(path, folder)
        target = folder / "submission.zip"
        with zipfile.ZipFile(target, "w") as archive:
            for file in sorted(folder.glob("*.npz")):
                archive.write(file, file.name)
        return (*_since(start), target)

    def _predict(self, path: str, folder: Path) -> None:
        import torch
        from PIL import Image

        from spark_seg.submission.members import member_name

        with torch.no_grad():
            logits = self.model(prepare(path, self.size).to(self.device), mode="tensor")
            full = torch.nn.functional.interpolate(
                logits, (self.size, self.size), mode="bilinear", align_corners=False
            )
            labels = full.argmax(1)[0].cpu().numpy()
        colours = np.zeros((*labels.shape, 3), np.uint8)
        colours[labels == 1] = (255, 0, 0)
        colours[labels == 2] = (0, 0, 255)
        with Image.open(path) as image:
            own = image.size
        picture = Image.fromarray(colours).resize(own, Image.Resampling.NEAREST)
        np.savez_compressed(folder / member_name(path), data=np.asarray(picture) > 127)


class FirstProjectAlone:
    """`FirstProject` in a process of its own.

    This package tells the C library's allocator to keep freed memory (`spark_seg.datasets.memory`), for a whole process
    and for good. The first project never did; beside ours it would run with a setting that is not its own.
    """

    def __init__(
        self, cfg: "Config", weights: "dict[str, torch.Tensor]", images: Sequence[str]
    ) -> None:
        import torch

        context = multiprocessing.get_context("spawn")
        self.here, there = context.Pipe()
        threads = torch.get_num_threads()
        plain = {name: tensor.numpy() for name, tensor in weights.items()}
        given = (there, cfg.model.to_dict(), int(cfg.image_size), plain, list(images), threads)
        self.process = context.Process(target=_serve, args=given, daemon=True)
        self.process.start()
        there.close()

    def timed(self, folder: Path, count: int) -> tuple[float, float, Path]:
        self.here.send((folder, count))
        try:
            return self.here.recv()
        except (EOFError, ConnectionError):
            raise UserError("the first project's way: its process died (out of memory?)") from None


def _serve(
    there: Any,
    model: dict[str, Any],
    size: int,
    weights: dict[str, Any],
    images: list[str],
    threads: int,
) -> None:
    import torch
    from mmengine.config import ConfigDict
    from mmengine.registry import init_default_scope

    from spark_seg import register  # noqa: F401

    from mmseg.registry import MODELS  # isort: skip

    init_default_scope("mmseg")
    torch.set_num_threads(threads)
    built = MODELS.build(model).eval()
    built.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    way = FirstProject(ConfigDict(image_size=size), built, images)
    built.to(way.device)
    while True:
        try:
            folder, count = there.recv()
        except EOFError:
            return
        there.send(way.timed(folder, count))


class Ours:
    """What `spark_seg.submission.run.infer` does once the weights are read."""

    def __init__(
        self, cfg: "Config", weights: "dict[str, torch.Tensor]", images: Sequence[str]
    ) -> None:
        import copy

        self.cfg, self.weights, self.images = copy.deepcopy(cfg), weights, images

    def timed(self, folder: Path, count: int) -> tuple[float, float, Path]:
        from spark_seg.engine.build import prediction_runner
        from spark_seg.submission.metric import SubmissionMetric
        from spark_seg.submission.writer import SubmissionWriter

        loader = _first(self.cfg, self.images, count)
        metric = SubmissionMetric(SubmissionWriter(folder, self.images[:count]))
        runner = prediction_runner(self.cfg, self.weights, "memory", loader, metric, "single")
        start = _clock()
        runner.test()
        return (*_since(start), metric.writer.zip_path)


class OursExported:
    """The same through an exported model (`infer.py --backend`), exported and compiled before the clock starts."""

    def __init__(
        self, cfg: "Config", model: Any, images: Sequence[str], backend: str, precision: str
    ) -> None:
        import copy

        from spark_seg.export.backends import ExportedSegmentor, default_streams, load_backend
        from spark_seg.export.graph import Graph, export_onnx, quantise, save_openvino, to_openvino

        self.cfg, self.images = copy.deepcopy(cfg), images
        graph, size = Graph(model), int(cfg.image_size)
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "model.xml"
            if backend == "openvino":
                network = to_openvino(graph, size)
                if precision == "int8":
                    network = quantise(network, [_planes(p, size) for p in images[:_CALIBRATION]])
                path = save_openvino(network, path)
            else:
                path = export_onnx(graph, size, path.with_suffix(".onnx"))
            run = load_backend(path, backend, precision, default_streams())
        self.segmentor = ExportedSegmentor(run, size, "benchmark", default_streams())

    def timed(self, folder: Path, count: int) -> tuple[float, float, Path]:
        from spark_seg.submission.metric import SubmissionMetric
        from spark_seg.submission.run import predict_through
        from spark_seg.submission.writer import SubmissionWriter

        loader = _first(self.cfg, self.images, count)
        metric = SubmissionMetric(SubmissionWriter(folder, self.images[:count]))
        start = _clock()
        try:
            predict_through(self.segmentor, loader, metric)
        finally:
            metric.background.close()
        return (*_since(start), metric.writer.zip_path)


def _planes(path: str, size: int) -> np.ndarray:
    """A picture as an exported network takes it: uint8 [1, 3, size, size], BGR."""
    import cv2

    picture: Any = cv2.imread(path)
    picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(picture.transpose(2, 0, 1)[None])


def _first(cfg: "Config", images: Sequence[str], count: int) -> Any:
    """The config's test loader, for the first images alone."""
    loader = cfg.test_dataloader
    loader.dataset.subset = [Path(path).stem.removesuffix("_img") for path in images][:count]
    return loader


def _clock() -> tuple[float, float]:
    """Time, and CPU time of this process and its ended children, in seconds."""
    return time.perf_counter(), sum(os.times()[:4])


def _since(start: tuple[float, float]) -> tuple[float, float]:
    now = _clock()
    return now[0] - start[0], now[1] - start[1]
