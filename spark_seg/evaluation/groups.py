"""The scores by kind of image: satellite, size of the craft, background, share of panel.

Groups follow the truth alone, so that two runs over the same images have the same groups.
"""

import csv
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spark_seg.datasets.layout import satellite_order
from spark_seg.errors import UserError
from spark_seg.evaluation.bootstrap import RESAMPLES, intervals
from spark_seg.evaluation.challenge import BELIEVED, ChallengeRule, panel_counts
from spark_seg.evaluation.store import ImageCounts
from spark_seg.evaluation.table import grid, metrics_of, percent

GROUPINGS = ("satellite", "size", "background", "panel")
BACKGROUNDS_FILE = "backgrounds.csv"
_PANEL_ENDS = (0.2, 0.5)  # of the body's area, above the challenge's 5 %


@dataclass(frozen=True)
class Group:
    """Some images of a split: a label, and their indices int64 [n], n >= 1."""

    label: str
    which: np.ndarray


@dataclass(frozen=True)
class GroupScores:
    """A group's scores.

    Attributes:
        by: One of `GROUPINGS`.
        label: The group's name.
        images: How many it has.
        metrics: As `metrics_of` returns them.
        intervals: As `bootstrap.intervals` returns them.
    """

    by: str
    label: str
    images: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]


def group(counts: ImageCounts, by: str, rule: ChallengeRule = BELIEVED) -> list[Group]:
    """Splits images into groups, in a sensible order; groups without an image are left out.

    - `satellite`: in class-index order; images of unknown satellite are in none.
    - `size`: quintiles of the craft's true area as a share of the counted pixels, labelled with
      their ends in percent; equal areas stay together; images without a craft are `no craft`.
    - `background`: the kind, alphabetically; images of unknown kind are in none.
    - `panel`: true panel area as a share of the true body's: `no panel`; `under 5 %` (the share
      that the challenge's rule wants: not counted there); `5-20 %`; `20-50 %`; `50 % and more`
      (also a panel without body). Images without a craft are `no craft`.

    Raises:
        ValueError: `by` is none of them.
    """
    if by == "satellite":
        return _by_name(counts.satellites, satellite_order({*counts.satellites.tolist()}))
    if by == "background":
        return _by_name(counts.backgrounds, sorted({*counts.backgrounds.tolist()}))
    if by == "size":
        return _by_size(counts)
    if by == "panel":
        return _by_panel(counts, rule)
    raise ValueError(f"no grouping {by!r}: there are {', '.join(GROUPINGS)}")


def _by_name(names: np.ndarray, order: Sequence[str]) -> list[Group]:
    return [Group(name, np.flatnonzero(names == name)) for name in order if name]


def _groups(labels: Sequence[str], place: np.ndarray) -> list[Group]:
    found = [Group(label, np.flatnonzero(place == k)) for k, label in enumerate(labels)]
    return [one for one in found if len(one.which)]


def _by_size(counts: ImageCounts) -> list[Group]:
    area = counts.true_area
    craft = area[:, 1:].sum(1)
    share = craft / np.maximum(area.sum(1), 1)
    there = craft > 0
    if not there.any():
        return _groups(["no craft"], np.zeros(len(counts), np.int64))
    ends = np.quantile(share[there], [0.2, 0.4, 0.6, 0.8])
    place = np.where(there, np.searchsorted(ends, share, side="left"), 5)
    labels = []
    for k in range(5):
        values = share[place == k]
        span = f" ({values.min():.2%} to {values.max():.2%})" if len(values) else ""
        labels.append(f"Q{k + 1}{span}".replace("%", " %"))
    return _groups([*labels, "no craft"], place)


def _by_panel(counts: ImageCounts, rule: ChallengeRule) -> list[Group]:
    _, body, panel = counts.true_area.T
    least = rule.panel_share
    ends = [least, *(end for end in _PANEL_ENDS if end > least)]
    labels = ["no craft", "no panel", f"under {least:.0%}"]
    labels += [f"{low * 100:.0f}-{high:.0%}" for low, high in itertools.pairwise(ends)]
    labels.append(f"{ends[-1]:.0%} and more")
    share = panel / np.maximum(body, 1)
    level = np.searchsorted(ends[1:], share, side="right")
    place = np.where(panel_counts(counts.confusion, least), 3 + level, 2)
    place = np.where((panel > 0) & (body == 0), len(labels) - 1, place)
    place = np.where(panel == 0, np.where(body == 0, 0, 1), place)
    return _groups([label.replace("%", " %") for label in labels], place)


def group_scores(
    counts: ImageCounts,
    by: str,
    rule: ChallengeRule = BELIEVED,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[GroupScores]:
    """The scores of each group of images, with intervals over its images.

    Args:
        counts: Of a split.
        by: One of `GROUPINGS`.
        rule: The challenge's score.
        resamples: For the intervals; 0 leaves them out.
        seed: Of the draws.

    Returns:
        In the order of `group`; empty where nothing is known (no satellite, no background).
    """
    found = []
    for one in group(counts, by, rule):
        part = counts.take(one.which)
        scored = metrics_of(part, rule), intervals(part, rule, resamples, seed)
        found.append(GroupScores(by, one.label, len(part), *scored))
    return found


_SHOWN = {
    "spark/score": "spark/score",
    "spark/body": "body",
    "spark/panel": "panel",
    "IoU/body": "IoU body",
    "IoU/panel": "IoU panel",
    "boundary_IoU/craft": "boundary",
}
_TITLES = {
    "satellite": "satellite",
    "size": "craft's area",
    "background": "background",
    "panel": "panel to body",
}


def group_lines(found: Sequence[GroupScores]) -> list[str]:
    """Groups of one kind as a table of text, in percent; without groups no line.

    Where no image's panel counts, `-` stands for the challenge's score and its panel.
    """
    if not found:
        return []
    keys = [key for key in _SHOWN if key in found[0].metrics]
    heads = [_SHOWN[key] for key in keys]
    rows = [[_TITLES[found[0].by], "images", *heads[:1], "95 %", *heads[1:]]]
    for one in found:
        unknown = {"spark/score", "spark/panel"} if not one.metrics["spark/panel_images"] else set()
        cells = ["-" if key in unknown else percent(one.metrics[key]) for key in keys]
        ends = None if unknown else one.intervals.get("spark/score")
        cells.insert(1, f"{percent(ends[0])}-{percent(ends[1])}" if ends else "-")
        rows.append([one.label, str(one.images), *cells])
    return grid(rows)


def read_backgrounds(root: str | Path) -> dict[str, str]:
    """The kind of background by sample id, where the data tells.

    Args:
        root: A data root. Its file `backgrounds.csv`, if there is one, has the columns `id`
            (`Soho/val/image_00001`) and `background` (any word).

    Raises:
        UserError: The file has other columns or cannot be read.
    """
    path = Path(root) / BACKGROUNDS_FILE
    if not path.is_file():
        return {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}): mend or remove it") from error
    if rows and not {"id", "background"} <= set(rows[0]):
        raise UserError(f"{path}: the columns must be id and background")
    return {row["id"]: row["background"] or "" for row in rows}
