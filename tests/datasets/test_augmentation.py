"""Augmentation that is one value each: turns, windows, mosaic, copy-paste, camera faults, holes."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tiny
from augmented import ALL, STILL, arrays, dataset, sample, seed

from spark_seg.config import load_config
from spark_seg.datasets.sampling import SampleIndex
from spark_seg.datasets.transforms.dropout import CoarseDropout
from spark_seg.datasets.transforms.faults import STAGES, CameraFaults
from spark_seg.datasets.transforms.geometry import RandomWarp, ResizeFrame, frame_matrix, is_craft
from spark_seg.datasets.transforms.loading import LoadSparkImage
from spark_seg.datasets.transforms.mixing import CopyPaste, Mosaic, touches_border
from spark_seg.datasets.transforms.pasting import erase_craft, paste_craft
from spark_seg.datasets.transforms.resampling import quarter_turns
from spark_seg.errors import UserError


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tree(tmp_path_factory.mktemp("augmentation") / "tree", train=4, val=1)


# -------------------------------------------------------------- the default recipe


def test_the_default_recipe_is_what_it_was() -> None:
    cfg = load_config("segformer_b2_spark")
    assert all(cfg[name] is None for name in ALL)
    steps = cfg.train_dataloader.dataset.pipeline
    assert [step.type for step in steps] == [
        "LoadSparkImage",
        "LoadSparkMask",
        "RandomWarp",
        "ColorJitter",
        "PackSparkInputs",
    ]
    assert steps[2] == dict(
        type="RandomWarp", size=512, hflip=0.5, vflip=0.5, rotation=30, scale=0.2, shift=0.1
    )


def test_without_turns_the_same_numbers_are_drawn_as_ever() -> None:
    """So that samples of a seed stay what they were: two flips, angle, factor, shift, place, focus."""
    seed(5)
    RandomWarp(32)(sample())
    after = np.random.rand()  # noqa: NPY002
    seed(5)
    for _ in range(2):
        np.random.uniform(-1, 1)  # noqa: NPY002
    np.random.uniform(-1, 1, 2)  # noqa: NPY002
    for _ in range(2):
        np.random.rand()  # noqa: NPY002
    for _ in range(2):
        np.random.randint(1)  # noqa: NPY002
    np.random.rand()  # noqa: NPY002
    assert np.random.rand() == after  # noqa: NPY002


# --------------------------------------------------------------------------- turns


@pytest.mark.parametrize("size", [32, (24, 40)])
def test_turns_are_exact_and_as_likely_as_told(size: Any) -> None:
    seed(0)
    shape = (size, size) if isinstance(size, int) else size
    ways = []
    for quarters in range(4):
        turned = shape[::-1] if quarters % 2 else shape
        plain = ResizeFrame(turned, mask=True)(sample())
        ways.append([np.rot90(plain[key], quarters) for key in ("img", "gt_seg_map")])
    seen = np.zeros(4, int)
    warp = RandomWarp(size, **STILL, turns=0.6)
    for _ in range(400):
        out = warp(sample())
        which = [
            k for k, (img, mask) in enumerate(ways)
            if np.array_equal(out["img"], img) and np.array_equal(out["gt_seg_map"], mask)
        ]  # fmt: skip
        assert len(which) == 1
        seen[which[0]] += 1
    assert seen / 400 == pytest.approx([0.4, 0.2, 0.2, 0.2], abs=0.07)


@pytest.mark.parametrize("quarters", range(4))
def test_turns_are_part_of_the_one_matrix(quarters: int) -> None:
    source = np.arange(5 * 7).reshape(5, 7)
    turned, matrix = np.rot90(source, quarters), quarter_turns((5, 7), quarters)
    for y in range(5):
        for x in range(7):
            to_x, to_y, one = matrix @ (x, y, 1)
            assert one == 1
            assert turned[int(to_y), int(to_x)] == source[y, x]
    # and with the rest of the warp: a quarter turn is what frame_matrix turns by 90 degrees
    whole = frame_matrix((64, 64), (32, 32), 90.0 * quarters, 1.0, np.zeros(2), (False, False))
    plain = frame_matrix((64, 64), (32, 32), 0.0, 1.0, np.zeros(2), (False, False))
    np.testing.assert_allclose(plain @ quarter_turns((64, 64), quarters), whole, atol=1e-9)


# ------------------------------------------------------------------------- windows


def test_windows_on_the_craft_hold_enough_of_it() -> None:
    seed(1)
    found: dict[str, list[float]] = {"anywhere": [], "focus": [], "least": []}
    for name, options in (
        ("anywhere", {}),
        ("focus", {"focus": 1.0}),
        ("least", {"focus": 1.0, "least": 0.05}),
    ):
        warp = RandomWarp(128, rotation=20, turns=0.75, crop=40, **options)
        for _ in range(60):
            mask = warp(sample(256, 256))["gt_seg_map"]
            assert set(np.unique(mask)) <= {0, 1, 2, 255}
            found[name].append(is_craft(mask).sum() / max((mask != 255).sum(), 1))
    assert np.mean(np.array(found["anywhere"]) == 0) > 0.2
    assert np.mean(np.array(found["focus"]) > 0) > 0.9
    assert min(found["focus"]) < 0.05 <= min(found["least"])


def test_least_leaves_the_other_windows_where_they_fell() -> None:
    """A fifth of the windows are asked onto the craft: `least` asks no others."""
    shares = {}
    for least in (0.0, 0.02):
        seed(5)
        warp = RandomWarp(128, rotation=20, crop=24, focus=0.2, least=least)
        masks = [warp(sample(256, 256))["gt_seg_map"] for _ in range(300)]
        shares[least] = np.mean([is_craft(mask).any() for mask in masks])
    assert shares[0.02] == pytest.approx(shares[0.0], abs=0.08)
    assert shares[0.0] < 0.8
    seed(5)
    everywhere = RandomWarp(128, rotation=20, crop=24, least=0.02)
    masks = [everywhere(sample(256, 256))["gt_seg_map"] for _ in range(100)]
    assert np.mean([is_craft(mask).any() for mask in masks]) > shares[0.0] + 0.1


def test_least_gives_up_where_there_is_no_craft() -> None:
    empty = sample()
    empty["gt_seg_map"][:] = 0
    out = RandomWarp(64, crop=16, focus=1.0, least=0.5)(empty)
    assert out["gt_seg_map"].shape == (16, 16)


# ------------------------------------------------------------- mosaic and copy-paste


class Others:
    """Stands in for the data set: frames of one grey level each."""

    def __init__(self) -> None:
        self.asked = 0

    def draw(self) -> dict[str, Any]:
        self.asked += 1
        return uniform(60 * self.asked, 1 + self.asked % 2)

    def draw_with_little_craft(self, share: float) -> dict[str, Any]:
        return self.draw()


def uniform(grey: int, label: int) -> dict[str, Any]:
    img, mask = np.full((64, 64, 3), grey, np.uint8), np.zeros((64, 64), np.uint8)
    mask[20:40, 25:45] = label
    return {"img": img, "gt_seg_map": mask}


def test_a_mosaic_has_four_frames_whose_labels_lie_where_they_do() -> None:
    seed(2)
    middles = set()
    for _ in range(30):
        others = Others()
        out = Mosaic(RandomWarp(48, **STILL), prob=1.0)({**uniform(30, 1), "others": others})
        img, mask = out["img"][..., 0], out["gt_seg_map"]
        assert others.asked == 3
        assert out["img_shape"] == mask.shape == (48, 48)
        assert sorted(set(np.unique(img))) == [30, 60, 120, 180]
        assert {int(img[y, x]) for y in (0, -1) for x in (0, -1)} == {30, 60, 120, 180}
        y, x = ((img[:, 0] == img[0, 0]).sum(), (img[0] == img[0, 0]).sum())
        middles.add((int(y), int(x)))
        assert all(0.35 * 48 - 1 <= v <= 0.65 * 48 + 1 for v in (y, x))
        for part, label in ((30, 1), (60, 2), (120, 1), (180, 2)):
            inside = mask[img == part]
            assert set(np.unique(inside)) <= {0, label}
            assert (inside == label).any(), "the part with the craft is kept"
        assert out["applied"] == ["mosaic"]
    assert len(middles) > 15


def test_a_frame_shrunk_into_a_mosaic_is_resampled_once(tree: Path) -> None:
    """From the file, decoded as small as it is needed: never at the sample's whole size first."""
    reductions = []
    data = dataset(tree, mosaic=1.0, image_size=64)
    big = np.zeros((512, 512, 3), np.uint8)
    path = tree.parent / "big.jpg"
    cv2.imwrite(str(path), big)
    undecoded = LoadSparkImage(reduce=1.25)({"img_path": str(path)})["img"]

    class Spy(type(undecoded)):  # type: ignore[misc]
        def pixels(self, reduce: int = 1, alpha: bool = False) -> np.ndarray:
            reductions.append(reduce)
            return super().pixels(reduce, alpha)

    spied = Spy(**vars(undecoded))
    mosaic = data.pipeline.transforms[2]
    assert isinstance(mosaic, Mosaic)
    part = {"img": spied, "gt_seg_map": np.zeros((512, 512), np.uint8)}
    mosaic._fill(part, (64, 64), (64, 64), (32, 32))
    assert part["img"].shape == (32, 32, 3)
    assert reductions == [8]


