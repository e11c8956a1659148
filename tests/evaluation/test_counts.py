"""Counts: exact against a slow transcription, whatever the arrays look like."""

import statistics
import time

import cv2
import numpy as np
import pytest

from spark_seg.errors import UserError
from spark_seg.evaluation import counts
from spark_seg.evaluation.counts import (
    ImageCounts,
    confusion,
    false_negatives,
    false_positives,
    pooled,
    true_negatives,
    true_positives,
)


def slow(pred, truth):
    """The definition, one pixel at a time."""
    matrix = [[0] * 3 for _ in range(3)]
    for p, t in zip(pred.ravel().tolist(), truth.ravel().tolist(), strict=True):
        if t != 255:
            matrix[t][p] += 1
    return np.array(matrix)


def masks(rng, size, ignored=0.1, dtype=np.uint8):
    pred = rng.integers(0, 3, size).astype(dtype)
    truth = rng.integers(0, 3, size).astype(dtype)
    if np.iinfo(dtype).max >= 255:
        truth[rng.random(size) < ignored] = 255
    return pred, truth


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (31, 33), (64, 128), (5, 1000)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.int32, np.uint16])
def test_equals_the_slow_transcription(size, dtype):
    rng = np.random.default_rng(hash(size) % 1000)
    for ignored in (0.0, 0.1, 1.0):
        pred, truth = masks(rng, size, ignored, dtype)
        result = confusion(pred, truth)
        assert result.dtype == np.int64
        np.testing.assert_array_equal(result, slow(pred, truth))


@pytest.mark.parametrize("true_class", [0, 1, 2, 255])
@pytest.mark.parametrize("predicted", [0, 1, 2])
def test_one_class_everywhere(true_class, predicted):
    pred = np.full((40, 30), predicted, np.uint8)
    truth = np.full((40, 30), true_class, np.uint8)
    np.testing.assert_array_equal(confusion(pred, truth), slow(pred, truth))


def test_arrays_that_are_not_contiguous():
    rng = np.random.default_rng(1)
    pred, truth = masks(rng, (60, 80))
    for view in (
        np.s_[::2, ::3],
        np.s_[::-1, :],
        np.s_[10:20, 5:50],
        np.s_[:, ::-1],
    ):
        np.testing.assert_array_equal(
            confusion(pred[view], truth[view]), slow(pred[view], truth[view])
        )
    np.testing.assert_array_equal(confusion(pred.T, truth.T), slow(pred, truth))
    np.testing.assert_array_equal(confusion(np.asfortranarray(pred), truth), slow(pred, truth))


def test_inputs_are_not_changed():
    pred, truth = masks(np.random.default_rng(2), (20, 20))
    before = pred.copy(), truth.copy()
    confusion(pred, truth)
    np.testing.assert_array_equal(pred, before[0])
    np.testing.assert_array_equal(truth, before[1])


def test_bool_prediction_counts_as_classes_0_and_1():
    rng = np.random.default_rng(3)
    pred, truth = rng.random((17, 19)) < 0.5, rng.integers(0, 3, (17, 19))
    np.testing.assert_array_equal(confusion(pred, truth), slow(pred.astype(int), truth))


def test_empty_image():
    none = np.zeros((0, 5), np.uint8)
    np.testing.assert_array_equal(confusion(none, none), np.zeros((3, 3)))


def test_blocks_add_up(monkeypatch):
    pred, truth = masks(np.random.default_rng(4), (37, 41))
    whole = confusion(pred, truth)
    monkeypatch.setattr(counts, "_BLOCK", 100)
    np.testing.assert_array_equal(confusion(pred, truth), whole)


def test_exact_beyond_the_integers_of_float32():
    # float32 cannot hold 2**24 + 1, which is what one histogram of the whole image would return.
    truth = np.zeros((4097, 4099), np.uint8)
    truth[0, 0] = 1
    result = confusion(np.zeros_like(truth), truth)
    assert result[0, 0] == 4097 * 4099 - 1
    assert result[1, 0] == 1


def test_different_sizes_are_refused():
    with pytest.raises(UserError, match=r"\(4, 5\).*\(5, 4\)"):
        confusion(np.zeros((4, 5), np.uint8), np.zeros((5, 4), np.uint8))


@pytest.mark.parametrize("value", [3, 4, 63, 64, 254])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_a_truth_that_is_no_class_is_refused(value, dtype):
    truth = np.zeros((8, 8), dtype)
    truth[3, 3], truth[0, 0] = value, 255
    with pytest.raises(UserError, match=f"truth holds class {value}"):
        confusion(np.zeros((8, 8), np.uint8), truth)


