"""A SPARK tree is found and listed in every shape it is met in; wrong ones are told in one line."""

import shutil
import time
from pathlib import Path

import pytest

from spark_seg.datasets.layout import (
    SATELLITES,
    find_root,
    fingerprint,
    list_frames,
    list_test_images,
    satellite_order,
)
from spark_seg.errors import UserError, UserFileNotFoundError


def message_of(call, *args, kind=UserError) -> str:
    with pytest.raises(kind) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------- the root


def test_root_is_found_from_above_and_below(spark_tree, monkeypatch):
    for given in (spark_tree, spark_tree.parent, spark_tree / "images", spark_tree / "mask"):
        assert find_root(str(given)) == spark_tree
    monkeypatch.setenv("SPARK_DATA_ROOT", str(spark_tree))
    assert find_root(None) == spark_tree
    assert find_root(str(spark_tree.parent)) == spark_tree  # what is given goes first


def test_root_unzipped_twice(spark_tree):
    inner = spark_tree.parent / "outer" / "spark-2024-train-val"
    inner.parent.mkdir()
    spark_tree.rename(inner)
    assert find_root(str(inner.parent)) == inner


def test_root_under_another_name_is_found_unless_there_are_two(spark_tree):
    other = spark_tree.with_name("mine")
    spark_tree.rename(other)
    assert find_root(str(other.parent)) == other
    shutil.copytree(other, other.with_name("yours"))
    assert "mine, yours" in message_of(find_root, str(other.parent))


def test_no_root(tmp_path, monkeypatch):
    monkeypatch.delenv("SPARK_DATA_ROOT", raising=False)
    assert "SPARK_DATA_ROOT" in message_of(find_root, None, kind=UserFileNotFoundError)
    text = message_of(find_root, str(tmp_path / "gone"), kind=UserFileNotFoundError)
    assert "gone" in text
    assert "data_root" in text
    monkeypatch.setenv("SPARK_DATA_ROOT", str(tmp_path / "gone"))
    assert "SPARK_DATA_ROOT" in message_of(find_root, None, kind=UserFileNotFoundError)


def test_root_of_the_wrong_shape_says_what_is_there(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "notes.txt").write_text("")
    text = message_of(find_root, str(tmp_path))
    assert "images/<Satellite>/<split>/" in text
    assert "images/, notes.txt, videos/" in text


# --------------------------------------------------------------- the frames


def test_frames_are_paired_and_unique(spark_tree):
    frames = list_frames(spark_tree, "val")
    assert [f.id for f in frames] == [
        f"{satellite}/val/image_{k:05d}"
        for satellite in ("VenusExpress", "Cheops", "XMM Newton")  # the class index's order
        for k in (1, 2, 3)
    ]
    for frame in frames:
        assert frame.image == str(spark_tree / "images" / f"{frame.id}_img.jpg")
        assert frame.mask == str(spark_tree / "mask" / f"{frame.id}_layer.jpg")
        assert frame.split == "val"
        assert frame.id.startswith(frame.satellite)
    assert not {f.id for f in frames} & {f.id for f in list_frames(spark_tree, "train")}


def test_without_csvs_it_is_the_same(spark_tree):
    frames = list_frames(spark_tree, "train")
    (spark_tree / "train.csv").unlink()
    assert list_frames(spark_tree, "train") == frames


def test_csv_rows_need_their_files(spark_tree):
    path = spark_tree / "val.csv"
    rows = path.read_text().splitlines()
    path.write_text(
        "\n".join([*rows[:-1], "image_00009_img.jpg,image_00009_layer.jpg,XMM Newton,x"])
    )
    text = message_of(list_frames, spark_tree, "val", kind=UserFileNotFoundError)
    assert "val.csv: 1 rows" in text
    assert "XMM Newton/image_00009_img.jpg" in text
    assert list_frames(spark_tree, "train")


def test_csv_that_pairs_otherwise(spark_tree):
    path = spark_tree / "val.csv"
    path.write_text(path.read_text().replace("image_00001_layer", "image_00002_layer"))
    assert "pairs" in message_of(list_frames, spark_tree, "val")


def test_csv_with_other_columns(spark_tree):
    (spark_tree / "val.csv").write_text("a,b\n1,2\n")
    text = message_of(list_frames, spark_tree, "val")
    assert "val.csv" in text
    assert "'Image name'" in text


def test_csv_with_other_spelling_of_the_same_is_fine(spark_tree):
    path = spark_tree / "val.csv"
    text = path.read_text().replace("XMM Newton", "xmm_newton").replace("_layer.jpg", "_layer.png")
    path.write_text("\ufeff" + text, encoding="utf-8")
    assert len(list_frames(spark_tree, "val")) == 9


def test_hidden_and_other_files_are_ignored(spark_tree):
    folder = spark_tree / "images" / "Cheops" / "val"
    (folder / "._image_00001_img.jpg").write_bytes(b"mac")
    (folder / "Thumbs.db").write_bytes(b"windows")
    (spark_tree / "images" / ".DS_Store").write_bytes(b"mac")
    (spark_tree / "images" / "._Cheops").write_bytes(b"mac")
    assert len(list_frames(spark_tree, "val")) == 9


def test_extensions_may_differ(spark_tree):
    folder = spark_tree / "images" / "Cheops" / "val"
    (folder / "image_00001_img.jpg").rename(folder / "image_00001_img.JPEG")
    masks = spark_tree / "mask" / "Cheops" / "val"
    (masks / "image_00002_layer.jpg").rename(masks / "image_00002_layer.png")
    frames = {f.id: f for f in list_frames(spark_tree, "val")}
    assert frames["Cheops/val/image_00001"].image.endswith("JPEG")
    assert frames["Cheops/val/image_00002"].mask.endswith("png")


