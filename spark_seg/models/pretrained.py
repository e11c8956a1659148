"""Starts a network from published weights, with every key accounted for.

One value says which: `ade20k`, `cityscapes`, `imagenet` (mmsegmentation's, by variant), `nvidia/mit-b2` (a repository
of the Hugging Face hub), a file (`.pth`, `.pt`, `.bin`, `.safetensors`) or a folder (Hugging Face's form, or a run or
checkpoint of ours). `backbone:` before any of them takes the encoder alone.
"""

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spark_seg.engine.checkpoints import head_difference, load_state_dict, variant_of
from spark_seg.errors import UserError, UserFileNotFoundError
from spark_seg.models.convert import set_norms, to_mmseg
from spark_seg.models.download import cache_folder, fetch_in_job
from spark_seg.models.hub import fetch_repo, find_repo, is_folder, is_repo, read_folder
from spark_seg.models.published import SOURCES, VARIANTS, licence_of, published

CLASSIFIER = ("decode_head.conv_seg.weight", "decode_head.conv_seg.bias")
_SUFFIXES = (".pth", ".pt", ".safetensors", ".bin")
_BACKBONE = "backbone:"


@dataclass(frozen=True)
class PretrainedReport:
    """What became of every key.

    Attributes:
        path: The file.
        loaded: The model's keys that were filled.
        dropped: The file's keys that were left out: the classifier of another class count or of another task, and
            with `backbone:` the decode head.
        kept: The model's keys that keep their initial values: the classifier, or a whole decode
            head.
        family: Whose names the file had; see `convert.FAMILIES`.
        norms: Whose layer norms the model has now; see `convert.NORMS`.
    """

    path: Path
    loaded: tuple[str, ...]
    dropped: tuple[str, ...]
    kept: tuple[str, ...]
    family: str = "mmseg"
    norms: str = "mmseg"


@dataclass(frozen=True)
class Weights:
    """Weights from any source, in mmseg's names.

    Attributes:
        path: The file they come from.
        state: Tensors by name, `backbone....` and `decode_head....`.
        family: Whose names they had.
        norms: Whose layer norms they were trained with.
        unused: Keys of the file that belong to no part of the network: the classifier of another task.
        backbone_only: Whether it is meant to hold no decode head; None where the file decides.
    """

    path: Path
    state: dict[str, Tensor]
    family: str
    norms: str
    unused: tuple[str, ...]
    backbone_only: bool | None = None


def load_pretrained(
    model: nn.Module, source: str | None, variant: str, quiet: bool = False
) -> PretrainedReport | None:
    """Fills a SegFormer with pretrained weights, all of them or none.

    The classifier is left out where its class count differs from the model's; ImageNet's files fill
    the backbone alone. Any other difference between file and model is an error. The layer norms get the eps with which
    the weights were trained. To be called after the model's own initialisation and before an engine wraps it.

    Args:
        model: mmseg's `EncoderDecoder` with `MixVisionTransformer` and `SegformerHead` or `PaperSegformerHead`.
        source: See the module; None for weights from scratch, which does nothing.
        variant: The model's variant, `b0` to `b5`.
        quiet: Whether to log nothing of it.

    Returns:
        What was loaded, or None where `source` is None.

    Raises:
        UserFileNotFoundError: `source` is a file or folder that is not there.
        UserError: Unknown source or variant, no connection, a damaged file, or one that does not
            fit the model.
    """
    if source is None:
        return None
    backbone = source.startswith(_BACKBONE)
    weights = read_weights(source.removeprefix(_BACKBONE), variant)
    state = weights.state
    own = model.state_dict()
    backbone_only = weights.backbone_only
    if backbone_only is None:
        backbone_only = not any(key.startswith("decode_head.") for key in state)
    dropped = _other_classes(state, own)
    if backbone:
        dropped = tuple(key for key in state if not key.startswith("backbone."))
        backbone_only = True
    state = {key: tensor for key, tensor in state.items() if key not in dropped}
    kept = tuple(
        key for key in own if key in dropped or (backbone_only and not key.startswith("backbone."))
    )
    wanted = {key: own[key] for key in own if key not in kept}
    _check(state, wanted, weights.path, variant, source)
    model.load_state_dict(state, strict=False)
    set_norms(model, weights.norms)
    dropped += weights.unused
    report = PretrainedReport(
        weights.path, tuple(state), dropped, kept, weights.family, weights.norms
    )
    if not quiet:
        _log(report, source)
    return report


def look_at(source: str | None, variant: str) -> str | None:
    """A line on where weights will come from; nothing is read or fetched. None: from scratch.

    Raises:
        UserFileNotFoundError: A file or folder that is not there.
        UserError: Unknown source or variant.
    """
    if source is None:
        return None
    name = source.removeprefix(_BACKBONE)
    path = Path(name).expanduser()
    if path.exists():
        return f"weights from {path}"
    if name.endswith(_SUFFIXES):
        raise UserFileNotFoundError(f"weights: there is no file or folder {name}")
    if name not in SOURCES and is_repo(name):
        known = find_repo(name) is not None
    elif "/" in name:
        raise UserFileNotFoundError(f"weights: there is no file or folder {name}")
    else:
        known = (cache_folder() / published(name, variant).file).is_file()
    where = "in the cache" if known else "not in the cache yet: tools/fetch_weights.py gets them"
    return f"weights {name}, {where}; licence: {licence_of(name)}"


