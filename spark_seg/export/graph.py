"""From a segmentor to files that other runtimes read.

The graph is the accelerated model's with the normalisation before it: pictures in, logits at a quarter of their size
out. Its size is fixed, its batch is not.
"""

import copy
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spark_seg.atomic import make_folder
from spark_seg.errors import UserError

INPUT, OUTPUT = "images", "logits"
MOST = 64  # images in a batch of a torch.export program


class Graph(nn.Module):
    """Normalisation, backbone and head.

    Args:
        model: mmseg's EncoderDecoder; a copy of it is taken, on the CPU, accelerated and in eval mode.
        normalise: Take pictures as the test pipeline packs them, 0 to 255 in the order that the config's
            `data_preprocessor` expects; False: what the preprocessor makes of them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, normalise: bool = True) -> None:
        super().__init__()
        from spark_seg.models.fast_segformer import accelerate

        self.model = copy.deepcopy(model).cpu().float().eval()
        accelerate(self.model)
        before: Any = model.data_preprocessor
        self.normalise = normalise
        self.swap = bool(getattr(before, "channel_conversion", False))
        for name in ("mean", "std"):
            value = getattr(before, name, None)
            default = torch.full((3, 1, 1), float(name == "std"))
            self.register_buffer(name, default if value is None else value.detach().cpu().float())

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, classes, H / 4, W / 4], fp32."""
        if self.normalise:
            images = images.flip(1) if self.swap else images
            images = (images.float() - self.mean) / self.std
        return self.model(images)


def example(size: int, normalise: bool, batch: int = 2) -> Tensor:
    """Pictures to trace with: uint8, or floats where the graph does not normalise."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 3, size, size)
    if normalise:
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return torch.randn(shape, generator=generator)


def export_program(graph: Graph, size: int, path: str | Path | None = None) -> Any:
    """torch.export: a program for torch without this package; written to `path` (.pt2) where one is given."""
    images = example(size, graph.normalise)
    shapes = {INPUT: {0: torch.export.Dim("batch", min=1, max=MOST)}}
    with torch.no_grad(), _quiet():
        program = torch.export.export(graph, (images,), dynamic_shapes=shapes)
        if path is not None:
            with _beside(Path(path)) as fresh:
                torch.export.save(program, fresh)
    return program


def export_onnx(model: Any, size: int, path: Path, normalise: bool = False) -> Path:
    """Writes an ONNX file with its weights inside, input `images` and output `logits`.

    Args:
        model: A segmentor or a `Graph` (whose own `normalise` holds).
        size: Height and width.
        path: The file.
        normalise: See `Graph`.

    Raises:
        UserError: onnx or onnxscript are missing.
    """
    require("onnx", "onnxscript")
    graph = model if isinstance(model, Graph) else Graph(model, normalise)
    images = example(size, graph.normalise)
    with torch.no_grad(), _quiet(), _beside(path) as fresh:
        torch.onnx.export(
            graph,
            (images,),
            str(fresh),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch", min=1, max=MOST)}},
            external_data=False,
            verbose=False,
        )
    return path


def to_openvino(graph: Graph, size: int) -> Any:
    """OpenVINO's model of a graph, by way of ONNX, in the form that OpenVINO computes fastest (`maps.as_maps`).

    Raises:
        UserError: openvino, onnx or onnxscript are missing.
    """
    require("openvino")
    import openvino

    from spark_seg.export.maps import as_maps

    graph = copy.deepcopy(graph)
    as_maps(graph.model)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        return openvino.convert_model(str(export_onnx(graph, size, Path(folder) / "model.onnx")))


def save_openvino(model: Any, path: Path) -> Path:
    """Writes an OpenVINO model as `path` (.xml) and the weights beside it (.bin), weights in fp32."""
    import openvino

    make_folder(path.parent)
    fresh = path.with_name(f".{path.stem}.{os.getpid()}.xml")
    try:
        openvino.save_model(model, str(fresh), compress_to_fp16=False)
        os.replace(fresh.with_suffix(".bin"), path.with_suffix(".bin"))
        os.replace(fresh, path)
    finally:
        for left in (fresh, fresh.with_suffix(".bin")):
            left.unlink(missing_ok=True)
    return path


def quantise(model: Any, pictures: Sequence[np.ndarray]) -> Any:
    """OpenVINO's model in int8: nncf's post-training quantisation, its ranges from `pictures`.

    Args:
        model: An OpenVINO model.
        pictures: Inputs of one picture each, as the model takes them.

    Raises:
        UserError: nncf is missing; no pictures.
    """
    require("nncf")
    if not pictures:
        raise UserError("int8 wants pictures to calibrate with: --calibrate 1 or more")
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    with _quiet():
        return nncf.quantize(
            model,
            nncf.Dataset(list(pictures)),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(pictures),
        )


def require(*packages: str) -> None:
    """Raises a UserError for an optional package that is missing, with the command that installs it."""
    import importlib.util

    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"{package} is not installed: pip install 'spark-seg[export]' or pip install {package}"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    # exporters tell of each step, and of deprecations in what they themselves call
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    make_folder(path.parent)
    fresh = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield fresh
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
