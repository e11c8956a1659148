"""Writes weights as the files that mmsegmentation, Hugging Face's transformers and NVlabs' code read."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from spark_seg.atomic import make_folder, write_bytes
from spark_seg.engine.checkpoints import (
    save_pth,
    save_safetensors,
    variant_of,
    with_norms,
)
from spark_seg.errors import UserError, nearest
from spark_seg.labels import CLASSES
from spark_seg.models.convert import NORMS, from_mmseg
from spark_seg.models.hub import CONFIG_FILE, FIXED, WEIGHT_FILES
from spark_seg.models.pretrained import CLASSIFIER, Weights, some
from spark_seg.models.published import VARIANTS

FORMS = ("mmseg", "safetensors", "huggingface", "nvlabs")
"""`mmseg`: .pth in mmsegmentation's names; `safetensors`: the same names as safetensors; `huggingface`: a folder for
transformers' `from_pretrained`; `nvlabs`: .pth in the names of NVlabs/SegFormer."""

# What mmseg and mmengine keep beside the network: a head for training alone, and the optimiser's state.
_LEFTOVERS = ("auxiliary_head.", "optimizer.", "optim_wrapper.", "param_schedulers.")
_SUFFIX = {"mmseg": ".pth", "safetensors": ".safetensors", "nvlabs": ".pth"}
_SHAPES = {
    "b0": ([32, 64, 160, 256], [2, 2, 2, 2]),
    "b1": ([64, 128, 320, 512], [2, 2, 2, 2]),
    "b2": ([64, 128, 320, 512], [3, 4, 6, 3]),
    "b3": ([64, 128, 320, 512], [3, 4, 18, 3]),
    "b4": ([64, 128, 320, 512], [3, 8, 27, 3]),
    "b5": ([64, 128, 320, 512], [3, 6, 40, 3]),
}


def write_weights(
    weights: Weights, path: Path, form: str, backbone_only: bool = False
) -> tuple[int, list[str]]:
    """Writes weights in another form, beside and then renamed.

    Args:
        weights: As from `pretrained.read_weights`.
        path: The file, with the form's suffix; for `huggingface` the folder.
        form: One of `FORMS`.
        backbone_only: Leave the decode head out.

    Returns:
        How many tensors were written, and what the user should know.

    Raises:
        UserError: Unknown form, wrong suffix, a decoder for which the form has no place, a SegFormer unlike b0 to b5,
            a weight that is missing or has no place in one.
    """
    if form not in FORMS:
        raise UserError(f"no form {form!r}; there are {', '.join(FORMS)}{nearest(form, FORMS)}")
    if form in _SUFFIX and path.suffix != _SUFFIX[form]:
        raise UserError(f"{path}: a file of the form {form} ends in {_SUFFIX[form]}")
    left_out = leftovers(weights.state)
    state = {k: v for k, v in weights.state.items() if k not in left_out}
    check_whole(state, weights.path, backbone_only)
    if backbone_only:
        state = {k: v for k, v in state.items() if k.startswith("backbone.")}
    notes = []
    if form in ("mmseg", "safetensors"):
        make_folder(path.parent)
        noted = with_norms(state, weights.norms)
        (save_pth if form == "mmseg" else save_safetensors)(noted, path)
        if weights.norms != "mmseg":
            notes.append(
                f"the layer norms' eps is {weights.norms}'s {NORMS[weights.norms]}: spark_seg finds that in the file, "
                "mmsegmentation alone would take 1e-6"
            )
        return len(state), notes
    converted = from_mmseg(state, form)
    if form == "nvlabs":
        make_folder(path.parent)
        save_pth(converted, path)
    else:
        config = hf_config(weights, backbone_only)
        make_folder(path)
        save_safetensors(converted, path / WEIGHT_FILES[0])
        write_bytes(path / CONFIG_FILE, json.dumps(config, indent=2).encode())
        notes.append(
            "config.json says nothing of the pictures: normalise them as the training's config does"
        )
    if weights.norms != form:
        notes.append(
            f"the weights were trained with {weights.norms}'s eps of layer norms {NORMS[weights.norms]}, and {form} "
            f"computes with {NORMS[form]}: features differ by some 1e-5"
        )
    return len(converted), notes


def leftovers(state: Mapping[str, Tensor]) -> list[str]:
    """Keys that a training leaves beside the network's, and that no form has a place for."""
    return [key for key in state if key.startswith(_LEFTOVERS)]


