"""SegFormer repositories of the Hugging Face hub and folders in their form: found, fetched, checked, read.

Only `config.json` and one weights file are fetched, over plain https from `$HF_ENDPOINT` (default
https://huggingface.co), so that no package of the hub's is needed. A repository that its own tools have put into
`$HF_HOME` is taken from there.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from spark_seg.engine.checkpoints import load_state_dict
from spark_seg.errors import UserError, UserFileNotFoundError
from spark_seg.models.download import NotThereError, cache_folder, fetch_file, in_job

CONFIG_FILE = "config.json"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# What makes a SegFormer beside its widths and depths. Other numbers of heads would fit all shapes and be another
# function, so they are looked at.
FIXED: dict[str, Any] = {
    "num_channels": 3,
    "num_encoder_blocks": 4,
    "sr_ratios": [8, 4, 2, 1],
    "patch_sizes": [7, 3, 3, 3],
    "strides": [4, 2, 2, 2],
    "num_attention_heads": [1, 2, 5, 8],
    "mlp_ratios": [4, 4, 4, 4],
    "hidden_act": "gelu",
}


def is_repo(source: str) -> bool:
    """Whether a value has the form of a repository's name, `owner/name`."""
    return _REPO.fullmatch(source) is not None


def is_folder(path: Path) -> bool:
    """Whether a folder is in Hugging Face's form."""
    return (path / CONFIG_FILE).is_file()


def fetch_repo(repo: str) -> Path:
    """The folder with a repository's config and weights, downloaded where it is not there yet; by all ranks of a job.

    Args:
        repo: `owner/name`.

    Raises:
        UserError: No such repository, no connection, or a damaged download.
    """
    return in_job(lambda: _download(repo), lambda: find_repo(repo), repo)


def find_repo(repo: str) -> Path | None:
    """The folder where a repository lies already, whole, or None."""
    own = _own_folder(repo)
    owner, name = repo.split("/")
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{owner}--{name}"
    candidates = [own]
    main = hub / "refs" / "main"
    if main.is_file():
        candidates.append(hub / "snapshots" / main.read_text(encoding="utf-8").strip())
    for folder in candidates:
        if is_folder(folder) and any((folder / file).is_file() for file in WEIGHT_FILES):
            return folder
    return None


def _own_folder(repo: str) -> Path:
    return cache_folder() / "huggingface" / repo.replace("/", "--")


def _download(repo: str) -> Path:
    found = find_repo(repo)
    if found is not None:
        return found
    folder = _own_folder(repo)
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    address = f"{endpoint}/{repo}/resolve/main"
    for name in WEIGHT_FILES:
        try:
            fetch_file(f"{address}/{name}", folder / name)
            break
        except NotThereError:
            continue
    else:
        raise UserError(
            f"{endpoint} has no repository {repo!r}, or none of {' and '.join(WEIGHT_FILES)} in it that is open to "
            "all: look at its page, or give a folder that holds config.json and weights"
        )
    fetch_file(
        f"{address}/{CONFIG_FILE}", folder / CONFIG_FILE
    )  # last: with it the folder is whole
    return folder


def read_folder(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """The weights of a folder in Hugging Face's form, and their file.

    Raises:
        UserFileNotFoundError: No weights file.
        UserError: The config is damaged, of another family, or of a SegFormer unlike the paper's.
    """
    check_config(folder / CONFIG_FILE)
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return load_state_dict(folder / name), folder / name
    raise UserFileNotFoundError(f"{folder} holds none of {' and '.join(WEIGHT_FILES)}")


def check_config(path: Path) -> None:
    """Raises unless a `config.json` describes a SegFormer whose function is that of our networks.

    Raises:
        UserError: As said; names the key.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): copy it again") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "segformer":
        raise UserError(f"{path} is the config of a {kind!r}, not of a 'segformer'")
    for key, wanted in FIXED.items():
        given = config.get(key, wanted)
        if (list(given) if isinstance(given, list | tuple) else given) != wanted:
            raise UserError(f"{path}: {key} is {given}, but SegFormer b0 to b5 have {wanted}")
