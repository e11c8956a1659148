"""Which evaluation a file is of: a folder can hold what an earlier one left, with other weights, data or rule."""

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from spark_seg.evaluation.challenge import ChallengeRule

if TYPE_CHECKING:
    import torch
    from mmengine.config import Config

# What an evaluation is told apart by, in the words of a message.
PARTS = {
    "weights": "weights",
    "split": "split",
    "data": "data",
    "rule": "challenge rule",
    "prediction": "model options",
}


def identify(
    cfg: "Config", weights: "Mapping[str, torch.Tensor]", split: str, rule: ChallengeRule
) -> dict[str, Any]:
    """What an evaluation's numbers depend on, as plain values.

    Args:
        cfg: As from `spark_seg.config.load_config`.
        weights: The evaluated model's.
        split: `train` or `val`.
        rule: The challenge's score.

    Returns:
        `weights`: their digest; `split`; `data`: the fingerprint of the split's frames (ids and files' sizes);
        `rule`; `prediction`: a digest of the model, its precision, its test-time augmentation and the pipeline. Device,
        strategy and batch size are no part of it: they change nothing but the logits' last bits.
    """
    from mmseg.registry import DATASETS

    from spark_seg.datasets.layout import fingerprint
    from spark_seg.submission.run import model_options

    dataset = copy.deepcopy(cfg.val_dataloader.dataset)
    dataset.split = split
    frames = DATASETS.build({**dataset, "lazy_init": True}).list_frames()
    options = model_options(cfg, weights)
    digest = options.pop("weights")
    options["pipeline"] = dataset.get("pipeline")
    text = json.dumps(options, default=str, sort_keys=True)
    return {
        "weights": digest,
        "split": split,
        "data": fingerprint(frames),
        "rule": {**asdict(rule), "thresholds": list(rule.thresholds)},
        "prediction": hashlib.sha256(text.encode()).hexdigest()[:16],
    }


def identity_in(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The identity that a file holds; files of before have no more than the weights' digest, or nothing."""
    if "evaluation" in saved:
        return dict(saved["evaluation"])
    return {"weights": saved["weights"]} if saved.get("weights") else {}


def differences(found: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """In what a file's evaluation is another than the folder's record; empty where it is the same.

    Args:
        found: The file's identity; empty in a file of before there were any.
        record: `run.json`. A record of before there were identities is compared in what both have.

    Returns:
        Values of `PARTS`.
    """
    whole = "data" in record
    told = []
    for key, title in PARTS.items():
        if key not in record or (key not in found and not whole):
            continue
        if found.get(key) != record[key]:
            told.append(title)
    return told
