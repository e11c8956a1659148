"""Every score as a function of sums over images.

Whatever evaluation reports is a ratio of sums: of counts (pooled scores), or of an image's own
values and of how many images count (per-image means). So one function serves the whole split, a
group of images and every resampling of the bootstrap, which only weighs the images anew.
"""

from collections.abc import Mapping

import numpy as np

from spark_seg.evaluation.boundary import PARTS
from spark_seg.evaluation.boxes import box_overlap
from spark_seg.evaluation.calibration import REGIONS, UNIT, expected_error
from spark_seg.evaluation.challenge import BELIEVED, ChallengeRule, panel_counts, part_credit
from spark_seg.evaluation.frame import CountOptions
from spark_seg.evaluation.scores import counts_where, ratio, score_arrays
from spark_seg.evaluation.store import ImageCounts

Values = dict[str, tuple[np.ndarray, np.ndarray]]
_BODY, _PANEL = 1, 2
# Pooled, from these arrays of ImageCounts.
_POOLED = ("confusion",)
_BOUNDARY = ("boundary_pixels", "boundary_matched", "boundary_overlap")
_CALIBRATION = ("calibration", "nll")


def boundary_scores(
    pixels: np.ndarray, matched: np.ndarray, overlap: np.ndarray, options: CountOptions
) -> dict[str, np.ndarray]:
    """Boundary IoU and boundary F of counts of one image or of their sums.

    Args:
        pixels, matched, overlap: [..., 3, 2], [..., 3, T, 2], [..., 3, 2]; see `store.ImageCounts`.
        options: Names the tolerances.

    Returns:
        float64 [...] under `boundary_IoU/<part>` and `boundary_F<t>px/<part>` for body, panel and
        craft. A part with a boundary on one side only has 0.0; with none on either side too, and
        counts in no mean (see `boundary_counted`).
    """
    result = {}
    for part, name in enumerate(PARTS):
        band = overlap[..., part, :]
        result[f"boundary_IoU/{name}"] = ratio(band[..., 0], band[..., 1])
        for index, radius in enumerate(options.boundary_px):
            near = ratio(matched[..., part, index, :], pixels[..., part, :])
            recall, precision = near[..., 0], near[..., 1]
            f = ratio(2 * precision * recall, precision + recall)
            result[f"boundary_F{radius}px/{name}"] = f
    return result


def boundary_counted(
    pixels: np.ndarray, overlap: np.ndarray, options: CountOptions
) -> dict[str, np.ndarray]:
    """In which images each of `boundary_scores` counts: a part with a boundary, true or predicted.

    A part that fills the frame has no boundary and is left out, as an absent one is.
    """
    result = {}
    for part, name in enumerate(PARTS):
        result[f"boundary_IoU/{name}"] = overlap[..., part, 1] > 0
        for radius in options.boundary_px:
            result[f"boundary_F{radius}px/{name}"] = pixels[..., part, :].sum(-1) > 0
    return result


def image_values(counts: ImageCounts, rule: ChallengeRule = BELIEVED) -> Values:
    """Every score of every single image.

    Args:
        counts: Of the images.
        rule: The challenge's score.

    Returns:
        Flat keys -> (float64 [N], bool [N]): the value, and whether the image counts for it; where
        it does not, the value is 0.0 and means nothing. Keys: those of `scores.scores`;
        `spark/score` (half body, half panel; the body alone where the panel does not count),
        `spark/body`, `spark/panel`; where boundaries were counted those of `boundary_scores` and
        `box_IoU`; where logits were seen `ECE` and `NLL`, also `/foreground` and `/predicted`.
    """
    values, counted = score_arrays(counts.confusion), counts_where(counts.confusion)
    result = {key: (values[key], counted[key]) for key in values}
    credit = part_credit(counts.confusion, rule.thresholds, rule.empty_union)
    panel = panel_counts(counts.confusion, rule.panel_share)
    everywhere = np.ones(len(counts), bool)
    both = np.where(panel, (credit[:, _BODY] + credit[:, _PANEL]) / 2, credit[:, _BODY])
    result["spark/score"] = both, everywhere
    result["spark/body"] = credit[:, _BODY], everywhere
    result["spark/panel"] = np.where(panel, credit[:, _PANEL], 0.0), panel
    if counts.detailed:
        arrays = (counts.boundary_pixels, counts.boundary_matched, counts.boundary_overlap)
        values = boundary_scores(*arrays, counts.options)
        counted = boundary_counted(arrays[0], arrays[2], counts.options)
        result |= {key: (values[key], counted[key]) for key in values}
        shared, union = box_overlap(counts.boxes)
        result["box_IoU"] = ratio(shared, union), union > 0
    if counts.calibrated:
        pixels = counts.calibration[..., 0].sum(-1)
        for key, array in calibration_scores(counts.calibration, counts.nll).items():
            region = REGIONS.index(key.split("/")[1] if "/" in key else "all")
            result[key] = array, pixels[:, region] > 0
    return result