def test_pasted_labels_are_the_crafts_on_the_backgrounds() -> None:
    seed(3)
    front = uniform(200, 2)
    out = CopyPaste(RandomWarp(64, **STILL), prob=1.0)({**front, "others": Others()})
    craft = uniform(0, 2)["gt_seg_map"]
    np.testing.assert_array_equal(out["gt_seg_map"], craft)
    img = out["img"][..., 0].astype(int)
    inner = cv2.erode((craft > 0).astype(np.uint8), np.ones((3, 3))) > 0
    outer = cv2.dilate((craft > 0).astype(np.uint8), np.ones((3, 3))) == 0
    assert (img[inner] == 200).all()
    assert np.abs(img[outer] - 60).max() <= 1, "its craft is filled to a rounding"
    rim = img[~inner & ~outer]
    assert ((rim > 60) & (rim < 200)).all(), "one pixel of blend on either side"
    assert out["applied"] == ["pasted"]


def test_a_thin_boom_is_pasted_whole_and_brings_no_background_along() -> None:
    img, mask = np.full((40, 40, 3), 250, np.uint8), np.zeros((40, 40), np.uint8)
    img[20, 5:35], mask[20, 5:35] = 90, 1
    img[5:15, 5:15], mask[5:15, 5:15] = 90, 1
    img[4:16, 4], img[4, 4:16], img[15, 4:16] = 170, 170, 170  # the first sky, mixed in
    img[5, 5:15] = 170
    out, labels = paste_craft(img, mask, np.zeros_like(img), np.full_like(mask, 255))
    np.testing.assert_array_equal(labels, np.where(mask, mask, 255))
    assert (out[20, 7:33] == 90).all()
    assert out[mask == 0].max() < 90, "nothing of the bright sky"
    assert out.max() <= 90


