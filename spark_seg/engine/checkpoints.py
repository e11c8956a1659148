"""One loader for every form in which weights come: `.safetensors`, `.pth`, and checkpoint folders.

Files are read with `torch.load(weights_only=True)` or safetensors: nothing in a checkpoint is executed. A file that
needs more is refused unless the caller says that its source is trusted.
"""

import io
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spark_seg.atomic import replacing, write_bytes
from spark_seg.engine.folder import EMA_FILE, WEIGHTS_FILE
from spark_seg.errors import UserError, UserFileNotFoundError

_TRUST_HINT = "if you trust where it comes from, pass --trust-checkpoint"


def save_safetensors(state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Writes a state dict as safetensors, beside and then renamed. Tensors are made contiguous."""
    from safetensors.torch import save

    whole = {name: tensor.contiguous() for name, tensor in state.items()}
    with replacing(path) as file:
        file.write(save(whole, {"format": "pt"}))


def save_pth(state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Writes a bare state dict with `torch.save`, beside and then renamed."""
    # Through memory: torch's own writer turns a full disk into a RuntimeError that says nothing.
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_bytes(path, buffer.getvalue())


def load_state_dict(path: str | Path, trust: bool = False) -> dict[str, torch.Tensor]:
    """Reads the weights from a checkpoint of any form, on the CPU.

    Args:
        path: A `.safetensors` file; a file written by `torch.save` that holds a state dict or a dict with one under
            `state_dict` or `module`; or a folder: ours, or one of DeepSpeed's.
        trust: Also read files that need unrestricted unpickling, which can run code.

    Raises:
        UserFileNotFoundError: No such file or folder, or no weights in the folder.
        UserError: The file is damaged, holds no weights, or needs `trust`.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path, trust)
    if not path.is_file():
        raise UserFileNotFoundError(f"no checkpoint {path}")
    if path.suffix == ".safetensors":
        return load_safetensors(path)
    return _pick_state_dict(_load_pickle(path, trust), path)


def load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Reads a safetensors file.

    Raises:
        UserError: It is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except (SafetensorError, OSError, ValueError) as e:
        raise UserError(f"{path} is no whole safetensors file ({e}): copy it again") from e


def _load_folder(path: Path, trust: bool) -> dict[str, torch.Tensor]:
    for folder in (path, path / "checkpoints" / "best"):
        for name in (EMA_FILE, WEIGHTS_FILE):  # the averaged weights are the ones that scored
            if (folder / name).is_file():
                return load_safetensors(folder / name)
    stages_0_to_2 = path / "mp_rank_00_model_states.pt"
    if stages_0_to_2.is_file():
        return _pick_state_dict(_load_pickle(stages_0_to_2, trust), stages_0_to_2)
    if list(path.glob("zero_pp_rank_*_model_states.pt")):
        if not trust:
            raise UserError(
                f"{path} is a ZeRO stage 3 folder without {WEIGHTS_FILE}; putting it together means "
                f"unpickling it: {_TRUST_HINT}"
            )
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        return get_fp32_state_dict_from_zero_checkpoint(str(path.parent), tag=path.name)
    raise UserFileNotFoundError(
        f"{path} holds no weights: neither {WEIGHTS_FILE} nor DeepSpeed's *_model_states.pt"
    )


def _load_pickle(path: Path, trust: bool) -> Any:
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty")
    with path.open("rb") as f:
        head = f.read(4)
    # torch writes a zip since 1.6 and a bare pickle before; anything else is not even looked into.
    if not head.startswith(b"PK\x03\x04") and not head.startswith(b"\x80"):
        raise UserError(f"{path} is no checkpoint: not a file that torch.save wrote")
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise UserError(f"{path} is truncated: copy it again")
    if head.startswith(b"PK"):
        _check_zip(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust)
    except Exception as e:  # what is raised is up to the file's content
        if isinstance(e, pickle.UnpicklingError) and not trust and not _is_garbage(e):
            raise UserError(
                f"{path} holds more than weights, and unpickling it could run code: {_TRUST_HINT}"
            ) from e
        raise UserError(f"{path} is truncated or damaged ({_first_line(e)}): copy it again") from e


def _check_zip(path: Path) -> None:
    """torch does not look at the checksums: a flipped bit would be a weight like any other."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError) as e:
        raise UserError(f"{path} is truncated or damaged ({_first_line(e)}): copy it again") from e
    if bad is not None:
        raise UserError(f"{path} is damaged (wrong checksum of {bad}): copy it again")


def _is_garbage(error: pickle.UnpicklingError) -> bool:
    """Whether `weights_only` met bytes that are no instruction at all, rather than one that it forbids."""
    text = str(error)
    return "Unsupported operand" in text or "truncated" in text


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _pick_state_dict(content: Any, path: Path) -> dict[str, torch.Tensor]:
    for key in ("state_dict", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(v, torch.Tensor) for v in content.values())
    ):
        raise UserError(
            f"{path} holds no weights: expected a state dict, or one under 'state_dict'"
        )
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def apply_state_dict(model: nn.Module, state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Copies weights into a model, all of them or none.

    Raises:
        UserError: Keys or shapes do not match; the message says whether the checkpoint is of another class count or
            of another variant, and which.
    """
    own = model.state_dict()
    wrong = {k for k in own.keys() & state.keys() if own[k].shape != state[k].shape}
    missing, extra = own.keys() - state.keys(), state.keys() - own.keys()
    if not (wrong or missing or extra):
        model.load_state_dict(dict(state))
        return
    classifier = "decode_head.conv_seg.weight"
    if (
        wrong
        and not missing
        and not extra
        and all(k.startswith("decode_head.conv_seg") for k in wrong)
    ):
        raise UserError(
            f"{path} was trained for {state[classifier].shape[0]} classes, the config has "
            f"{own[classifier].shape[0]}: set num_classes={state[classifier].shape[0]} or another checkpoint"
        )
    theirs, ours = variant_of(state), variant_of(own)
    if theirs and ours and theirs != ours:
        raise UserError(
            f"{path} is a SegFormer {theirs}, the config builds {ours}: use the config of {theirs} "
            f"(segformer_{theirs}_spark.py) or another checkpoint"
        )
    kind, names = next(
        (k, n) for k, n in (("missing", missing), ("unknown", extra), ("misshapen", wrong)) if n
    )
    first = ", ".join(sorted(names)[:3])
    raise UserError(f"{path} does not fit the model: {len(names)} {kind} weights, first {first}")


# (channels of the first stage, blocks per stage); Xie et al. 2021, table 6.
_VARIANTS: dict[tuple[int, tuple[int, ...]], str] = {
    (32, (2, 2, 2, 2)): "b0",
    (64, (2, 2, 2, 2)): "b1",
    (64, (3, 4, 6, 3)): "b2",
    (64, (3, 4, 18, 3)): "b3",
    (64, (3, 8, 27, 3)): "b4",
    (64, (3, 6, 40, 3)): "b5",
}


def variant_of(state: Mapping[str, torch.Tensor]) -> str | None:
    """`b0` to `b5` as read off a state dict's keys and shapes in mmseg's naming, or None."""
    first = state.get("backbone.layers.0.0.projection.weight")
    if first is None:
        return None
    depths = []
    for stage in range(4):
        prefix = f"backbone.layers.{stage}.1."
        blocks = {k[len(prefix) :].split(".")[0] for k in state if k.startswith(prefix)}
        depths.append(len(blocks))
    return _VARIANTS.get((first.shape[0], tuple(depths)))
