"""SparkDataset: samples, subsets, satellites left out."""

from collections import Counter

import pytest

from spark_seg.datasets.spark import SparkDataset, take_subset
from spark_seg.errors import UserError
from spark_seg.labels import CLASSES, PALETTE


def build(root, **options) -> SparkDataset:
    from mmseg.registry import DATASETS

    return DATASETS.build({"type": "SparkDataset", "data_root": str(root), **options})


def ids(dataset) -> list[str]:
    return [dataset.get_data_info(k)["sample_id"] for k in range(len(dataset))]


def message_of(root, **options) -> str:
    with pytest.raises(UserError) as error:
        build(root, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_samples(spark_tree):
    dataset = build(spark_tree, split="val")
    assert len(dataset) == 9
    sample = dataset[8]
    assert sample["sample_id"] == "XMM Newton/val/image_00003"
    assert sample["satellite"] == "XMM Newton"
    assert sample["img_path"] == str(spark_tree / "images/XMM Newton/val/image_00003_img.jpg")
    assert sample["seg_map_path"] == str(spark_tree / "mask/XMM Newton/val/image_00003_layer.jpg")
    assert dataset.metainfo["classes"] == CLASSES
    assert [tuple(c) for c in dataset.metainfo["palette"]] == list(PALETTE)


def test_root_from_the_environment(spark_tree, monkeypatch):
    monkeypatch.setenv("SPARK_DATA_ROOT", str(spark_tree.parent))
    assert len(SparkDataset(split="train")) == 9


def test_test_split_has_no_masks(spark_tree, monkeypatch):
    dataset = build(spark_tree, split="test")
    assert ids(dataset) == ["test_00000", "test_00001", "test_00002"]
    assert "seg_map_path" not in dataset[0]
    folder = spark_tree / "images" / "Cheops" / "val"
    # A folder of images needs no tree.
    assert len(build("/nowhere", split="test", images=str(folder))) == 3
    monkeypatch.setenv("SPARK_TEST_ROOT", str(folder))
    assert ids(build("/nowhere", split="test"))[0] == "image_00001"


def test_images_belong_to_the_test_split(spark_tree):
    assert "split='test'" in message_of(spark_tree, split="val", images="somewhere")


def test_frames_are_listed_late_with_lazy_init(spark_tree):
    dataset = build("/nowhere", split="val", lazy_init=True)
    assert dataset.metainfo["classes"] == CLASSES
    with pytest.raises(UserError, match="/nowhere"):
        dataset.full_init()


def test_pipeline_runs_on_a_sample(spark_tree):
    dataset = build(spark_tree, split="val", pipeline=[lambda sample: sample["sample_id"].upper()])
    assert dataset[0] == "VENUSEXPRESS/VAL/IMAGE_00001"


# -------------------------------------------------------------------- subset


@pytest.mark.parametrize(
    ("subset", "count"), [(1 / 3, 3), (3, 3), (0.01, 1), (1.0, 9), (9, 9), (1, 1)]
)
def test_shares_and_numbers_spread_over_the_satellites(spark_tree, subset, count):
    chosen = ids(build(spark_tree, split="train", subset=subset))
    assert len(set(chosen)) == count
    assert chosen == ids(build(spark_tree, split="train", subset=subset))
    per_satellite = Counter(name.split("/")[0] for name in chosen)
    if count >= 3:
        assert set(per_satellite.values()) == {count // 3}


def test_ids_in_a_list_or_a_file(spark_tree, tmp_path):
    names = ["XMM Newton/val/image_00002", "Cheops/val/image_00001"]
    assert ids(build(spark_tree, split="val", subset=names)) == names
    path = tmp_path / "ids.txt"
    path.write_text("\n".join(names) + "\n\n")
    assert ids(build(spark_tree, split="val", subset=str(path))) == names
    assert ids(build(spark_tree, split="test", subset=["test_00001"])) == ["test_00001"]


@pytest.mark.parametrize(
    ("subset", "words"),
    [
        (0.0, ["0.0"]),
        (1.5, ["1.5"]),
        (-0.1, ["-0.1"]),
        (0, ["9 frames"]),
        (10, ["9 frames"]),
        (True, ["True"]),
        ([], ["no id"]),
        (["Cheops/val/image_00001"] * 2, ["more than once"]),
        (
            ["XMM Newton/val/image_00002", "Cheop/val/image_00002"],
            ["1 of 2", "'Cheops/val/image_00002'"],
        ),
        ("gone.txt", ["no file gone.txt"]),
        ([0, 1], ["subset=[0, 1]: 0 is no text; give ids"]),
        ((100, 200), ["100 is no text"]),
        ([["a"]], ["['a'] is no text"]),
    ],
)
def test_impossible_subsets(spark_tree, subset, words):
    text = message_of(spark_tree, split="val", subset=subset)
    assert all(word in text for word in words)


def test_unknown_ids_are_told_quickly_among_many():
    import time

    from spark_seg.datasets.layout import Frame

    frames = [
        Frame(f"{s}/train/image_{k:05d}", s, "train", "", "")
        for s in "abcdefghij"
        for k in range(6000)
    ]
    start = time.perf_counter()
    with pytest.raises(UserError, match="did you mean"):
        take_subset(frames, ["a/train/image_1"])
    assert time.perf_counter() - start < 2


# ----------------------------------------------------------------- leave_out


def test_satellites_left_out(spark_tree):
    left = ids(build(spark_tree, split="val", leave_out="XMM Newton"))
    assert {name.split("/")[0] for name in left} == {"VenusExpress", "Cheops"}
    left = build(spark_tree, split="val", leave_out=["XMM Newton", "Cheops"], subset=2)
    assert {name.split("/")[0] for name in ids(left)} == {"VenusExpress"}
    assert ids(build(spark_tree, split="val", leave_out={"XMM Newton", "Cheops"}, subset=2)) == ids(
        left
    )
    # A satellite of SPARK's that this copy does not have is no mistake.
    assert len(build(spark_tree, split="val", leave_out="Soho")) == 9


def test_satellites_that_cannot_be_left_out(spark_tree):
    assert "did you mean 'XMM Newton'" in message_of(
        spark_tree, split="val", leave_out="XMM-Newton"
    )
    everything = ["XMM Newton", "Cheops", "VenusExpress"]
    assert "nothing is left" in message_of(spark_tree, split="val", leave_out=everything)
    assert "no satellite" in message_of(spark_tree, split="test", leave_out="Cheops")
    for wrong in (3, [3]):
        assert "3 is no text; give satellites' names" in message_of(spark_tree, leave_out=wrong)


def test_real_samples(spark_samples):
    assert len(build(spark_samples, split="val")) == 10
    assert len(build(spark_samples, split="test")) == 20