def test_the_other_craft_is_taken_out() -> None:
    rng = np.random.default_rng(0)
    img = np.full((96, 96, 3), 100.0) + np.linspace(-40, 40, 96)[None, :, None]
    img = (img + rng.normal(0, 4, img.shape)).astype(np.uint8)
    before, mask = img.copy(), np.zeros((96, 96), np.uint8)
    mask[30:50, 30:60], img[30:50, 30:60] = 1, 255
    mask[:, 90:] = 255
    seen = img.copy()
    out, labels = erase_craft(img, mask)
    np.testing.assert_array_equal(img, seen)  # a new one
    np.testing.assert_array_equal(labels, np.where(mask == 1, 0, mask))
    np.testing.assert_array_equal(out[mask == 255], img[mask == 255])
    far = cv2.dilate((mask == 1).astype(np.uint8), np.ones((15, 15))) == 0
    np.testing.assert_array_equal(out[far], img[far])
    hole = mask == 1
    assert np.abs(out[hole].mean() - before[hole].mean()) < 6
    assert 2 < (out[hole].astype(int) - cv2.blur(out, (9, 9))[hole]).std() < 7, "grain as around it"
    nothing = np.zeros_like(mask)
    assert erase_craft(img, nothing)[0] is img


def test_what_the_border_cuts_is_not_pasted() -> None:
    cut = uniform(200, 1)
    cut["gt_seg_map"][20:40, 60:] = 1
    assert touches_border(cut["gt_seg_map"])
    others = Others()
    out = CopyPaste(RandomWarp(64, **STILL), prob=1.0)({**cut, "others": others})
    assert others.asked == 0
    assert "applied" not in out


@pytest.mark.parametrize("name", ["mosaic", "copy_paste"])
@pytest.mark.parametrize("prob", [0.0, 0.3, 1.0])
def test_probabilities(name: str, prob: float) -> None:
    seed(4)
    step = {"mosaic": Mosaic, "copy_paste": CopyPaste}[name](RandomWarp(16), prob=prob)
    hits = [("applied" in step({**uniform(30, 1), "others": Others()})) for _ in range(300)]
    assert np.mean(hits) == pytest.approx(prob, abs=0.08 * (0 < prob < 1))


