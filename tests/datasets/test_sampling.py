"""Sampling by weight: how often each frame comes, the same on any number of processes, taken up anywhere."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from spark_seg.datasets import mask_counts
from spark_seg.datasets.layout import list_frames
from spark_seg.datasets.mask_counts import counts_of
from spark_seg.datasets.sampling import ResumableSampler, SampleIndex, WeightedSampler
from spark_seg.errors import UserError


class Frames:
    """A dataset as far as a sampler looks: 12 frames of satellite A, 4 of B."""

    def __len__(self) -> int:
        return 16

    def list_frames(self) -> list[Any]:
        return [SimpleNamespace(satellite="A" if i < 12 else "B") for i in range(16)]


# 100 pixels each; frames 0 and 1 show a small craft, 2 to 5 have no panel
COUNTS = np.array([[98, 1, 1]] * 2 + [[90, 10, 0]] * 4 + [[85, 10, 5]] * 10)


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_counts, "counts_of", lambda dataset: COUNTS)


def drawn(sampler: Any, epochs: int = 1) -> Counter:
    seen: Counter = Counter()
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        seen.update(int(i) for i in sampler)
    return seen


def test_satellites_are_seen_equally_often() -> None:
    sampler = WeightedSampler(Frames(), "satellite", seed=1)
    for epoch in range(5):
        sampler.set_epoch(epoch)
        found = [int(i) for i in sampler]
        assert len(found) == len(sampler) == 16
        assert sum(i < 12 for i in found) == 8
    seen = drawn(sampler, 300)
    assert [seen[i] / 300 for i in range(16)] == pytest.approx([2 / 3] * 12 + [2] * 4, abs=0.1)


@pytest.mark.parametrize(
    ("by", "options", "weights"),
    [
        ("small", {"factor": 4, "share": 0.05}, [4] * 2 + [1] * 14),
        ("panel", {"factor": 2}, [2] * 2 + [1] * 4 + [2] * 10),
        (["small", "panel"], {"factor": 3}, [9] * 2 + [1] * 4 + [3] * 10),
    ],
)
def test_frames_come_by_their_weight(by: Any, options: dict, weights: list[int]) -> None:
    sampler = WeightedSampler(Frames(), by, seed=0, **options)
    expected = np.array(weights) / np.mean(weights)
    assert sampler.weights == pytest.approx(expected)
    for epoch in range(20):
        sampler.set_epoch(epoch)
        once = Counter(int(i) for i in sampler)
        for i, often in enumerate(expected):
            assert np.floor(often) <= once[i] <= np.ceil(often), "an epoch's make-up hardly varies"
    seen = drawn(sampler, 400)
    assert [seen[i] / 400 for i in range(16)] == pytest.approx(expected, abs=0.12)


def test_a_frame_without_a_craft_has_no_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = COUNTS.copy()
    counts[5], counts[6] = [100, 0, 0], [0, 0, 0]  # no craft; a mask that cannot be read
    monkeypatch.setattr(mask_counts, "counts_of", lambda dataset: counts)
    weights = WeightedSampler(Frames(), "small", factor=4, share=0.05, seed=0).weights
    assert weights / weights[-1] == pytest.approx([4] * 2 + [1] * 14)


def test_epochs_differ_and_repeat() -> None:
    one, other = (WeightedSampler(Frames(), "satellite", seed=3) for _ in range(2))
    first = [int(i) for i in one]
    assert first == [int(i) for i in other]
    assert first != sorted(first)
    one.set_epoch(1)
    assert [int(i) for i in one] != first


def test_goes_on_where_it_was() -> None:
    sampler = WeightedSampler(Frames(), "small", factor=5, seed=0)
    whole = [(int(i), i.seed) for i in sampler if isinstance(i, SampleIndex)]
    sampler.start = 6
    assert [(int(i), i.seed) for i in sampler if isinstance(i, SampleIndex)] == whole[6:]
    assert sampler.start == 0
    assert len(list(sampler)) == 16


def test_copies_are_augmented_differently() -> None:
    sampler = WeightedSampler(Frames(), "satellite", seed=0)
    seeds = [i.seed for i in sampler if isinstance(i, SampleIndex)]
    assert len(set(seeds)) == len(seeds) == 16
    plain = {i.seed for i in ResumableSampler(Frames(), seed=0) if isinstance(i, SampleIndex)}
    assert len(plain & set(seeds)) == len({int(i) for i in sampler}), "the first of each as ever"


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_an_epoch(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for rank in range(world):
        monkeypatch.setattr("mmengine.dataset.sampler.get_dist_info", lambda r=rank: (r, world))
        shares.append([int(i) for i in WeightedSampler(Frames(), "satellite", seed=0)])
    assert len({len(s) for s in shares}) == 1
    merged = [s[k] for k in range(len(shares[0])) for s in shares]
    monkeypatch.setattr("mmengine.dataset.sampler.get_dist_info", lambda: (0, 1))
    assert merged[:16] == [int(i) for i in WeightedSampler(Frames(), "satellite", seed=0)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": "satelite"}, "did you mean 'satellite'"),
        ({"by": []}, "name one or several"),
        ({"factor": 0}, "factor=0"),
        ({"share": 1}, "share=1"),
    ],
)
def test_wrong_values(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        WeightedSampler(Frames(), **options)


def test_masks_are_counted_once(
    spark_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spark_seg.labels import read_mask

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(mask_counts, "_known", {})
    frames = list_frames(spark_tree, "train")
    dataset = SimpleNamespace(list_frames=lambda: frames)
    counts = counts_of(dataset)
    for row, frame in zip(counts, frames, strict=True):
        mask = read_mask(str(frame.mask))
        assert row.tolist() == [int((mask == c).sum()) for c in range(3)]
    assert counts[:, 2].all()
    monkeypatch.setattr(mask_counts, "read_mask", lambda path: pytest.fail("read again"))
    assert counts_of(dataset) is counts
    monkeypatch.setattr(mask_counts, "_known", {})
    assert (counts_of(dataset) == counts).all()
    (file,) = (tmp_path / "cache" / "spark_seg").iterdir()
    file.write_bytes(b"half")
    monkeypatch.setattr(mask_counts, "_known", {})
    with pytest.raises(UserError, match="is damaged"):
        counts_of(dataset)