@pytest.mark.parametrize("value", [3, 4, 255])
def test_a_prediction_that_is_no_class_is_refused(value):
    pred = np.zeros((8, 8), np.uint8)
    pred[1, 2] = value
    with pytest.raises(UserError, match=f"prediction holds class {value}"):
        confusion(pred, np.zeros((8, 8), np.uint8))


@pytest.mark.parametrize("value", [-1, 256, 257, 2**40])
def test_wide_integers_do_not_wrap(value):
    odd = np.zeros((4, 4), np.int64)
    odd[0, 0] = value
    zero = np.zeros((4, 4), np.int64)
    with pytest.raises(UserError, match=f"truth holds class {value}"):
        confusion(zero, odd)
    with pytest.raises(UserError, match=f"prediction holds class {value}"):
        confusion(odd, zero)


def test_floats_are_refused():
    with pytest.raises(TypeError, match="float32"):
        confusion(np.zeros((2, 2), np.float32), np.zeros((2, 2), np.uint8))


def test_under_a_millisecond_for_a_frame():
    """CPU time, and four times the promise, so that a busy machine passes; a slow method takes 50 ms."""
    pred, truth = masks(np.random.default_rng(5), (1024, 1024))
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        times = []
        for _ in range(21):
            start = time.thread_time()
            confusion(pred, truth)
            times.append(time.thread_time() - start)
    finally:
        cv2.setNumThreads(threads)
    assert statistics.median(times) < 4e-3


def test_positives_and_negatives_by_definition():
    stack = np.random.default_rng(6).integers(0, 50, (4, 3, 3))
    hit, extra, missed = true_positives(stack), false_positives(stack), false_negatives(stack)
    left = true_negatives(stack)
    assert hit.shape == extra.shape == missed.shape == left.shape == (4, 3)
    for n in range(4):
        for c in range(3):
            others = [k for k in range(3) if k != c]
            assert hit[n, c] == stack[n, c, c]
            assert extra[n, c] == sum(stack[n, k, c] for k in others)
            assert missed[n, c] == sum(stack[n, c, k] for k in others)
            assert left[n, c] == sum(stack[n, j, k] for j in others for k in others)
    assert left.dtype == np.int64
    np.testing.assert_array_equal(true_negatives(stack[0]), left[0])
    np.testing.assert_array_equal(
        hit + extra + missed + left, np.repeat(stack.sum((1, 2))[:, None], 3, 1)
    )
    np.testing.assert_array_equal(pooled(stack), stack[0] + stack[1] + stack[2] + stack[3])
    np.testing.assert_array_equal(pooled(np.zeros((0, 3, 3), int)), np.zeros((3, 3)))


def rows():
    return [
        ("Soho/val/image_00002", "Soho", np.full((3, 3), 2)),
        ("Cheops/val/image_00001", "Cheops", np.eye(3, dtype=np.int64) * 2**40),
        ("XMM Newton/val/image_00001", "XMM Newton", np.ones((3, 3), int)),
    ]


def test_collected_counts_do_not_depend_on_the_order():
    one, other = ImageCounts.collect(rows()), ImageCounts.collect(rows()[::-1])
    assert one.ids.tolist() == sorted(one.ids.tolist()) == other.ids.tolist()
    assert one.satellites.tolist() == ["Cheops", "Soho", "XMM Newton"]
    np.testing.assert_array_equal(one.confusion, other.confusion)


@pytest.mark.parametrize("given", [rows(), []])
def test_counts_come_back_from_disk(tmp_path, given):
    wanted = ImageCounts.collect(given)
    path = tmp_path / "counts.npz"
    wanted.save(path)
    back = ImageCounts.load(path)
    assert back.ids.tolist() == wanted.ids.tolist()
    assert back.satellites.tolist() == wanted.satellites.tolist()
    assert back.confusion.dtype == np.int64
    np.testing.assert_array_equal(back.confusion, wanted.confusion)
    assert [p.name for p in tmp_path.iterdir()] == ["counts.npz"]


def test_a_foreign_counts_file_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="no counts file"):
        ImageCounts.load(tmp_path / "none.npz")
    text = tmp_path / "text.npz"
    text.write_text("hello")
    with pytest.raises(UserError, match="is no file of counts"):
        ImageCounts.load(text)
    other = tmp_path / "other.npz"
    np.savez(other, ids=["a"], satellites=["b"], confusion=np.zeros((2, 3, 3), int))
    with pytest.raises(UserError, match="shapes differ"):
        ImageCounts.load(other)
    whole = tmp_path / "whole.npz"
    ImageCounts.collect(rows()).save(whole)
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole.read_bytes()[:200])
    with pytest.raises(UserError, match="is no file of counts"):
        ImageCounts.load(cut)