def test_without_a_mixture_it_is_the_warp_alone() -> None:
    warp = RandomWarp(32)
    seed(6)
    np.random.rand()  # noqa: NPY002
    plain = warp(sample())
    seed(6)
    mixed = Mosaic(warp, prob=1e-9)(sample())
    for key in ("img", "gt_seg_map"):
        np.testing.assert_array_equal(mixed[key], plain[key])


def test_mixing_wants_a_data_set_with_masks() -> None:
    with pytest.raises(UserError, match="SparkDataset"):
        Mosaic(RandomWarp(16), prob=1.0)(sample())


def test_others_are_all_the_others_and_only_those_of_the_data_set(tree: Path) -> None:
    data = dataset(tree, mosaic=1.0, leave_out="Cheops")
    assert len(data) == 4
    drawn = set()
    for k in range(60):
        seed(k)
        from spark_seg.datasets.others import OtherFrames

        info = OtherFrames(data, 1).draw()
        assert info["gt_seg_map"].dtype == np.uint8
        drawn.add(info["sample_id"])
    ids = {data.get_data_info(i)["sample_id"] for i in range(4)}
    assert drawn == ids - {data.get_data_info(1)["sample_id"]}


def test_another_frame_that_cannot_be_read(tree: Path, tmp_path: Path) -> None:
    broken = tiny.copy_tree(tree, tmp_path / "broken")
    data = dataset(broken, mosaic=1.0)
    bad = Path(data.get_data_info(2)["img_path"])
    bad.write_bytes(b"")
    with pytest.raises(UserError, match=bad.name):
        [data[SampleIndex(0, (0, k, 0))] for k in range(20)]
    data = dataset(broken, mosaic=1.0, skip_bad_files=True)
    for k in range(20):
        arrays(data[SampleIndex(0, (0, k, 0))])
    assert data.skipped() == [data.get_data_info(2)["sample_id"]]


# ---------------------------------------------------------- camera faults and holes


def test_faults_have_one_strength() -> None:
    gentle, harsh = [], []
    for strength, seen in ((1, gentle), (5, harsh)):
        step = CameraFaults(strength, prob=1.0)
        seed(7)
        for _ in range(120):
            out = step(sample())
            kinds = [text.split() for text in out["applied"]]
            assert 1 <= len(kinds) <= 3
            assert all(0 <= float(severity) <= strength for _, severity in kinds)
            order = [
                next(i for i, stage in enumerate(STAGES.values()) if kind in stage)
                for kind, _ in kinds
            ]
            assert order == sorted(set(order)), "one of a stage, in the light's order"
            np.testing.assert_array_equal(out["gt_seg_map"], sample()["gt_seg_map"])
            difference = out["img"].astype(int) - sample()["img"]
            seen.append(np.abs(difference).mean())
    assert np.mean(gentle) * 2 < np.mean(harsh)
    from spark_seg.corruptions import KINDS

    assert {kind for stage in STAGES.values() for kind in stage} == set(KINDS)


def test_faults_come_as_often_as_told() -> None:
    seed(8)
    step = CameraFaults(2, prob=0.25, kinds=["noise", "jpeg"])
    seen = [step(sample()).get("applied", []) for _ in range(400)]
    assert np.mean([bool(s) for s in seen]) == pytest.approx(0.25, abs=0.07)
    assert {text.split()[0] for s in seen for text in s} == {"noise", "jpeg"}
    still = sample()
    img = still["img"]
    assert CameraFaults(0, prob=1.0)(still)["img"] is img


@pytest.mark.parametrize("ignore", [False, True])
def test_holes(ignore: bool) -> None:
    seed(9)
    hits = []
    for _ in range(200):
        given = sample()
        img, mask = given["img"].copy(), given["gt_seg_map"].copy()
        given["seg_fields"] = ["gt_seg_map"]
        shared = given["img"], given["gt_seg_map"]
        out = CoarseDropout(0.4, holes=3, size=(0.1, 0.2), ignore=ignore)(given)
        np.testing.assert_array_equal(shared[0], img)  # kept pictures stay whole
        np.testing.assert_array_equal(shared[1], mask)
        holes = (out["img"] == 0).all(2) & (img != 0).any(2)
        hits.append(bool(holes.any()))
        assert holes.mean() <= 3 * 0.2**2
        np.testing.assert_array_equal(out["img"][~holes], img[~holes])
        if ignore and holes.any():
            assert (out["gt_seg_map"][holes] == 255).all()
        else:
            np.testing.assert_array_equal(out["gt_seg_map"], mask)
    assert np.mean(hits) == pytest.approx(0.4, abs=0.1)