def calibration_scores(calibration: np.ndarray, nll: np.ndarray) -> dict[str, np.ndarray]:
    """ECE (0..1) and NLL (nats per pixel) of sums [..., 3, bins, 3] and [..., 3], per region."""
    error = expected_error(calibration)
    pixels = np.asarray(calibration, np.float64)[..., 0].sum(-1)
    nats = ratio(np.asarray(nll, np.float64) / UNIT, pixels)
    result = {}
    for index, region in enumerate(REGIONS):
        suffix = "" if region == "all" else f"/{region}"
        result[f"ECE{suffix}"] = error[..., index]
        result[f"NLL{suffix}"] = nats[..., index]
    return result


class Sums:
    """What the scores of a split are made of, one row per image.

    Args:
        counts: Of the images.
        rule: The challenge's score.
    """

    def __init__(self, counts: ImageCounts, rule: ChallengeRule = BELIEVED) -> None:
        self.options = counts.options
        names = [*_POOLED]
        names += _BOUNDARY if counts.detailed else ()
        names += _CALIBRATION if counts.calibrated else ()
        self.rows: dict[str, np.ndarray] = {name: getattr(counts, name) for name in names}
        for key, (value, counted) in image_values(counts, rule).items():
            if key.split("/")[0] not in ("ECE", "NLL"):  # these are pooled only
                self.rows[f"mean {key}"] = np.stack([np.where(counted, value, 0.0), counted], -1)

    def __len__(self) -> int:
        return len(self.rows["confusion"])

    def total(self, which: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
        """Sums over all images, or over some (indices or bool [N]); counts stay integers."""
        return {name: rows[which].sum(0) for name, rows in self.rows.items()}

    def flat(self) -> np.ndarray:
        """All of it as float64 [N, K], for `unflat`."""
        flat = [rows.reshape(len(self), -1) for rows in self.rows.values()]
        return np.concatenate(flat, 1).astype(np.float64)

    def unflat(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Sums [..., K] of rows of `flat`, by name again."""
        found, start = {}, 0
        for name, rows in self.rows.items():
            size = int(np.prod(rows.shape[1:]))
            found[name] = sums[..., start : start + size].reshape(*sums.shape[:-1], *rows.shape[1:])
            start += size
        return found

    def scores(self, totals: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every score of sums as `total` or `unflat` returns them: float64 [...] per flat key.

        Keys: pooled scores under their plain names, means over images under `per_image/`; the
        challenge's score and `box_IoU`, which are means over images by definition, without it.
        """
        result = score_arrays(totals["confusion"])
        means = {
            name.removeprefix("mean "): ratio(pair[..., 0], pair[..., 1])
            for name, pair in totals.items()
            if name.startswith("mean ")
        }
        body, panel = means.pop("spark/body"), means.pop("spark/panel")
        del means["spark/score"]  # half of each part's own mean, not the mean of the images' scores
        result["spark/score"] = 0.5 * body + 0.5 * panel
        result["spark/body"], result["spark/panel"] = body, panel
        if "boundary_pixels" in totals:
            pixels, matched, overlap = (totals[name] for name in _BOUNDARY)
            result |= boundary_scores(pixels, matched, overlap, self.options)
            result["box_IoU"] = means.pop("box_IoU")
        if "calibration" in totals:
            result |= calibration_scores(totals["calibration"], totals["nll"])
        result |= {f"per_image/{key}": value for key, value in means.items()}
        return result

    def counted(self, totals: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Where the scores of the same sums count at all: bool [...] under the keys of `scores`.

        A mean over images counts where any image does; pooled class scores, boundaries and
        calibration where there is a pixel of the kind. `spark/score` counts where both parts do;
        where the panel counts in no image of the whole split, it is half the body by definition
        and counts everywhere.
        """
        result = counts_where(totals["confusion"])
        means = {
            name.removeprefix("mean "): pair[..., 1] > 0
            for name, pair in totals.items()
            if name.startswith("mean ")
        }
        body, panel = means.pop("spark/body"), means.pop("spark/panel")
        del means["spark/score"]
        anywhere = bool(self.rows["mean spark/panel"][..., 1].any())
        result["spark/score"] = body & panel if anywhere else body
        result["spark/body"], result["spark/panel"] = body, panel
        if "boundary_pixels" in totals:
            pixels, _, overlap = (totals[name] for name in _BOUNDARY)
            result |= boundary_counted(pixels, overlap, self.options)
            result["box_IoU"] = means.pop("box_IoU")
        if "calibration" in totals:
            pixels = totals["calibration"][..., 0].sum(-1) > 0
            for index, region in enumerate(REGIONS):
                suffix = "" if region == "all" else f"/{region}"
                result[f"ECE{suffix}"] = result[f"NLL{suffix}"] = pixels[..., index]
        return result | {f"per_image/{key}": where for key, where in means.items()}
