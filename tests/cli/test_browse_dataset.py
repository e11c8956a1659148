"""The sheet of samples: what training sees, draw by draw, and a clear line where it cannot be made."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tiny

from spark_seg.cli.browse_dataset import main
from spark_seg.config import load_config
from spark_seg.datasets.browse import browse_sheet
from spark_seg.datasets.sampling import SampleIndex
from spark_seg.datasets.spark import SparkDataset
from spark_seg.errors import UserError


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tree(tmp_path_factory.mktemp("browse") / "tree")


def arguments(tree: Path, out: Path, *more: str) -> list[str]:
    return [tiny.CONFIG, *tiny.command_options(tree), "--out", str(out), *more]


def test_a_sheet_is_written(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"
    more = ["--cfg-options", "mosaic=1.0", "--count", "2", "--draws", "3", "--tile", "64"]
    assert main(arguments(tree, out, *more)) == 0
    sheet = cv2.imread(str(out))
    assert sheet.shape[1] > 6 * 64, "image and labels of three draws"
    assert sheet.shape[0] > 2 * 64
    assert "2 of 8 train frames, 3 draws each (seed" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]


def test_draws_are_the_epochs_of_a_training(tree: Path, tmp_path: Path) -> None:
    cfg = tiny.tiny_config(tree, tmp_path, camera_faults=3)
    sheet, _ = browse_sheet(cfg, ids=["Cheops/train/image_00002"], draws=2, seed=5, tile=64)
    options: dict[str, Any] = {k: v for k, v in cfg.train_dataloader.dataset.items() if k != "type"}
    data = SparkDataset(**options)
    index = [data.get_data_info(i)["sample_id"] for i in range(len(data))].index(
        "Cheops/train/image_00002"
    )
    step = 64 + 6  # a tile and the gap
    for draw in range(2):
        seen = data[SampleIndex(index, (5, draw, index))]["inputs"].numpy().transpose(1, 2, 0)
        left = 6 + 2 * draw * step
        np.testing.assert_array_equal(sheet[28 : 28 + 64, left : left + 64], seen)


def test_validation_is_shown_once(tree: Path, tmp_path: Path) -> None:
    cfg = tiny.tiny_config(tree, tmp_path)
    sheet, shown = browse_sheet(cfg, split="val", count=2, draws=4, tile=64)
    assert sheet.shape[1] == 2 * 70 + 6
    assert shown == "2 of 6 val frames"
    sheet, shown = browse_sheet(cfg, split="val", pipeline="train", count=2, draws=4, tile=64)
    assert sheet.shape[1] == 8 * 70 + 6


@pytest.mark.parametrize(("height", "width"), [(90, 120), (120, 90)])
def test_labels_lie_on_a_padded_picture(height: int, width: int) -> None:
    """The two-pass configs pad a frame that is no square; its labels go the same way."""
    from spark_seg.datasets.browse import _as_the_picture
    from spark_seg.datasets.transforms.roi import ShrinkFrame

    mask = np.zeros((height, width), np.uint8)
    mask[60:84, 8:40] = 1
    image = np.repeat(mask[..., None] * 200, 3, 2).astype(np.uint8)
    roi = load_config("segformer_b0_spark_roi").roi
    sample = ShrinkFrame(128, roi).transform({"img": image})
    labels = _as_the_picture(mask, sample["img"].shape[:2], padded="frame" in sample)
    bright = sample["img"][..., 0] > 100
    assert ((labels == 1) & bright).sum() > 0.9 * ((labels == 1) | bright).sum() > 0
    assert (labels == 255).any(), "outside of the frame"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--count", "0"], "--count 0"),
        (["--split", "test"], "without labels"),
        (["--ids", "Cheops/train/image_0002"], "did you mean"),
        (["--cfg-options", "mosaic=3"], "mosaic must be"),
        (["--ids", "Cheops/train/image_00002", "--count", "2"], "give one of them"),
        (["--split", "val", "--draws", "2"], "draw nothing"),
        (["--cuont", "3"], "did you mean '--count'"),
    ],
)
def test_slips(tree: Path, tmp_path: Path, more: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        main(arguments(tree, tmp_path / "no.png", *more))
    assert said in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        main(arguments(tree, tmp_path / "none" / "sheet.png", "--count", "1", "--draws", "1"))