def check_whole(state: Mapping[str, Tensor], path: Path, backbone_only: bool = False) -> None:
    """Raises unless a state dict in mmseg's names has every weight of its variant, and no other.

    A decoder may be missing as a whole, and its classifier.

    Args:
        state: Without `leftovers`.
        path: Where it comes from, for messages.
        backbone_only: Whether the decoder is not looked at, since it will be left out.

    Raises:
        UserError: Which is missing, or has no place.
    """
    variant = variant_of(state)
    if variant is None:
        # a lost block looks like another depth: nothing could tell it from a network of one's own
        raise UserError(
            f"{path} is none of SegFormer b0 to b5: whole blocks are missing, or it has other widths or depths; "
            "copy or save it again"
        )
    if backbone_only:
        state = {key: tensor for key, tensor in state.items() if not key.startswith("decode_head.")}
    wanted = _names(variant, _decoder(state))
    optional = {key for key in wanted if key.endswith("num_batches_tracked")}
    if not any(key in state for key in CLASSIFIER):
        optional.update(CLASSIFIER)
    missing = [key for key in wanted if key not in state and key not in optional]
    unknown = [key for key in state if key not in wanted]
    told = [some(k, kind) for k, kind in ((missing, "missing"), (unknown, "unexpected")) if k]
    if told:
        raise UserError(
            f"{path} is not just a whole SegFormer {variant}: {'; '.join(told)}; save the network's state dict again, "
            "whole and alone"
        )


def check_variant(given: str | None, weights: Weights | None = None) -> None:
    """Raises unless a variant that the user names is one, and that of the weights.

    Raises:
        UserError: It is not; says which there are, or which the weights have.
    """
    if given is None:
        return
    if given not in VARIANTS:
        raise UserError(
            f"no SegFormer variant {given!r}; there are {', '.join(VARIANTS)}{nearest(given, VARIANTS)}"
        )
    theirs = None if weights is None else variant_of(weights.state)
    if weights is not None and theirs not in (None, given):
        raise UserError(
            f"{weights.path} is a SegFormer {theirs}, not a {given}: leave --variant out, or give another file"
        )


def _decoder(state: Mapping[str, Tensor]) -> str | None:
    """The decoder's class, told by any of its projections: the first may be what is missing."""
    if not any(key.startswith("decode_head.") for key in state):
        return None
    norm = re.compile(r"decode_head\.convs\.\d\.bn\.")
    return "SegformerHead" if any(norm.match(key) for key in state) else "PaperSegformerHead"


def _names(variant: str, head: str | None) -> list[str]:
    """The names of a variant's weights, with a decoder of that class or none, off the networks themselves."""
    from mmseg.registry import MODELS

    from spark_seg import register  # noqa: F401
    from spark_seg.config import load_config

    cfg = load_config(f"segformer_{variant}_spark.py", {"pretrained": None}).model
    # one channel a head: names do not depend on widths, and b5 would take seconds (mmseg's encoder is not for meta)
    parts: dict[str, Any] = {"backbone": {**cfg.backbone, "embed_dims": 1}}
    if head is not None:
        parts["decode_head"] = {**cfg.decode_head, "type": head, "channels": 1}
    built = {name: MODELS.build(part) for name, part in parts.items()}
    return [f"{name}.{key}" for name, part in built.items() for key in part.state_dict()]


def hf_config(weights: Weights, backbone_only: bool = False) -> dict[str, Any]:
    """The `config.json` of weights in mmseg's names.

    Raises:
        UserError: They are none of b0 to b5.
    """
    variant = variant_of(weights.state)
    if variant is None:
        raise UserError(f"{weights.path} is none of SegFormer b0 to b5: no config.json for it")
    sizes, depths = _SHAPES[variant]
    config: dict[str, Any] = {
        "architectures": [
            "SegformerModel" if backbone_only else "SegformerForSemanticSegmentation"
        ],
        "model_type": "segformer",
        **FIXED,
        "depths": depths,
        "hidden_sizes": sizes,
        "drop_path_rate": 0.1,
        "reshape_last_stage": True,
        "semantic_loss_ignore_index": 255,
    }
    if "decode_head.conv_seg.weight" in weights.state and not backbone_only:
        classes, width = weights.state["decode_head.conv_seg.weight"].shape[:2]
        names = CLASSES if classes == len(CLASSES) else [f"LABEL_{i}" for i in range(classes)]
        config["decoder_hidden_size"] = width
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        config["label2id"] = {name: i for i, name in enumerate(names)}
    return config
