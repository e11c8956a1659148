"""`export.json`: what each file of a folder was made of, so that none predicts in place of another model."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_seg.atomic import write_bytes
from spark_seg.errors import UserError
from spark_seg.export.backends import file_digest

if TYPE_CHECKING:
    from mmengine.config import Config

RECORD = "export.json"
ALLOWED = 0.5  # points of mIoU that a format may cost


def input_settings(cfg: "Config") -> dict[str, Any]:
    """What of the config is inside an exported file beside the weights: how pictures are normalised."""
    before: Any = cfg.model.get("data_preprocessor") or {}
    named = {key: before.get(key) for key in ("mean", "std", "bgr_to_rgb", "rgb_to_bgr")}
    return {k: list(v) if isinstance(v, list | tuple) else v for k, v in named.items()}


def add_entries(
    folder: Path,
    cfg: "Config",
    checkpoint: str | Path,
    digest: str,
    checks: list[dict[str, Any]],
) -> None:
    """Records the files of an export; what the record says of others stays.

    Args:
        folder: That holds the files.
        cfg: As from `load_config`.
        checkpoint: Where the weights came from.
        digest: `weights_digest` of its state dict.
        checks: Rows as `export` returns them; each names its `file`.
    """
    entries = read_entries(folder)
    for name in dict.fromkeys(row["file"] for row in checks):
        entries[name] = {
            "image_size": int(cfg.image_size),
            "checkpoint": str(checkpoint),
            "weights": digest,
            "input": input_settings(cfg),
            "sha256": file_digest(folder / name),
            "checks": [row for row in checks if row["file"] == name],
        }
    write_bytes(folder / RECORD, (json.dumps({"files": entries}, indent=1) + "\n").encode())


def read_entries(folder: Path) -> dict[str, Any]:
    """The record's entries by file name; empty where there is none."""
    try:
        found = json.loads((folder / RECORD).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def checked_entry(
    path: Path, cfg: "Config", checkpoint: str | Path | None, trust: bool, fmt: str
) -> dict[str, Any]:
    """The entry of a file that shall predict.

    Args:
        path: The file.
        cfg: As from `load_config`.
        checkpoint: What the user believes it to be made of; None where nothing says so.
        trust: Whether the checkpoint may be unpickled without restriction.
        fmt: The format that predicts; told of where its check was bad.

    Raises:
        UserError: No entry, another file than was recorded, other weights, another normalisation.
    """
    entry = read_entries(path.parent).get(path.name)
    if not isinstance(entry, dict):
        raise UserError(
            f"{path.parent / RECORD} does not say what {path.name} was made of: export it again"
        )
    if entry["sha256"] != file_digest(path):
        raise UserError(f"{path} is not the file that {RECORD} was written for: export it again")
    ours = input_settings(cfg)
    if entry["input"] != ours:
        key = next(k for k in ours if ours[k] != entry["input"].get(k))
        raise UserError(
            f"{path} was exported with {key}={entry['input'].get(key)}, the config has {ours[key]}: export it again"
        )
    if checkpoint is not None:
        from spark_seg.engine.checkpoints import load_state_dict
        from spark_seg.submission.run import weights_digest

        if weights_digest(load_state_dict(checkpoint, trust)) != entry["weights"]:
            raise UserError(
                f"{path} was exported from {entry['checkpoint']}, whose weights are not those of {checkpoint}: export "
                "again, or name the checkpoint that it was made of"
            )
    for row in entry["checks"]:
        if row["format"] == fmt and row["change"] is not None and row["change"] < -ALLOWED:
            print(
                f"warning: {fmt} cost {-row['change']:.2f} points of mIoU when it was exported, more than {ALLOWED}",
                file=sys.stderr,
            )
    return entry
