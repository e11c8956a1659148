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
_NORMS_KEY = "layer_norms"


class StateDict(dict[str, torch.Tensor]):
    """A state dict that remembers what is no tensor and yet part of the function.

    Attributes:
        norms: Whose eps the backbone's layer norms have, a key of `spark_seg.models.convert.NORMS`; None where nothing
            says so, which is mmsegmentation's.
    """

    norms: str | None = None


def with_norms(state: Mapping[str, torch.Tensor], norms: str | None) -> StateDict:
    """The same tensors with `norms` noted beside them."""
    noted = StateDict(state)
    noted.norms = norms
    return noted


def save_safetensors(state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Writes a state dict as safetensors, beside and then renamed. Tensors are made contiguous."""
    from safetensors.torch import save

    whole = {name: tensor.contiguous() for name, tensor in state.items()}
    norms = getattr(state, "norms", None)
    with replacing(path) as file:
        file.write(save(whole, {"format": "pt"} | ({_NORMS_KEY: norms} if norms else {})))


def save_pth(state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Writes a state dict with `torch.save`, beside and then renamed: bare, or where its layer norms are not
    mmsegmentation's as mmengine writes one, under `state_dict` with `meta` beside it."""
    # Through memory: torch's own writer turns a full disk into a RuntimeError that says nothing.
    buffer = io.BytesIO()
    norms = getattr(state, "norms", None)
    bare = dict(state)
    noted = norms is not None and norms != "mmseg"
    torch.save({"meta": {_NORMS_KEY: norms}, "state_dict": bare} if noted else bare, buffer)
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


def load_safetensors(path: Path) -> StateDict:
    """Reads a safetensors file.

    Raises:
        UserError: It is damaged.
        OSError: It cannot be opened.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    with open(path, "rb"):
        pass  # a file that may not be read is no damaged one; safetensors says that it is not there
    try:
        with safe_open(str(path), framework="pt") as file:
            norms = (file.metadata() or {}).get(_NORMS_KEY)
        state = load_file(str(path))
    except (SafetensorError, OSError, ValueError) as e:
        raise UserError(f"{path} is no whole safetensors file ({e}): copy it again") from e
    _check_norms(norms, path)
    return with_norms(state, norms)


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


def _pick_state_dict(content: Any, path: Path) -> StateDict:
    meta = content.get("meta") if isinstance(content, Mapping) else None
    norms = meta.get(_NORMS_KEY) if isinstance(meta, Mapping) else None
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
    tensors = {name.removeprefix("module."): tensor for name, tensor in content.items()}
    _check_norms(norms, path)
    return with_norms(tensors, norms)


def _check_norms(norms: Any, path: Path) -> None:
    from spark_seg.models.convert import NORMS  # which imports from here

    if norms is not None and (not isinstance(norms, str) or norms not in NORMS):
        raise UserError(
            f"{path}: its layer norms are marked {norms!r}, of which this version knows nothing (there are "
            f"{', '.join(NORMS)}): convert it with the version that wrote it"
        )


def apply_state_dict(model: nn.Module, state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Copies weights into a model, all of them or none; its layer norms get the eps that is noted with the weights.

    Raises:
        UserError: Keys or shapes do not match; the message says whether the checkpoint is of another class count or
            of another variant, and which.
    """
    own = model.state_dict()
    wrong = {k for k in own.keys() & state.keys() if own[k].shape != state[k].shape}
    missing, extra = own.keys() - state.keys(), state.keys() - own.keys()
    if not (wrong or missing or extra):
        model.load_state_dict(dict(state))
        if norms := getattr(state, "norms", None):
            from spark_seg.models.convert import set_norms

            set_norms(model, norms)
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
    if head := head_difference(state, own):
        raise UserError(f"{path} has another decoder than the config builds: use it with {head}")
    from spark_seg.models.convert import family_of

    family = family_of(state)
    if family is None and family_of(own) is not None:
        raise UserError(f"{path} is no SegFormer: it holds {', '.join(sorted(state)[:3])}, ...")
    if family != family_of(own):
        raise UserError(
            f"{path} has the names of {family}'s SegFormer, not ours: convert it with tools/convert.py, or start a "
            f"training from it with pretrained={path}"
        )
    kind, names = next(
        (k, n) for k, n in (("missing", missing), ("unknown", extra), ("misshapen", wrong)) if n
    )
    first = ", ".join(sorted(names)[:3])
    raise UserError(f"{path} does not fit the model: {len(names)} {kind} weights, first {first}")


# (channels of the first stage, blocks per stage); Xie et al. 2021, table 6.
NETWORKS: dict[tuple[int, tuple[int, ...]], str] = {
    (32, (2, 2, 2, 2)): "b0",
    (64, (2, 2, 2, 2)): "b1",
    (64, (3, 4, 6, 3)): "b2",
    (64, (3, 4, 18, 3)): "b3",
    (64, (3, 8, 27, 3)): "b4",
    (64, (3, 6, 40, 3)): "b5",
}


def head_kind(state: Mapping[str, torch.Tensor]) -> str | None:
    """The class of decode head that a state dict in mmseg's naming belongs to, or None where it has no head."""
    if "decode_head.convs.0.bn.weight" in state:
        return "SegformerHead"
    return "PaperSegformerHead" if "decode_head.convs.0.conv.bias" in state else None


def head_difference(
    state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> str | None:
    """What to say to the command so that the model's decode head is the checkpoint's; None where it is, or has none."""
    kind, fusion = head_kind(state), "decode_head.fusion_conv.conv.weight"
    if kind is None or fusion not in state or fusion not in own:
        return None
    channels = state[fusion].shape[0]
    if kind == head_kind(own) and channels == own[fusion].shape[0]:
        return None
    name = "paper" if kind == "PaperSegformerHead" else "mmseg"
    return f"""--cfg-options 'head={{"type": "{name}", "channels": {channels}}}'"""


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
    return NETWORKS.get((first.shape[0], tuple(depths)))
