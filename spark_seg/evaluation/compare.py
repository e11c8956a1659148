"""Is run B better than run A? A paired bootstrap over the images that both have seen.

Both runs are scored on the same resampled images, so that what makes an image hard cancels out:
the interval of the difference is far narrower than those of the two scores.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spark_seg.errors import UserError, UserFileNotFoundError
from spark_seg.evaluation.bootstrap import LEVEL, RESAMPLES, interval, resampled
from spark_seg.evaluation.challenge import BELIEVED, ChallengeRule
from spark_seg.evaluation.record import saved_rule
from spark_seg.evaluation.store import ImageCounts
from spark_seg.evaluation.sums import Sums

LOWER_IS_BETTER = ("ECE", "NLL")


@dataclass(frozen=True)
class Difference:
    """One score of two runs.

    Attributes:
        a, b: The score of each on the shared images.
        difference: b - a.
        low, high: The interval of the difference, over the resamplings in which the score counts
            for both; where there is none the difference itself, p 1 and the verdict `open`.
        share_worse: Share of those resamplings in which B is not better than A; 1 where none is.
        p: Two-sided: twice the smaller of the shares in which B is not better and not worse, with
            one resampling added to each so that it is never 0; 1 where nothing differs.
        verdict: `better` or `worse` where the interval leaves 0 out, else `open`.
    """

    a: float
    b: float
    difference: float
    low: float
    high: float
    share_worse: float
    p: float
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """Two runs.

    Attributes:
        images: How many images both have.
        only_a, only_b: Ids that one of them has; they are left out.
        rows: By flat key, those scores that both have.
        level: Of the intervals.
    """

    images: int
    only_a: list[str]
    only_b: list[str]
    rows: dict[str, Difference]
    level: float


def counts_file(path: str | Path) -> Path:
    """The counts file of a run; see `load_counts`.

    Raises:
        UserError: A folder that holds none, or holds several evaluations.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    if (path / "counts.npz").is_file():
        return path / "counts.npz"
    inside = sorted(path.glob("*/counts.npz"))
    if len(inside) == 1:
        return inside[0]
    names = ", ".join(str(one.parent) for one in inside[:3])
    hint = f"; there are {names}" if inside else ": run tools/test.py with --out first"
    raise UserFileNotFoundError(f"no counts.npz in {path}{hint}")


def load_counts(path: str | Path) -> ImageCounts:
    """The counts of a run.

    Args:
        path: A counts file, the folder of an evaluation that holds `counts.npz`, or a work folder with one of those.

    Raises:
        UserError: Nothing there, or something else.
    """
    return ImageCounts.load(counts_file(path))


def rule_of_both(a: str | Path, b: str | Path) -> ChallengeRule:
    """The rule by which both runs were scored; the believed one where neither kept a record.

    Raises:
        UserError: They were scored by different rules.
    """
    rules = [saved_rule(counts_file(path).parent) for path in (a, b)]
    known = [rule for rule in rules if rule is not None]
    if len(set(known)) > 1:
        raise UserError(
            f"{a} and {b} were scored by different challenge rules: choose one by --thresholds, --panel-share and "
            "--empty-union"
        )
    return known[0] if known else BELIEVED


def pair(a: ImageCounts, b: ImageCounts) -> tuple[ImageCounts, ImageCounts]:
    """The images of both, in the same order.

    Raises:
        UserError: No id is shared, an id is there twice, or the truth of an image differs.
    """
    for name, counts in (("first", a), ("second", b)):
        if len(set(counts.ids.tolist())) != len(counts):
            raise UserError(f"the {name} run has images of one id: their pairs cannot be told")
    _, in_a, in_b = np.intersect1d(a.ids, b.ids, return_indices=True)
    if not len(in_a):
        shown = [str(counts.ids[0]) if len(counts) else "no image" for counts in (a, b)]
        raise UserError(
            f"the runs share no image (first ids: {shown[0]} and {shown[1]}): "
            "evaluate both on the same split"
        )
    a, b = a.take(in_a), b.take(in_b)
    differs = (a.true_area != b.true_area).any(1)
    if a.detailed and b.detailed:
        differs |= (a.boxes[:, 0] != b.boxes[:, 0]).any(1) | (a.sizes != b.sizes).any(1)
        differs |= (a.boundary_pixels[..., 0] != b.boundary_pixels[..., 0]).any(1)
    if differs.any():
        raise UserError(
            f"the truth of {int(differs.sum())} shared images differs, first {a.ids[differs][0]}: "
            "evaluate both on the same data"
        )
    return a, b


def compare(
    a: ImageCounts,
    b: ImageCounts,
    rule: ChallengeRule = BELIEVED,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Comparison:
    """Compares two runs on the images that both have.

    Args:
        a, b: Their counts.
        rule: The challenge's score.
        resamples: At least 1.
        seed: Of the draws, the same for both runs.
        level: Of the intervals.

    Raises:
        UserError: See `pair`; counted with different options.
    """
    if a.options != b.options:
        raise UserError("the runs were counted with different options: evaluate one of them again")
    if resamples < 1:
        raise UserError(f"resamples={resamples}: give a number from 1 up")
    one, other = pair(a, b)
    scored = []
    for counts in (one, other):
        sums = Sums(counts, rule)
        point = sums.scores(sums.total())
        scored.append((point, resampled(sums, resamples, seed)))
    (a_point, a_drawn), (b_point, b_drawn) = scored
    rows = {}
    for key in a_point:
        if key in b_point:
            sign = -1 if key.split("/")[0] in LOWER_IS_BETTER else 1
            values = b_drawn[key] - a_drawn[key]
            rows[key] = _difference(float(a_point[key]), float(b_point[key]), values, sign, level)
    shared = set(one.ids.tolist())
    only_a, only_b = ([i for i in counts.ids.tolist() if i not in shared] for counts in (a, b))
    return Comparison(len(one), only_a, only_b, rows, level)


def _difference(a: float, b: float, values: np.ndarray, sign: int, level: float) -> Difference:
    values = values[~np.isnan(values)]
    if not len(values):
        return Difference(a, b, b - a, b - a, b - a, 1.0, 1.0, "open")
    low, high = interval(values, level)
    gain = sign * values
    not_better, not_worse = int((gain <= 0).sum()), int((gain >= 0).sum())
    p = min(1.0, 2 * (min(not_better, not_worse) + 1) / (len(values) + 1))
    verdict = "open"
    if low > 0 or high < 0:
        verdict = "better" if (low > 0) == (sign > 0) else "worse"
    return Difference(a, b, b - a, low, high, not_better / len(values), p, verdict)
