"""Counts of a split: exact, whatever the order, the parts and the way to disk and back."""

import numpy as np
import pytest
from hard_masks import blobs

from spark_seg.errors import UserError
from spark_seg.evaluation.frame import DEFAULT_OPTIONS, CountOptions, count_frame
from spark_seg.evaluation.store import ImageCounts
from spark_seg.evaluation.table import metrics_of


def rows(count=7, options=DEFAULT_OPTIONS, shift=0):
    made = []
    for index in range(count):
        rng = np.random.default_rng(index)
        counts = count_frame(*blobs(rng), options)
        counts["calibration"] = rng.integers(1, 99, (3, options.bins, 3))
        counts["nll"] = rng.integers(0, 2**40, 3) + shift
        made.append((f"Soho/val/image_{index:05d}", "Soho", counts))
    return made


def equal(one, other):
    for name in ImageCounts.names():
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        assert getattr(one, name).dtype.kind == getattr(other, name).dtype.kind
    assert one.options == other.options


def test_all_is_int64():
    counts = ImageCounts.collect(rows())
    for name in ImageCounts.names():
        assert getattr(counts, name).dtype == np.int64 or name in (
            "ids",
            "satellites",
            "backgrounds",
        )


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_any_number_of_processes_gives_the_same(parts):
    whole = ImageCounts.collect(rows())
    shares = [ImageCounts.collect(rows()[k::parts][::-1]) for k in range(parts)]
    merged = ImageCounts.merge(shares[::-1])
    equal(merged, whole)
    assert metrics_of(merged) == metrics_of(whole)


def test_an_image_that_two_parts_hold_counts_once():
    """A distributed sampler repeats the first images to fill the last batch."""
    whole = ImageCounts.collect(rows())
    equal(ImageCounts.merge([whole, ImageCounts.collect(rows(3))]), whole)


def test_parts_that_do_not_fit():
    one = ImageCounts.collect(rows())
    with pytest.raises(UserError, match=r"image_00000 was counted twice with different nll"):
        ImageCounts.merge([one, ImageCounts.collect(rows(shift=1))])
    options = CountOptions(bins=10)
    with pytest.raises(UserError, match="different options"):
        ImageCounts.merge([one, ImageCounts.collect(rows(options=options), options)])
    assert len(ImageCounts.merge([])) == 0


def test_back_from_disk(tmp_path):
    options = CountOptions(boundary_px=(2, 5), band_share=0.1, bins=7)
    counts = ImageCounts.collect(rows(options=options), options)
    counts = counts.with_backgrounds({"Soho/val/image_00003": "earth"})
    counts.save(tmp_path / "counts.npz")
    back = ImageCounts.load(tmp_path / "counts.npz")
    equal(back, counts)
    assert back.backgrounds.tolist() == ["", "", "", "earth", "", "", ""]
    assert metrics_of(back) == metrics_of(counts)


@pytest.mark.parametrize("damage", ["float", "object", "lacking", "short"])
def test_files_that_are_not_ours(tmp_path, damage):
    path = tmp_path / "counts.npz"
    ImageCounts.collect(rows()).save(path)
    arrays = dict(np.load(path))
    if damage == "float":
        arrays["confusion"] = arrays["confusion"].astype(float)
    elif damage == "object":
        arrays["ids"] = arrays["ids"].astype(object)
    elif damage == "lacking":
        del arrays["boundary_matched"]
    else:
        arrays["boxes"] = arrays["boxes"][:-1]
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=r"counts\.npz is no file of counts") as error:
        ImageCounts.load(path)
    assert "\n" not in str(error.value)


def test_bare_confusions_are_blank_elsewhere():
    counts = ImageCounts.collect([("b", "", np.eye(3)), ("a", "", np.ones((3, 3)))])
    assert counts.ids.tolist() == ["a", "b"]
    assert not counts.detailed
    assert not counts.calibrated
    assert (counts.boxes == -1).all()
    part = ImageCounts.collect(rows()).take(np.array([4, 1]))
    assert part.ids.tolist() == ["Soho/val/image_00004", "Soho/val/image_00001"]
    assert part.detailed
    assert part.calibrated
