"""One frame's counts: the crop changes nothing, tensors give what arrays give, errors are told."""

import numpy as np
import pytest
import torch
from hard_masks import adversarial, blobs
from sklearn.metrics import confusion_matrix

from spark_seg.errors import UserError
from spark_seg.evaluation.boundary import NEIGHBOUR_BITS, PART_BITS, boundary_counts
from spark_seg.evaluation.boundary import boundary_histograms as histograms
from spark_seg.evaluation.boxes import box_area, box_overlap, mask_box
from spark_seg.evaluation.frame import (
    CountOptions,
    count_frame,
    count_frame_on_device,
    from_device,
)

OPTIONS = CountOptions(boundary_px=(1, 3), band_share=0.05)
CASES = [pytest.param(*c[1:], id=c[0]) for c in adversarial()]
CASES += [
    pytest.param(*blobs(np.random.default_rng(seed), ignored=seed % 2 == 1), id=f"random {seed}")
    for seed in range(8)
]


def slow_box(labels, truth):
    rows, cols = np.nonzero((labels > 0) & (truth != 255))
    return [cols.min(), rows.min(), cols.max(), rows.max()] if len(rows) else [-1] * 4


@pytest.mark.parametrize(("pred", "truth"), CASES)
def test_equals_the_whole_frame_and_sklearn(pred, truth):
    found = count_frame(pred, truth, OPTIONS)
    assert all(array.dtype == np.int64 for array in found.values())
    keep = truth != 255
    theirs = confusion_matrix(truth[keep], pred[keep], labels=[0, 1, 2])
    np.testing.assert_array_equal(found["confusion"], theirs)
    assert found["size"].tolist() == list(truth.shape)
    assert found["boxes"].tolist() == [slow_box(truth, truth), slow_box(pred, truth)]
    pair = np.where(keep, truth.astype(int) * 4 + pred, 255).astype(np.uint8)
    band = max(1, round(0.05 * float(np.hypot(*truth.shape))))
    whole = boundary_counts(
        np.stack(histograms(PART_BITS[pair], NEIGHBOUR_BITS[pair], OPTIONS.boundary_px, band))
    )
    for name, array in zip(("pixels", "matched", "overlap"), whole, strict=True):
        np.testing.assert_array_equal(found[f"boundary_{name}"], array)


@pytest.mark.parametrize(("pred", "truth"), CASES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_tensors_give_what_arrays_give(pred, truth, dtype):
    tensors = (torch.from_numpy(a).to(dtype) for a in (pred, truth))
    there = from_device(count_frame_on_device(*tensors, OPTIONS).numpy(), OPTIONS)
    here = count_frame(pred, truth, OPTIONS)
    assert there.keys() == here.keys()
    for name, array in here.items():
        assert there[name].dtype == np.int64
        np.testing.assert_array_equal(there[name], array, err_msg=name)


@pytest.mark.parametrize("ring", [1, 3, 12, 40])
def test_a_craft_whose_rim_is_ignored(ring):
    """The background beyond the rim counts as in the whole frame, if it is near enough for the band."""
    truth = np.full((200, 220), 0, np.uint8)
    truth[60 - ring : 140 + ring, 70 - ring : 150 + ring] = 255
    truth[60:140, 70:150] = 1
    pred = np.roll(np.where(truth == 255, 0, truth), 4, 1).astype(np.uint8)
    test_equals_the_whole_frame_and_sklearn(pred, truth)
    test_tensors_give_what_arrays_give(pred, truth, torch.uint8)
    right = np.where(truth == 255, 0, truth).astype(np.uint8)
    union = count_frame(right, truth, OPTIONS)["boundary_overlap"][2, 1]
    assert (union > 0) == (ring < 15), "the band is 15 px wide"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
def test_a_gpu_counts_what_the_cpu_counts():
    pred, truth = blobs(np.random.default_rng(0), (256, 300), ignored=True)
    vector = count_frame_on_device(torch.from_numpy(pred).cuda(), torch.from_numpy(truth).cuda())
    assert vector.is_cuda
    there = from_device(vector.cpu().numpy())
    for name, array in count_frame(pred, truth).items():
        np.testing.assert_array_equal(there[name], array)


def test_wrong_labels_are_told():
    good, bad = np.zeros((4, 5), np.uint8), np.full((4, 5), 3, np.uint8)
    with pytest.raises(UserError, match="prediction holds class 3"):
        count_frame(bad, good)
    with pytest.raises(UserError, match="truth holds class 3"):
        count_frame(good, bad)
    with pytest.raises(UserError, match="size"):
        count_frame(good, good.T)
    with pytest.raises(UserError, match="size"):
        count_frame_on_device(torch.from_numpy(good), torch.from_numpy(good.T))
    for pred, truth in ((bad, good), (good, bad), (good.astype(np.int64) - 1, good)):
        vector = count_frame_on_device(torch.from_numpy(pred), torch.from_numpy(truth))
        with pytest.raises(UserError, match=r"20 pixels .* no class"):
            from_device(vector.numpy())


@pytest.mark.parametrize(
    "wrong",
    [
        {"boundary_px": (0, 1)},
        {"boundary_px": (2, 1)},
        {"boundary_px": (1.5,)},
        {"band_share": 0.0},
        {"bins": 0},
    ],
)
def test_options_that_make_no_sense(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        CountOptions(**wrong)


def test_no_tolerance_is_an_option_too():
    pred, truth = blobs(np.random.default_rng(1))
    found = count_frame(pred, truth, CountOptions(boundary_px=()))
    assert found["boundary_matched"].shape == (3, 0, 2)
    assert found["boundary_overlap"].any()


def test_boxes_by_hand():
    craft = np.zeros((10, 12), np.uint8)
    craft[2:5, 3:9] = 1
    assert mask_box(craft).tolist() == [3, 2, 8, 4]
    assert box_area(mask_box(craft)) == 18
    none = [-1, -1, -1, -1]
    pairs = np.array(
        [
            [[0, 0, 3, 3], [2, 2, 5, 5]],
            [[0, 0, 0, 0], [0, 0, 0, 0]],
            [[0, 0, 3, 3], [4, 0, 7, 3]],
            [none, [0, 0, 1, 1]],
            [none, none],
        ]
    )
    shared, union = box_overlap(pairs)
    assert shared.tolist() == [4, 1, 0, 0, 0]
    assert union.tolist() == [28, 1, 32, 4, 0]
