"""Runs exported files: ONNX Runtime and OpenVINO, and either in the PyTorch model's place."""

import hashlib
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spark_seg.errors import UserError
from spark_seg.export.graph import require

# What each computes in. OpenVINO takes bf16 from the fp32 file, where the CPU has it.
PRECISIONS = {"onnxruntime": ("fp32",), "openvino": ("fp32", "bf16", "int8")}
Runner = Callable[[np.ndarray], np.ndarray]
_MOST_STREAMS = 4


def default_streams() -> int:
    """How many batches an exported file is best given at a time: each has memory of its own, hence at most four."""
    return max(1, min(_MOST_STREAMS, torch.get_num_threads()))


def check_backend(backend: str, precision: str) -> None:
    """Raises a UserError for a precision that a backend does not offer."""
    if precision not in PRECISIONS[backend]:
        raise UserError(
            f"--backend {backend} computes in {', '.join(PRECISIONS[backend])}, not in {precision}"
        )


def require_bf16(asked: str = "openvino in bf16", instead: str = "use fp32") -> None:
    """Raises a UserError where OpenVINO does not compute in bf16 on this CPU.

    Args:
        asked: What the user asked for it with.
        instead: What to do.
    """
    import openvino

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UserError(f"{asked}: this CPU does not compute in bf16; {instead}")


def load_backend(
    path: str | Path, backend: str, precision: str = "fp32", streams: int = 1
) -> Runner:
    """A function from pictures [B, 3, H, W] (dtype as exported) to logits fp32 [B, classes, H / 4, W / 4].

    It computes on as many threads as torch does now, and may be called from several at a time.

    Args:
        path: .onnx, or for OpenVINO also .xml.
        backend: `onnxruntime` or `openvino`.
        precision: See `PRECISIONS`; `int8` wants a file that was quantised.
        streams: So many calls at a time share the threads between them. One core each spends nothing on waiting for
            another after every layer: more pictures a second, and each takes longer.

    Raises:
        UserError: The backend is not installed, does not offer the precision, or cannot read the file.
    """
    check_backend(backend, precision)
    require(backend)
    threads = torch.get_num_threads()
    if backend == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, threads // streams)
        options.log_severity_level = 3
        known = onnxruntime.get_available_providers()
        providers = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in known]
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # its own classes share no useful base
            raise UserError(f"onnxruntime cannot read {path}: {_first_line(error)}") from error
        (name,) = (entry.name for entry in session.get_inputs())
        return lambda images: session.run(None, {name: images})[0]
    return _OpenVino(path, precision, threads, streams)


class _OpenVino:
    """An OpenVINO network, compiled for each size of batch that comes: left open, it neither shares nor skips copies
    between layouts and is a quarter slower."""

    def __init__(self, path: str | Path, precision: str, threads: int, streams: int) -> None:
        import openvino

        self.core, self.streams = openvino.Core(), streams
        if precision == "bf16":
            require_bf16()
        self.options = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": threads,
            **({"PERFORMANCE_HINT": "LATENCY"} if streams == 1 else {"NUM_STREAMS": streams}),
        }
        # batches of one size, and the last; requests that no call uses
        self.idle: OrderedDict[int, queue.SimpleQueue[Any]] = OrderedDict()
        self.lock = threading.Lock()
        try:
            self.model = self.core.read_model(str(path))
            self.shape = self.model.input().partial_shape
            self._requests(1)
        except RuntimeError as error:
            raise UserError(f"openvino cannot read {path}: {_first_line(error)}") from error

    def _requests(self, batch: int) -> "queue.SimpleQueue[Any]":
        with self.lock:
            if batch not in self.idle:
                self.shape[0] = batch
                self.model.reshape(self.shape)
                compiled = self.core.compile_model(self.model, "CPU", self.options)
                self.idle[batch] = queue.SimpleQueue()
                for _ in range(self.streams):
                    self.idle[batch].put(compiled.create_infer_request())
                while len(self.idle) > 2:
                    self.idle.popitem(last=False)
            self.idle.move_to_end(batch)
            return self.idle[batch]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        idle = self._requests(len(images))
        request = idle.get()
        try:
            # a copy: the request's next call writes over these
            return np.array(request.infer([images], share_inputs=True)[0], dtype=np.float32)
        finally:
            idle.put(request)


class ExportedSegmentor:
    """Stands in for the PyTorch model (`spark_seg.models.predict.Segmentor`).

    Args:
        run: As from `load_backend`, of a file that normalises.
        size: Height and width that the file was exported for.
        identity, streams: See `Segmentor`.
    """

    def __init__(self, run: Runner, size: int, identity: str, streams: int = 1) -> None:
        self.run, self.size, self.identity, self.streams = run, size, identity, streams

    def __call__(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """N tensors uint8 [3, H, W] -> logits fp32 [N, C, H / 4, W / 4]."""
        # one picture needs no copy
        images = torch.stack(list(inputs)) if len(inputs) > 1 else inputs[0][None].contiguous()
        if tuple(images.shape[2:]) != (self.size, self.size):
            raise UserError(
                f"the exported model takes {self.size} x {self.size} pixels and the test pipeline makes "
                f"{images.shape[3]} x {images.shape[2]}: export with image_size={images.shape[3]}"
            )
        return torch.from_numpy(np.asarray(self.run(images.numpy()), dtype=np.float32))


def file_digest(path: str | Path) -> str:
    """SHA-256 over a file, and the weights beside it where it is OpenVINO's."""
    digest = hashlib.sha256()
    path = Path(path)
    for part in (path, path.with_suffix(".bin")):
        if part.is_file() and (part == path or path.suffix == ".xml"):
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
