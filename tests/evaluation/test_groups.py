"""Groups of images: by the truth alone, every image in its place."""

import numpy as np
import pytest

from spark_seg.errors import UserError
from spark_seg.evaluation.challenge import ChallengeRule
from spark_seg.evaluation.groups import (
    GROUPINGS,
    group,
    group_lines,
    group_scores,
    read_backgrounds,
)
from spark_seg.evaluation.store import ImageCounts
from spark_seg.evaluation.table import metrics_of


def counts_of(areas, satellites=None, backgrounds=None):
    """Images of 1000 pixels with these true (body, panel) areas, half of each found."""
    rows = []
    for index, (body, panel) in enumerate(areas):
        matrix = np.zeros((3, 3), int)
        matrix[0, 0] = 1000 - body - panel
        matrix[1] = body - body // 2, body // 2, 0
        matrix[2] = panel - panel // 2, 0, panel // 2
        kind = backgrounds[index] if backgrounds else ""
        name = satellites[index] if satellites else ""
        rows.append((f"{index:03d}", name, {"confusion": matrix, "background": kind}))
    return ImageCounts.collect(rows)


def places(groups):
    return {one.label: one.which.tolist() for one in groups}


def test_by_satellite_in_class_order():
    counts = counts_of([(10, 1)] * 5, ["Soho", "Cheops", "", "XMM Newton", "Cheops"])
    found = group(counts, "satellite")
    assert list(places(found)) == ["Cheops", "Soho", "XMM Newton"]
    assert places(found)["Cheops"] == [1, 4]


def test_by_background_where_known():
    counts = counts_of([(10, 1)] * 3, backgrounds=["stars", "", "earth"])
    assert places(group(counts, "background")) == {"earth": [2], "stars": [0]}
    assert group(counts_of([(10, 1)]), "background") == []


def test_by_size_in_fifths():
    counts = counts_of([(10 * k, k) for k in range(1, 11)] + [(0, 0)])
    found = group(counts, "size")
    assert [one.which.tolist() for one in found] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10]]
    assert found[0].label == "Q1 (1.10 % to 2.20 %)"
    assert found[-1].label == "no craft"


def test_equal_sizes_stay_together():
    found = group(counts_of([(50, 0)] * 7 + [(90, 0)]), "size")
    assert sorted(np.concatenate([one.which for one in found]).tolist()) == list(range(8))
    assert found[0].which.tolist() == list(range(7))


def test_by_panel_share_with_the_challenges_limit():
    areas = [(0, 0), (100, 0), (100, 4), (100, 5), (100, 19), (100, 20), (100, 50), (0, 9)]
    assert places(group(counts_of(areas), "panel")) == {
        "no craft": [0],
        "no panel": [1],
        "under 5 %": [2],
        "5-20 %": [3, 4],
        "20-50 %": [5],
        "50 % and more": [6, 7],
    }
    wide = places(group(counts_of(areas), "panel", ChallengeRule(panel_share=0.3)))
    assert wide["under 30 %"] == [2, 3, 4, 5]
    assert wide["50 % and more"] == [6, 7]
    assert places(group(counts_of(areas), "panel", ChallengeRule(panel_share=0.6)))[
        "60 % and more"
    ] == [7]


def test_an_unknown_grouping():
    with pytest.raises(ValueError, match="no grouping 'colour'"):
        group(counts_of([(1, 1)]), "colour")


@pytest.mark.parametrize("by", GROUPINGS)
def test_groups_do_not_depend_on_the_prediction_nor_overlap(by):
    rng = np.random.default_rng(0)
    counts = counts_of(
        rng.integers(0, 300, (40, 2)).tolist(), ["Soho", "Cheops"] * 20, ["a", "b"] * 20
    )
    turned = ImageCounts(
        counts.ids, counts.satellites, counts.confusion[..., ::-1], backgrounds=counts.backgrounds
    )
    assert places(group(counts, by)) == places(group(turned, by))
    every = np.concatenate([one.which for one in group(counts, by)])
    assert sorted(every.tolist()) == list(range(40))


def test_scores_of_a_group_are_those_of_its_images():
    counts = counts_of([(10, 1), (200, 50), (90, 3)], ["Soho", "Cheops", "Soho"])
    found = group_scores(counts, "satellite", resamples=20)
    assert [(one.label, one.images) for one in found] == [("Cheops", 1), ("Soho", 2)]
    assert found[1].metrics == metrics_of(counts.take(np.array([0, 2])))
    low, high = found[1].intervals["mIoU"]
    assert low <= found[1].metrics["mIoU"] <= high
    lines = group_lines(found)
    assert lines[0].startswith("satellite")
    assert len(lines) == 4
    assert group_lines([]) == []
    assert " - " in group_lines(group_scores(counts, "satellite", resamples=0))[2]
    bare = group_lines(group_scores(counts_of([(10, 0)]), "panel", resamples=9))[2].split()
    assert bare[:6] == ["no", "panel", "1", "-", "-", "10.00"]


def test_backgrounds_of_a_tree(tmp_path):
    assert read_backgrounds(tmp_path) == {}
    path = tmp_path / "backgrounds.csv"
    path.write_text("id,background\nXMM Newton/val/image_00001,limb\nSoho/val/image_00001,\n")
    assert read_backgrounds(tmp_path) == {
        "XMM Newton/val/image_00001": "limb",
        "Soho/val/image_00001": "",
    }
    path.write_text("name,kind\na,b\n")
    with pytest.raises(UserError, match=r"backgrounds\.csv: the columns must be id and background"):
        read_backgrounds(tmp_path)
