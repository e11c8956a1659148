"""What an evaluation keeps of itself beside its numbers: `run.json`, and the challenge's rule in it."""

import json
from pathlib import Path
from typing import Any

from spark_seg.errors import UserError
from spark_seg.evaluation.challenge import ChallengeRule

RECORD_FILE = "run.json"


def read_json(path: Path) -> Any:
    """The file's content; None where there is none.

    Raises:
        UserError: The file is damaged.
        OSError: It cannot be opened.
    """
    if not path.is_file():
        return None
    text = path.read_bytes()
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}): evaluate again") from error


def saved_rule(folder: Path) -> ChallengeRule | None:
    """The rule by which the folder's evaluation was scored; None where it kept no record of it.

    Raises:
        UserError: The record is damaged.
    """
    path = folder / RECORD_FILE
    saved = (read_json(path) or {}).get("rule")
    if saved is None:
        return None
    try:
        saved = dict(saved)
        if "thresholds" in saved:
            saved["thresholds"] = tuple(saved["thresholds"])
        return ChallengeRule(**saved)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} holds no rule that is known here ({error})") from error
