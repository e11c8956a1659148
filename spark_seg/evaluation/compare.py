"""Is run B better than run A? A paired bootstrap over the images that both have seen.

Both runs are scored on the same resampled images, so that what makes an image hard cancels out:
the interval of the difference is far narrower than those of the two scores.

A recipe's trainings differ by their seed, often by more than two recipes do. So each side may be several runs, one for
each seed: its score is their mean, and the interval then holds what the choice of seeds does, too: to each resampling's
difference over the images comes a draw of Student's t for that of the seeds, with one variance for both sides.
"""

from collections.abc import Sequence
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
    """One score of two runs, or of two recipes with several runs each.

    Attributes:
        a, b: The score of each on the shared images; of several runs their mean.
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
    """Two runs, or two recipes with several runs each.

    Attributes:
        images: How many images all runs have.
        only_a, only_b: Ids that runs of one side alone have, or not all of them; they are left out.
        rows: By flat key, those scores that all have.
        level: Of the intervals.
        runs: How many runs each side has.
    """

    images: int
    only_a: list[str]
    only_b: list[str]
    rows: dict[str, Difference]
    level: float
    runs: tuple[int, int] = (1, 1)


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


def rule_of_all(*paths: str | Path) -> ChallengeRule:
    """The rule by which all runs were scored; the believed one where none kept a record.

    Raises:
        UserError: They were scored by different rules.
    """
    known = [(rule, p) for p in paths if (rule := saved_rule(counts_file(p).parent)) is not None]
    for rule, path in known:
        if rule != known[0][0]:
            raise UserError(
                f"{known[0][1]} and {path} were scored by different challenge rules: choose one by --thresholds, "
                "--panel-share and --empty-union"
            )
    return known[0][0] if known else BELIEVED


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
    a: ImageCounts | Sequence[ImageCounts],
    b: ImageCounts | Sequence[ImageCounts],
    rule: ChallengeRule = BELIEVED,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Comparison:
    """Compares two runs, or two recipes by several runs each, on the images that all have.

    Args:
        a, b: Their counts.
        rule: The challenge's score.
        resamples: At least 1.
        seed: Of the draws, the same for all runs.
        level: Of the intervals.

    Raises:
        UserError: See `pair`; counted with different options; a side without a run.
    """
    sides = [[side] if isinstance(side, ImageCounts) else list(side) for side in (a, b)]
    runs = [*sides[0], *sides[1]]
    if not all(sides):
        raise UserError("each side of a comparison needs a run")
    if any(run.options != runs[0].options for run in runs):
        raise UserError("the runs were counted with different options: evaluate one of them again")
    if resamples < 1:
        raise UserError(f"resamples={resamples}: give a number from 1 up")
    common = runs[0]
    for run in runs[1:]:
        common = pair(common, run)[0]
    points, drawn = zip(
        *(_scored(pair(run, common)[0], rule, resamples, seed) for run in runs), strict=True
    )
    first = len(sides[0])
    parts = slice(None, first), slice(first, None)
    noise = _seed_noise(len(runs) - 2, resamples, seed)
    rows = {}
    for key in points[0]:
        if all(key in point for point in points):
            sign = -1 if key.split("/")[0] in LOWER_IS_BETTER else 1
            a_points, b_points = ([float(p[key]) for p in points[part]] for part in parts)
            a_drawn, b_drawn = (np.mean([d[key] for d in drawn[part]], axis=0) for part in parts)
            values = b_drawn - a_drawn + noise * standard_error(a_points, b_points)
            means = float(np.mean(a_points)), float(np.mean(b_points))
            rows[key] = _difference(*means, values, sign, level)
    shared = set(common.ids.tolist())
    only_a, only_b = (
        sorted({i for run in side for i in run.ids.tolist()} - shared) for side in sides
    )
    return Comparison(len(common), only_a, only_b, rows, level, (first, len(sides[1])))


def _scored(
    counts: ImageCounts, rule: ChallengeRule, resamples: int, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    sums = Sums(counts, rule)
    return sums.scores(sums.total()), resampled(sums, resamples, seed)


def standard_error(a: Sequence[float], b: Sequence[float]) -> float:
    """Of the difference of two means over seeds, their variance taken as one: Student's, with n + m - 2 degrees."""
    n, m = len(a), len(b)
    if n + m <= 2:
        return 0.0
    pooled = (n * np.var(a) + m * np.var(b)) / (n + m - 2)
    return float(np.sqrt(pooled * (1 / n + 1 / m)))


def _seed_noise(degrees: int, resamples: int, seed: int) -> np.ndarray:
    """Student's t for each resampling, float64 [resamples]; zeros where no side has two runs."""
    if degrees < 1:
        return np.zeros(resamples)
    return np.random.default_rng([seed, 1]).standard_t(degrees, resamples)


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