def read_weights(source: str, variant: str | None = None) -> Weights:
    """Weights from wherever they are, under mmseg's names and on the CPU.

    Args:
        source: See the module (without `backbone:`).
        variant: For mmsegmentation's published ones, which are named by the data set alone.

    Raises:
        UserFileNotFoundError: A file or folder that is not there.
        UserError: Unknown source or variant, no connection, a damaged file, or no SegFormer.
    """
    backbone_only = None
    path = Path(source).expanduser()
    if source in SOURCES:
        if variant is None:
            raise UserError(f"{source} has weights for {', '.join(VARIANTS)}: give the variant")
        entry = published(source, variant)
        if not (cache_folder() / entry.file).is_file():
            _say(f"fetching {entry.file}; licence: {licence_of(source)}")
        path, backbone_only = fetch_in_job(entry.url, entry.digest), entry.backbone_only
        state: Mapping[str, Tensor] = _read(path)
    elif path.is_dir():
        state, path = _read_any_folder(path)
    elif source.endswith(_SUFFIXES) or path.is_file():
        state = _read(path)
    elif is_repo(source):
        if Path(source.split("/")[0]).is_dir():
            raise UserFileNotFoundError(f"weights: there is no folder {source}")
        if find_repo(source) is None:
            _say(f"fetching {source}; licence: {licence_of(source)}")
        state, path = read_folder(fetch_repo(source))
    elif "/" in source:
        raise UserFileNotFoundError(f"weights: there is no file or folder {source}")
    else:
        published(source, variant or VARIANTS[0])  # tells what there is
        raise AssertionError(source)
    converted = to_mmseg(state, path)
    norms = getattr(state, "norms", None)
    if norms is None:
        norms = "huggingface" if converted.family == "transformers" else converted.family
    _require_finite(converted.state, path)
    return Weights(path, converted.state, converted.family, norms, converted.unused, backbone_only)


def _require_finite(state: Mapping[str, Tensor], path: Path) -> None:
    bad = [key for key, t in state.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise UserError(
            f"{path}: {some(bad, 'with NaN or infinite values')}: take another checkpoint"
        )


def _read_any_folder(folder: Path) -> tuple[Mapping[str, Tensor], Path]:
    if is_folder(folder):
        return read_folder(folder)
    return load_state_dict(folder), folder


def _read(path: Path) -> Mapping[str, Tensor]:
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


def _other_classes(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The classifier's keys where file and model have it for different numbers of classes."""
    pairs = [(key, state[key], own[key]) for key in CLASSIFIER if key in state and key in own]
    return tuple(
        key
        for key, theirs, ours in pairs
        if theirs.shape[:1] != ours.shape[:1] and theirs.shape[1:] == ours.shape[1:]
    )


def _check(
    state: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    path: Path,
    variant: str,
    source: str,
) -> None:
    """Raises unless both have the same keys and shapes, and says which config would fit."""
    problems = {
        "missing": [key for key in wanted if key not in state],
        "unexpected": [key for key in state if key not in wanted],
        "of another shape": [
            key for key in state if key in wanted and state[key].shape != wanted[key].shape
        ],
    }
    told = [some(keys, kind) for kind, keys in problems.items() if keys]
    if not told:
        return
    theirs, head = variant_of(state), head_difference(state, wanted)
    variant = variant_of(wanted) or variant
    hint, fits = "", []
    if theirs not in (None, variant):
        hint = f"it is a {theirs}, not a {variant}: "
        fits.append(f"segformer_{theirs}_spark.py fits it")
    if head:
        fits.append(f"its decoder needs {head}")
        fits.append(
            f"pretrained={_BACKBONE}{source.removeprefix(_BACKBONE)} takes the encoder alone"
        )
    raise UserError(f"{path} does not fit the model: {hint}{'; '.join(told + fits)}")


def some(keys: list[str], kind: str) -> str:
    """How many keys are of a kind, and the first of them, for a message."""
    first = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
    return f"{len(keys)} {'key' if len(keys) == 1 else 'keys'} {kind} ({first})"


def _log(report: PretrainedReport, source: str) -> None:
    line = f"pretrained {source}: {len(report.loaded)} tensors from {report.path}"
    if set(report.kept) == set(CLASSIFIER):
        line += ", classifier left out (other classes)"
    elif report.kept:
        line += f", {len(report.kept)} tensors of the decode head from scratch"
    if report.norms != "mmseg":
        line += f", layer norms as {report.norms}'s"
    _say(line)


def _say(line: str) -> None:
    from mmengine.logging import print_log

    print_log(line, logger="current")