def test_two_files_of_one_name(spark_tree):
    folder = spark_tree / "mask" / "Cheops" / "val"
    shutil.copy(folder / "image_00001_layer.jpg", folder / "image_00001_layer.png")
    assert "mask/Cheops/val/image_00001_layer" in message_of(list_frames, spark_tree, "val")


def test_missing_masks_are_counted_and_named(spark_tree):
    for k in (1, 2, 3):
        (spark_tree / "mask" / "XMM Newton" / "val" / f"image_0000{k}_layer.jpg").unlink()
    (spark_tree / "mask" / "Cheops" / "val" / "image_00002_layer.jpg").unlink()
    text = message_of(list_frames, spark_tree, "val", kind=UserFileNotFoundError)
    assert "4 of 9 masks" in text
    assert text.count("_layer.jpg") == 3
    assert "mask/Cheops/val/image_00002_layer.jpg" in text
    assert list_frames(spark_tree, "train")


def test_split_without_images(spark_tree):
    text = message_of(list_frames, spark_tree, "vla")
    assert "'vla' has no image" in text
    assert "did you mean 'val'" in text
    shutil.rmtree(spark_tree / "mask")
    assert "9 of 9 masks" in message_of(list_frames, spark_tree, "val", kind=UserFileNotFoundError)


def test_new_satellites_come_last():
    names = ["Zarya", "XMM Newton", "Aeolus", "VenusExpress"]
    assert satellite_order(names) == ["VenusExpress", "XMM Newton", "Aeolus", "Zarya"]
    assert len(SATELLITES) == 10


def test_many_files_are_listed_quickly(tmp_path):
    for kind, ending in (("images", "img"), ("mask", "layer")):
        for satellite in SATELLITES[:4]:
            folder = tmp_path / kind / satellite / "train"
            folder.mkdir(parents=True)
            for k in range(2000):
                (folder / f"image_{k:05d}_{ending}.jpg").touch()
    start = time.process_time()
    frames = list_frames(tmp_path, "train")
    assert time.process_time() - start < 2  # 0.03 s here
    assert [f.id for f in frames] == [
        f"{s}/train/image_{k:05d}" for s in SATELLITES[:4] for k in range(2000)
    ]


def test_fingerprint_follows_the_data(spark_tree):
    first = fingerprint(list_frames(spark_tree, "val"))
    assert first == fingerprint(list_frames(spark_tree, "val"))
    assert first != fingerprint(list_frames(spark_tree, "val")[1:])
    with open(spark_tree / "mask" / "Cheops" / "val" / "image_00001_layer.jpg", "ab") as file:
        file.write(b"\0")
    assert first != fingerprint(list_frames(spark_tree, "val"))


# ------------------------------------------------------------- the test set


def ids(frames) -> list[str]:
    assert all(f.split == "test" and f.mask is None and f.satellite == "" for f in frames)
    return [f.id for f in frames]


THREE = ["test_00000", "test_00001", "test_00002"]


def test_images_beside_inside_given_and_by_environment(spark_tree, monkeypatch, tmp_path):
    beside = spark_tree.parent / "spark-2024-segmentation-test"
    assert ids(list_test_images(spark_tree)) == THREE
    for given in (beside, beside / "stream-1-test", tmp_path / "spark-2024-segmentation-test"):
        assert ids(list_test_images(None, str(given))) == THREE
    inside = spark_tree / "stream-1-test"
    shutil.copytree(beside / "stream-1-test", inside)
    (inside / "test_00002_img.jpg").unlink()
    assert ids(list_test_images(spark_tree)) == THREE[:2]
    monkeypatch.setenv("SPARK_TEST_ROOT", str(beside))
    assert ids(list_test_images(spark_tree)) == THREE
    assert ids(list_test_images(spark_tree, str(inside))) == THREE[:2]


def test_images_one_level_deeper(spark_tree):
    folder = spark_tree.parent / "spark-2024-segmentation-test" / "stream-1-test"
    images = folder.with_name("all")
    folder.rename(images)
    folder.mkdir()
    images.rename(folder / "images")
    assert ids(list_test_images(spark_tree)) == THREE
    assert ids(list_test_images(None, str(folder))) == THREE


def test_any_folder_of_images(tmp_path):
    for name in ("b.JPG", "a.png", "c_img.jpeg", "._a.png", "boxes.csv"):
        (tmp_path / name).write_bytes(b"x")
    assert ids(list_test_images(None, str(tmp_path))) == ["a", "b", "c"]
    assert ids(list_test_images(None, str(tmp_path / "b.JPG"))) == ["b"]
    (tmp_path / "c.png").write_bytes(b"x")
    assert "one name" in message_of(list_test_images, None, str(tmp_path))


def test_no_test_set(spark_tree, tmp_path, monkeypatch):
    shutil.rmtree(spark_tree.parent / "spark-2024-segmentation-test")
    text = message_of(list_test_images, spark_tree, kind=UserFileNotFoundError)
    assert "SPARK_TEST_ROOT" in text
    assert str(spark_tree) in text
    gone = str(tmp_path / "gone")
    assert "gone" in message_of(list_test_images, None, gone, kind=UserFileNotFoundError)
    assert "no image" in message_of(list_test_images, None, str(spark_tree))
    monkeypatch.setenv("SPARK_TEST_ROOT", gone)
    assert "SPARK_TEST_ROOT" in message_of(list_test_images, None, kind=UserFileNotFoundError)


def test_real_samples(spark_samples: Path):
    root = find_root(str(spark_samples))
    frames = list_frames(root, "val")
    assert len(frames) == 10
    assert frames[-1].satellite == "XMM Newton"
    assert len(list_test_images(root)) == 20
    assert "splits found: val" in message_of(list_frames, root, "train")
