"""Writes weights as the files that mmsegmentation, Hugging Face's transformers and NVlabs' code read."""

import json
from pathlib import Path
from typing import Any

from spark_seg.atomic import make_folder, write_bytes
from spark_seg.engine.checkpoints import save_pth, save_safetensors, variant_of, with_norms
from spark_seg.errors import UserError, nearest
from spark_seg.labels import CLASSES
from spark_seg.models.convert import NORMS, from_mmseg
from spark_seg.models.hub import CONFIG_FILE, FIXED, WEIGHT_FILES
from spark_seg.models.pretrained import Weights

FORMS = ("mmseg", "safetensors", "huggingface", "nvlabs")
"""`mmseg`: .pth in mmsegmentation's names; `safetensors`: the same names as safetensors; `huggingface`: a folder for
transformers' `from_pretrained`; `nvlabs`: .pth in the names of NVlabs/SegFormer."""

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
        UserError: Unknown form, wrong suffix, a decoder for which the form has no place, a SegFormer unlike b0 to b5.
    """
    if form not in FORMS:
        raise UserError(f"no form {form!r}; there are {', '.join(FORMS)}{nearest(form, FORMS)}")
    if form in _SUFFIX and path.suffix != _SUFFIX[form]:
        raise UserError(f"{path}: a file of the form {form} ends in {_SUFFIX[form]}")
    state = {
        k: v for k, v in weights.state.items() if not backbone_only or k.startswith("backbone.")
    }
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
