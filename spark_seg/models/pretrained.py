"""Starts a network from published weights, with every key accounted for."""

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spark_seg.engine.checkpoints import load_state_dict, variant_of
from spark_seg.errors import UserError
from spark_seg.models.download import fetch_in_job
from spark_seg.models.published import published

CLASSIFIER = ("decode_head.conv_seg.weight", "decode_head.conv_seg.bias")
_SUFFIXES = (".pth", ".pt", ".safetensors")


@dataclass(frozen=True)
class PretrainedReport:
    """What became of every key.

    Attributes:
        path: The file.
        loaded: The model's keys that were filled.
        dropped: The file's keys that were left out: the classifier of another class count.
        kept: The model's keys that keep their initial values: the classifier, or a whole decode
            head.
    """

    path: Path
    loaded: tuple[str, ...]
    dropped: tuple[str, ...]
    kept: tuple[str, ...]


def load_pretrained(model: nn.Module, source: str | None, variant: str) -> PretrainedReport | None:
    """Fills a SegFormer with pretrained weights, all of them or none.

    The classifier is left out where its class count differs from the model's; ImageNet's files fill
    the backbone alone. Any other difference between file and model is an error. To be called after
    the model's own initialisation and before an engine wraps it.

    Args:
        model: mmseg's `EncoderDecoder` with `MixVisionTransformer` and `SegformerHead`.
        source: `ade20k`, `cityscapes`, `imagenet`; a `.pth` or `.safetensors` file of this network;
            None for weights from scratch, which does nothing.
        variant: The model's variant, `b0` to `b5`.

    Returns:
        What was loaded, or None where `source` is None.

    Raises:
        UserFileNotFoundError: `source` is a file that is not there.
        UserError: Unknown source or variant, no connection, a damaged file, or one that does not
            fit the model.
    """
    if source is None:
        return None
    if source.endswith(_SUFFIXES):
        path, backbone_only = Path(source), None
    else:
        entry = published(source, variant)
        path, backbone_only = fetch_in_job(entry.url, entry.digest), entry.backbone_only
    state = _named_as_in_model(_read(path))
    own = model.state_dict()
    if backbone_only is None:
        backbone_only = not any(key.startswith("decode_head.") for key in state)
    dropped = _other_classes(state, own)
    state = {key: tensor for key, tensor in state.items() if key not in dropped}
    kept = tuple(
        key for key in own if key in dropped or (backbone_only and not key.startswith("backbone."))
    )
    _check(state, {key: own[key] for key in own if key not in kept}, path, variant)
    model.load_state_dict(state, strict=False)
    report = PretrainedReport(path, tuple(state), dropped, kept)
    _log(report, source)
    return report


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with _numpy_scalars_allowed():
            return load_state_dict(path)
    except UserError as error:
        if isinstance(error.__cause__, pickle.UnpicklingError):
            raise UserError(
                f"{path} holds more than weights, and unpickling it could run code: refused; "
                "save its state dict alone, or train from scratch (--cfg-options pretrained=None)"
            ) from error
        raise


@contextmanager
def _numpy_scalars_allowed() -> Iterator[None]:
    """Lets `weights_only` read plain numpy numbers, which may be logged beside the weights."""
    if not hasattr(torch.serialization, "safe_globals"):  # torch 2.4
        yield
        return
    import numpy as np

    numbers = [np.dtype(code) for code in "?bBhHiIlLqQefd"]
    scalar = np.float64(0).__reduce__()[0]
    # numpy 1 and 2 write the same function under two names.
    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]
    allowed: list[Any] = [(scalar, name) for name in names] + [
        np.dtype,
        *{type(d) for d in numbers},
    ]
    with torch.serialization.safe_globals(allowed):
        yield


def _named_as_in_model(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A bare backbone's keys (`layers.0...`) get the name that the backbone has in the model."""
    if all(key.startswith("layers.") for key in state):
        return {f"backbone.{key}": tensor for key, tensor in state.items()}
    return dict(state)


def _other_classes(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The classifier's keys where file and model have it for different numbers of classes."""
    pairs = [(key, state[key], own[key]) for key in CLASSIFIER if key in state and key in own]
    return tuple(
        key
        for key, theirs, ours in pairs
        if theirs.shape[:1] != ours.shape[:1] and theirs.shape[1:] == ours.shape[1:]
    )


def _check(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path, variant: str
) -> None:
    """Raises unless both have the same keys and shapes."""
    problems = {
        "missing": [key for key in wanted if key not in state],
        "unexpected": [key for key in state if key not in wanted],
        "of another shape": [
            key for key in state if key in wanted and state[key].shape != wanted[key].shape
        ],
    }
    told = [_some(keys, kind) for kind, keys in problems.items() if keys]
    if not told:
        return
    theirs = variant_of(state)
    hint = f"it is a {theirs}, not a {variant}: " if theirs not in (None, variant) else ""
    raise UserError(f"{path} does not fit the model: {hint}{'; '.join(told)}")


def _some(keys: list[str], kind: str) -> str:
    first = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
    return f"{len(keys)} {'key' if len(keys) == 1 else 'keys'} {kind} ({first})"


def _log(report: PretrainedReport, source: str) -> None:
    from mmengine.logging import print_log

    line = f"pretrained {source}: {len(report.loaded)} tensors from {report.path}"
    if report.dropped:
        line += ", classifier left out (other classes)"
    if fresh := [key for key in report.kept if key not in report.dropped]:
        line += f", {len(fresh)} tensors of the decode head from scratch"
    print_log(line, logger="current")
