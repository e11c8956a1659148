"""The second domain: the same scenes with another look."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from spark_seg.datasets.demo import ensure_demo_data, make_demo_data
from spark_seg.datasets.demo.domain import Camera, expose, hard_camera, hard_materials
from spark_seg.datasets.demo.materials import table
from spark_seg.datasets.demo.render import render
from spark_seg.errors import UserError

SIZE = 128


@pytest.mark.parametrize("index", range(6))
def test_same_truth_other_pixels(index: int) -> None:
    one, other = (render(3, "val", index, SIZE, domain) for domain in ("standard", "hard"))
    assert np.array_equal(one.labels, other.labels)
    assert (one.box, one.satellite, one.background) == (
        other.box,
        other.satellite,
        other.background,
    )
    assert np.abs(one.image.astype(int) - other.image).mean() > 5
    assert np.array_equal(other.image, render(3, "val", index, SIZE, "hard").image)


def test_frames_of_the_hard_domain_differ_more() -> None:
    """Their floors spread wider, and they have more grain."""
    floors, grains = [], []
    for domain in ("standard", "hard"):
        frames = [render(0, "train", i, SIZE, domain).image for i in range(40)]
        grey = [cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(float) for image in frames]
        floors.append(np.std([np.percentile(g, 10) for g in grey]))
        grains.append(np.mean([np.median(np.abs(np.diff(g, axis=1))) for g in grey]))
    assert floors[1] > 1.5 * floors[0]
    assert grains[1] > 1.1 * grains[0]


def test_materials_stay_physical_and_the_usual_ones_untouched() -> None:
    before = {k: v.copy() for k, v in vars(table()).items()}
    for seed in range(20):
        drawn = hard_materials(np.random.default_rng(seed))
        assert drawn.albedo.min() >= 0
        assert drawn.albedo.max() <= 0.9
        assert min(drawn.pitch.min(), drawn.width.min()) > 0
        assert np.isfinite(drawn.scalars).all()
        assert drawn.scalars[:, 2].max() <= 0.6
        assert {v.dtype for v in (drawn.albedo, drawn.scalars, drawn.pitch)} == {
            np.dtype(np.float32)
        }
        assert np.array_equal(drawn.scalars[:, 4], table().scalars[:, 4]), "metal stays metal"
    assert all(np.array_equal(before[k], v) for k, v in vars(table()).items())


def test_camera() -> None:
    grey = np.full((SIZE, SIZE, 3), 100, np.uint8)
    rng = np.random.default_rng(0)
    seen = expose(grey, Camera(0, 0, gain=(0.5, 1.0, 1.5), dark_corners=0.5), rng, 0)
    assert seen[SIZE // 2, SIZE // 2].tolist() == pytest.approx([50, 100, 150], abs=2)
    assert seen[0, 0].tolist() == pytest.approx([25, 50, 75], abs=2)
    assert expose(grey * 0, Camera(40, 0), rng, 0).min() == 40
    edge = grey.copy()
    edge[:, : SIZE // 2] = 0
    blurred = expose(edge, Camera(0, 0, blur=16.0), rng, 0)
    assert len(np.unique(blurred[SIZE // 2])) > 4
    cameras = [hard_camera(rng) for _ in range(200)]
    assert {c.blur == 0 for c in cameras} == {c.dark_corners == 0 for c in cameras} == {True, False}


def test_trees_know_their_domain(tmp_path: Path) -> None:
    options = {"images": 1, "val": 1, "test": 0, "size": 32, "workers": 1}
    plain = make_demo_data(tmp_path / "a", **options)
    hard = make_demo_data(tmp_path / "b", **options, domain="hard")
    assert "domain" not in plain
    assert hard["domain"] == "hard"
    assert not ensure_demo_data(tmp_path / "b", **options, domain="hard")["rendered"]
    assert ensure_demo_data(tmp_path / "b", **options)["rendered"], "the other domain is there"
    with pytest.raises(UserError, match="domain must be standard or hard, not 'soft'"):
        make_demo_data(tmp_path / "c", **options, domain="soft")
