"""Intervals and comparisons: deterministic, right on average, and plain about what differs."""

import numpy as np
import pytest
from hard_masks import blobs

from spark_seg.errors import UserError
from spark_seg.evaluation.bootstrap import intervals, weights
from spark_seg.evaluation.compare import compare, load_counts
from spark_seg.evaluation.frame import CountOptions, count_frame
from spark_seg.evaluation.store import ImageCounts
from spark_seg.evaluation.table import metrics_of


def truths(count=30):
    return [blobs(np.random.default_rng(seed))[1] for seed in range(count)]


def run(shift=0, noise=0.0, count=30, first=0, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for index, truth in enumerate(truths(count)):
        pred = np.roll(truth, shift, 1)
        wrong = rng.random(truth.shape) < noise
        pred[wrong] = 0
        rows.append((f"a/val/{index:05d}", "a", count_frame(pred, truth)))
    return ImageCounts.collect(rows[first:])


def test_each_resampling_draws_as_many_images_as_there_are():
    rows = np.concatenate(list(weights(7, 50, seed=3)))
    assert rows.shape == (50, 7)
    assert (rows.sum(1) == 7).all()
    assert (rows >= 0).all()
    assert 0.8 < rows.mean() < 1.2
    assert len({tuple(row) for row in rows}) > 40


def test_chunks_change_nothing(monkeypatch):
    whole = np.concatenate(list(weights(9, 20, seed=1)))
    monkeypatch.setattr("spark_seg.evaluation.bootstrap._CHUNK", 27)
    np.testing.assert_array_equal(np.concatenate(list(weights(9, 20, seed=1))), whole)


def test_intervals_are_those_of_scoring_resampled_images():
    """The slow way: take the drawn images, as often as drawn, and score them from nothing."""
    for counts in (run(shift=2), rare()):
        found = intervals(counts, resamples=40, seed=5)
        slow: dict[str, list[float]] = {key: [] for key in found}
        for row in np.concatenate(list(weights(len(counts), 40, seed=5))).astype(int):
            drawn = counts.take(np.repeat(np.arange(len(counts)), row))
            metrics = metrics_of(drawn)
            for key, values in slow.items():
                if says_something(key, drawn):
                    values.append(metrics[key])
        for key, span in found.items():
            ends = np.quantile(slow[key], [0.025, 0.975])
            assert span == pytest.approx(tuple(ends)), key
        assert set(found) == set(metrics_of(counts)) - {"images", "spark/panel_images"}
    assert 0 < len(slow["spark/panel"]) == len(slow["spark/score"]) < 40
    assert 0 < len(slow["IoU/panel"]) < 40
    assert len(slow["aAcc"]) == 40


def rare(shift=1, count=6):
    """Images without panel, but for the first; nothing predicted there either."""
    rows = []
    for index, truth in enumerate(truths(count)):
        if index:
            truth[truth == 2] = 0
            truth[40:60, 40:60] = 1
        rows.append((f"{index:05d}", "", count_frame(np.roll(truth, shift, 1), truth)))
    return ImageCounts.collect(rows)


def says_something(key, counts):
    """Whether images drawn from a split with one counted panel say anything of a score."""
    if key in ("spark/score", "spark/panel"):
        return metrics_of(counts)["spark/panel_images"] > 0
    either = counts.confusion.sum((0, 1)) + counts.confusion.sum((0, 2)) > 0
    assert either[:2].all()
    return bool(either[2]) or not key.endswith("/panel")


def test_what_counts_in_few_images_is_perfect_where_it_is_perfect():
    """Resamplings without the one panel say nothing of panels; none of them is a panel missed."""
    counts = rare(shift=0)
    assert metrics_of(counts)["spark/panel_images"] == 1
    found = intervals(counts, resamples=200)
    for key in ("spark/panel", "spark/score", "IoU/panel", "per_image/IoU/panel", "mIoU"):
        assert found[key] == (1, 1), key
    assert found["boundary_IoU/panel"] == found["boundary_F1px/panel"] == (1, 1)


def test_what_counts_nowhere_has_its_own_value_as_interval():
    counts = rare().take(np.arange(1, 6))
    found, metrics = intervals(counts, resamples=50), metrics_of(counts)
    for key in ("spark/panel", "IoU/panel", "boundary_IoU/panel"):
        assert found[key] == (metrics[key], metrics[key]) == (0, 0)
    # Half the body by definition, and as uncertain as that.
    low, high = found["spark/body"]
    assert low < high
    assert found["spark/score"] == pytest.approx((low / 2, high / 2))


def test_differences_leave_out_what_counts_for_one_run_only():
    worse, perfect = rare(shift=3), rare(shift=0)
    row = compare(worse, perfect, resamples=200).rows["spark/panel"]
    assert row.low == row.high == row.difference == row.b - row.a > 0
    assert (row.share_worse, row.verdict) == (0, "better")
    truth = truths(1)[0]
    some = ImageCounts.collect([("x", "", count_frame(truth, truth))])
    sums = np.zeros((1, 3, 15, 3), int)
    sums[:, :, 14] = 100, 50, 100 << 24
    calibrated = {"calibration": sums, "nll": np.full((1, 3), 9)}
    a = ImageCounts(some.ids, some.satellites, some.confusion, **calibrated)
    unseen = sums.copy()
    unseen[:, 2] = 0  # B calls nothing craft
    b = ImageCounts(
        some.ids, some.satellites, some.confusion, calibration=unseen, nll=np.full((1, 3), 9)
    )
    row = compare(a, b, resamples=20).rows["ECE/predicted"]
    assert (row.a, row.b) == (0.5, 0)
    assert (row.low, row.high, row.p, row.verdict) == (-0.5, -0.5, 1, "open")


def test_the_seed_decides():
    counts = run(shift=2)
    one = intervals(counts, resamples=50, seed=1)
    assert one == intervals(counts, resamples=50, seed=1)
    assert one != intervals(counts, resamples=50, seed=2)


def test_95_percent_of_intervals_hold_the_truth():
    """Accuracy of images drawn from a known distribution; the binomial spread of 300 trials."""
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(300):
        right = rng.integers(0, 101, 60)
        stack = np.zeros((60, 3, 3), int)
        stack[:, 0, 0], stack[:, 0, 1] = right, 100 - right
        names = np.full(60, "")
        low, high = intervals(ImageCounts(names, names, stack), resamples=200, seed=trial)["aAcc"]
        inside += low <= 0.5 <= high
    assert 0.9 < inside / 300 < 0.985


def test_without_images_or_resamples_there_is_no_interval():
    assert intervals(ImageCounts.collect([])) == {}
    assert intervals(run(), resamples=0) == {}


def test_a_better_run_is_called_better_and_the_other_worse():
    good, bad = run(shift=1), run(shift=4)
    row = compare(bad, good, resamples=200).rows["spark/score"]
    assert row.verdict == "better"
    assert 0 < row.low <= row.difference <= row.high
    assert row.difference == row.b - row.a
    assert row.share_worse == 0
    assert row.p == pytest.approx(2 / 201)
    back = compare(good, bad, resamples=200).rows["spark/score"]
    assert back.verdict == "worse"
    assert back.difference == -row.difference
    assert (back.low, back.high) == pytest.approx((-row.high, -row.low))
    assert back.share_worse == 1


def test_equal_runs_leave_it_open():
    counts = run(shift=2)
    for row in compare(counts, counts, resamples=50).rows.values():
        assert (row.difference, row.low, row.high) == (0, 0, 0)
        assert row.verdict == "open"
        assert row.p == 1
    noisy = compare(run(noise=0.05, seed=1), run(noise=0.05, seed=2), resamples=200)
    assert noisy.rows["spark/score"].verdict == "open"


def test_pairing_finds_what_two_intervals_do_not():
    one, other = run(shift=2), run(shift=3)
    a, b = (intervals(counts, resamples=500)["per_image/aAcc"] for counts in (one, other))
    assert a[0] < b[1]
    assert b[0] < a[1]
    assert compare(one, other, resamples=500).rows["per_image/aAcc"].verdict == "worse"


def test_lower_calibration_error_is_better():
    def calibrated(counts, right):
        sums = np.zeros((3, 15, 3), int)
        sums[:, 14] = 100, right, 100 << 24
        return ImageCounts(
            counts.ids,
            counts.satellites,
            counts.confusion,
            calibration=np.repeat(sums[None], len(counts), 0),
            nll=np.full((len(counts), 3), 100 - right),
        )

    counts = run()
    rows = compare(calibrated(counts, 80), calibrated(counts, 90), resamples=20).rows
    assert rows["ECE"].verdict == rows["NLL"].verdict == "better"
    assert rows["ECE"].difference == pytest.approx(-0.1)


def test_only_shared_images_count():
    found = compare(run(first=3), run(shift=2, count=20), resamples=20)
    assert found.images == 17
    assert found.only_a == [f"a/val/{i:05d}" for i in range(20, 30)]
    assert found.only_b == [f"a/val/{i:05d}" for i in range(3)]
    whole = compare(run(count=20).take(np.arange(3, 20)), run(shift=2, count=20), resamples=20)
    assert whole.rows == found.rows


def test_runs_that_cannot_be_compared():
    counts = run(count=4)
    none = ImageCounts.collect([("x", "", np.eye(3, dtype=int))])
    with pytest.raises(UserError, match="share no image"):
        compare(counts, none)
    with pytest.raises(UserError, match="share no image"):
        compare(counts, ImageCounts.collect([]))
    pred, truth = blobs(np.random.default_rng(99))
    other = ImageCounts.collect([("a/val/00002", "a", count_frame(pred, truth))])
    with pytest.raises(UserError, match="truth of 1 shared images differs, first a/val/00002"):
        compare(counts, other)
    turned = count_frame(truths(4)[1][::-1], truths(4)[1][::-1])  # equal areas, another mask
    other = ImageCounts.collect([("a/val/00001", "a", turned)])
    with pytest.raises(UserError, match="truth of 1 shared images differs, first a/val/00001"):
        compare(counts, other)
    with pytest.raises(UserError, match="different options"):
        compare(counts, ImageCounts.collect([], CountOptions(bins=3)))
    with pytest.raises(UserError, match="images of one id"):
        compare(counts.take(np.array([0, 0])), counts)
    with pytest.raises(UserError, match="resamples=0"):
        compare(counts, counts, resamples=0)


def test_counts_are_found_in_folders(tmp_path):
    counts = run(count=2)
    (tmp_path / "run" / "test_val").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no counts\.npz in .*run: run tools/test\.py"):
        load_counts(tmp_path / "run")
    counts.save(tmp_path / "run" / "test_val" / "counts.npz")
    for path in (tmp_path / "run", tmp_path / "run" / "test_val" / "counts.npz"):
        assert load_counts(path).ids.tolist() == counts.ids.tolist()
    (tmp_path / "run" / "test_train").mkdir()
    counts.save(tmp_path / "run" / "test_train" / "counts.npz")
    with pytest.raises(UserError, match=r"there are .*test_train, .*test_val"):
        load_counts(tmp_path / "run")
    with pytest.raises(UserError, match="no counts file"):
        load_counts(tmp_path / "none")


def test_the_interval_over_seeds_is_students() -> None:
    """Runs of one image, where resampling changes nothing: what is left is the t interval of the seeds' means."""
    same = [run(shift=shift).take(np.array([0])) for shift in (0, 1, 3, 4)]
    values = [float(compare(one, one, resamples=5).rows["IoU/body"].a) for one in same]
    row = compare(same[:2], same[2:], resamples=200_000).rows["IoU/body"]
    a, b = np.array(values[:2]), np.array(values[2:])
    assert row.difference == pytest.approx(b.mean() - a.mean())
    error = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2 * (1 / 2 + 1 / 2))
    assert (row.high - row.low) / 2 == pytest.approx(4.303 * error, rel=0.03)  # t of 2 degrees
    alone = compare(same[:1], same[2:], resamples=200_000).rows["IoU/body"]
    error = b.std(ddof=1) * np.sqrt(1 + 1 / 2)
    assert (alone.high - alone.low) / 2 == pytest.approx(12.71 * error, rel=0.1)  # of one


@pytest.mark.parametrize("seeds", [(2, 2), (3, 3), (1, 4)])
def test_equal_recipes_seldom_differ(seeds: tuple[int, int]) -> None:
    """Seeds drawn from one distribution: about one comparison in twenty is called better or worse."""
    from spark_seg.evaluation.compare import _seed_noise, standard_error

    rng = np.random.default_rng(0)
    noise, called = _seed_noise(sum(seeds) - 2, 4000, 0), 0
    for _ in range(2000):
        a, b = rng.normal(size=seeds[0]), rng.normal(size=seeds[1])
        drawn = b.mean() - a.mean() + noise * standard_error(a.tolist(), b.tolist())
        low, high = np.quantile(drawn, [0.025, 0.975])
        called += low > 0 or high < 0
    assert 0.03 < called / 2000 < 0.07


def test_every_side_of_a_comparison_needs_a_run():
    with pytest.raises(UserError, match="each side of a comparison needs a run"):
        compare([], run())
