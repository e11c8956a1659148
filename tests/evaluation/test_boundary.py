"""Boundaries against scikit-image, SciPy's distance transforms and the published erosion."""

import cv2
import numpy as np
import pytest
import torch
from hard_masks import adversarial, blobs, parts
from scipy import ndimage
from skimage import morphology, segmentation

from spark_seg.evaluation.boundary import (
    NEIGHBOUR_BITS,
    PART_BITS,
    band_width,
    bands,
    boundary_counts,
    boundary_histograms,
    edges,
    grown,
)

RADII = (1, 2, 3)


def packed(pred, truth):
    pair = np.where(truth == 255, 255, truth.astype(int) * 4 + pred).astype(np.uint8)
    return PART_BITS[pair], NEIGHBOUR_BITS[pair]


def counted(pred, truth, band=4):
    return boundary_counts(np.stack(boundary_histograms(*packed(pred, truth), RADII, band)))


def by_skimage(pred, truth, band):
    """The same numbers from scikit-image's inner boundaries and SciPy's distances."""
    pixels, matched, overlap = (
        np.zeros((3, 2), int),
        np.zeros((3, len(RADII), 2), int),
        np.zeros((3, 2), int),
    )
    square = np.ones((2 * band + 1, 2 * band + 1), bool)
    for part, masks in enumerate(zip(parts(truth), parts(pred), strict=True)):
        rims = [segmentation.find_boundaries(m, connectivity=1, mode="inner") for m in masks]
        pixels[part] = [rim.sum() for rim in rims]
        for side in (0, 1):
            if rims[1 - side].any():
                far = ndimage.distance_transform_edt(~rims[1 - side])
                matched[part, :, side] = [(far[rims[side]] <= r).sum() for r in RADII]
        strips = [
            m
            & ~morphology.erosion(np.pad(m, band, constant_values=True), square)[
                band:-band, band:-band
            ]
            for m in masks
        ]
        overlap[part] = (strips[0] & strips[1]).sum(), (strips[0] | strips[1]).sum()
    return pixels, matched, overlap


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("band", [1, 2, 5])
def test_equals_scikit_image_on_random_masks(seed, band):
    pred, truth = blobs(np.random.default_rng(seed))
    for ours, theirs in zip(counted(pred, truth, band), by_skimage(pred, truth, band), strict=True):
        assert ours.dtype == np.int64
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "pred", "truth"), [pytest.param(*c, id=c[0]) for c in adversarial()]
)
def test_equals_scikit_image_on_hard_masks(name, pred, truth):
    for ours, theirs in zip(counted(pred, truth, 3), by_skimage(pred, truth, 3), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_band_is_that_of_the_paper_away_from_the_frames_border():
    """mask - erode(mask, 3x3, iterations=d), as the paper's code has it."""
    _, truth = blobs(np.random.default_rng(3), (80, 90))
    inner = np.zeros((160, 170), np.uint8)
    inner[40:-40, 40:-40] = truth
    for d in (1, 3, 10):
        strips = bands(*packed(inner, inner), d)
        for part, mask in enumerate(parts(inner)):
            padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
            core = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=d)[1:-1, 1:-1]
            np.testing.assert_array_equal((strips >> part) & 1, mask.astype(np.uint8) - core)


def test_the_bands_width():
    assert band_width(1024, 1024) == 29
    assert band_width(512, 512) == 14
    assert band_width(10, 10) == 1
    assert band_width(300, 400, 0.1) == 50


def test_the_frames_border_is_no_boundary():
    full = np.ones((9, 9), np.uint8)
    pixels, matched, overlap = counted(full, full)
    assert not pixels.any()
    assert not matched.any()
    assert not overlap.any()
    half = full.copy()
    half[:, 5:] = 0
    pixels, _, _ = counted(half, half)
    assert pixels.tolist() == [[9, 9], [0, 0], [9, 9]]


def test_the_edge_of_ignored_pixels_is_no_boundary():
    truth = np.ones((12, 12), np.uint8)
    pred = truth.copy()
    truth[4:8, 4:8] = 255
    pred[5, 5] = 2
    assert not any(a.any() for a in counted(pred, truth, 2))


def test_near_is_measured_between_centres():
    one, other = np.zeros((15, 15), np.uint8), np.zeros((15, 15), np.uint8)
    one[7, 7] = 1
    for offset, reached in (((0, 1), 1), ((1, 1), 2), ((0, 2), 2), ((1, 2), 3), ((0, 3), 3)):
        other[:] = 0
        other[7 + offset[0], 7 + offset[1]] = 1
        found = counted(one, other)[1][0, :, 0]
        assert found.tolist() == [int(r >= reached) for r in RADII], offset
    other[:] = 0
    other[9, 10] = 1  # sqrt(13) > 3
    assert not counted(one, other)[1].any()


@pytest.mark.parametrize("radii", [(1,), (2, 5), (1, 2, 3, 7)])
def test_discs_are_discs(radii):
    bits = np.zeros((31, 33), np.uint8)
    bits[15, 16], bits[0, 3], bits[30, 32] = 1, 2, 4
    for disc, radius in zip(grown(bits, radii), radii, strict=True):
        for bit in (1, 2, 4):
            far = ndimage.distance_transform_edt((bits & bit) == 0)
            np.testing.assert_array_equal((disc & bit) > 0, far <= radius)


@pytest.mark.parametrize("ignored", [False, True])
def test_tensors_give_what_arrays_give(ignored):
    pred, truth = blobs(np.random.default_rng(5), ignored=ignored)
    bits, neighbour = packed(pred, truth)
    arrays = np.stack(boundary_histograms(bits, neighbour, RADII, 3))
    tensors = boundary_histograms(torch.from_numpy(bits), torch.from_numpy(neighbour), RADII, 3)
    tensors = np.stack([t.numpy() for t in tensors])
    for ours, theirs in zip(boundary_counts(arrays), boundary_counts(tensors), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(
        edges(torch.from_numpy(bits), torch.from_numpy(neighbour)).numpy(), edges(bits, neighbour)
    )
