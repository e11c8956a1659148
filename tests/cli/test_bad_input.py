"""What can be wrong with data, checkpoints and folders: one line each on stderr, exit code 2, nothing lost."""

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny
import torch
from commands import Command

from spark_seg.cli import run

ONE_IMAGE = "images/Cheops/{split}/image_00001_img.jpg"
ONE_MASK = "mask/Cheops/{split}/image_00001_layer.jpg"


@pytest.fixture
def damaged(tree: Path, tmp_path: Path) -> Path:
    """A copy of the tree that a test may spoil."""
    return tiny.copy_tree(tree, tmp_path / "spoilt")


# -- the tree -------------------------------------------------------------------------------------------------------


def test_no_data_root(command: Command, tree: Path) -> None:
    told = command.fails("train", tree, data_root=None)
    assert "no data root: set the environment variable SPARK_DATA_ROOT" in told


def test_missing_data_root(command: Command, tmp_path: Path) -> None:
    told = command.fails("train", tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere'} does not exist" in told


def test_root_of_the_wrong_shape(command: Command, tmp_path: Path) -> None:
    (tmp_path / "other" / "photos").mkdir(parents=True)
    told = command.fails("train", tmp_path / "other")
    assert "is no SPARK tree" in told
    assert "photos/" in told


def test_split_without_an_image(command: Command, damaged: Path) -> None:
    for images in damaged.glob("images/*/val"):
        shutil.rmtree(images)
    assert "the split 'val' has no image" in command.fails("train", damaged)


def test_missing_masks(command: Command, damaged: Path) -> None:
    masks = sorted(damaged.glob("mask/*/train/*"))
    for mask in masks[:2]:
        mask.unlink()
    told = command.fails("train", damaged)
    assert "2 of 4 masks of the split 'train' are missing" in told
    assert "mask/Cheops/train/image_00000_layer.jpg" in told


@pytest.mark.parametrize("split", ["vla", "test"])
def test_unknown_split(split: str, command: Command, tree: Path, weights: Path) -> None:
    told = command.fails("test", tree, str(weights), "--split", split)
    assert f"{split!r}" in told


def test_more_than_there_is(command: Command, tree: Path) -> None:
    assert "subset=50: the split train has 4 frames: give 1 to 4" in command.fails(
        "train", tree, subset=50
    )
    told = command.fails("train", tree, batch_size=5)
    assert "batch_size=5 is more than the 4 frames" in told


def test_unknown_metric_is_told_before_training(command: Command, tree: Path) -> None:
    assert "'mIoU/foreground'" in command.fails("train", tree, save_best="mIoU/forground")
    assert not (command.folder / "work").exists()


# -- one file -------------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("no picture")


def other_size(path: Path) -> None:
    tiny.write_jpg(path, np.zeros((32, 64, 3), np.uint8))


def photograph(path: Path) -> None:
    tiny.write_jpg(path, np.full((64, 64, 3), (90, 160, 120), np.uint8))


SPOILT: list[tuple[str, Callable[[Path], None], str]] = [
    (ONE_IMAGE, truncate, "truncated"),
    (ONE_IMAGE, empty, "empty"),
    (ONE_IMAGE, text, "not an image"),
    (ONE_MASK, truncate, "truncated"),
    (ONE_MASK, empty, "empty"),
    (ONE_MASK, other_size, "has 64x64 pixels but its mask"),
    (ONE_MASK, photograph, ""),
]


@pytest.mark.parametrize(("which", "spoil", "says"), SPOILT)
def test_spoilt_file_in_an_evaluation(
    which: str,
    spoil: Callable[[Path], None],
    says: str,
    command: Command,
    damaged: Path,
    weights: Path,
) -> None:
    path = damaged / which.format(split="val")
    spoil(path)
    told = command.fails("test", damaged, str(weights))
    assert str(path) in told
    assert says in told


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("which", "spoil", "says"), SPOILT[3:6:2] + SPOILT[:1])
def test_spoilt_file_in_training(
    which: str,
    spoil: Callable[[Path], None],
    says: str,
    workers: int,
    command: Command,
    damaged: Path,
) -> None:
    """Also where it happens inside a loader's worker, whose error comes wrapped in a traceback."""
    path = damaged / which.format(split="train")
    spoil(path)
    told = command.fails("train", damaged, num_workers=workers)
    assert str(path) in told
    assert says in told


def test_png_named_jpg_works(command: Command, damaged: Path, weights: Path) -> None:
    for which in (ONE_IMAGE, ONE_MASK):
        path = damaged / which.format(split="val")
        done, data = cv2.imencode(".png", cv2.imread(str(path)))
        assert done
        path.write_bytes(data.tobytes())
    code, out, err = command("test", damaged, str(weights))
    assert code == 0, err
    assert "mIoU/foreground" in out


# -- folders and checkpoints ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train", "test", "infer"])
def test_file_in_the_output_folders_place(
    name: str, command: Command, tree: Path, weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file")
    where = tmp_path / "taken" / "deeper"
    if name == "train":
        with pytest.raises(SystemExit) as e:
            run(
                "train",
                ["segformer_b0_spark", "--work-dir", str(where), *tiny.command_options(tree)],
            )
        assert e.value.code == 2
        told = command.capsys.readouterr().err.splitlines()[-1]
    else:
        told = command.fails(name, tree, str(weights), "--out", str(where))
    assert "cannot write" in told
    assert str(where) in told
    assert (tmp_path / "taken").read_text() == "a file"


def test_no_checkpoint_yet(command: Command, tree: Path, tmp_path: Path) -> None:
    told = command.fails("test", tree)
    assert "no checkpoint given and none in" in told
    (tmp_path / "best.pth").touch()
    told = command.fails("test", tree, str(tmp_path / "bets.pth"))
    assert "did you mean 'best.pth'" in told


def test_checkpoint_of_another_variant_or_class_count(
    command: Command, tree: Path, weights: Path, tmp_path: Path
) -> None:
    told = command.fails("test", tree, str(weights), num_classes=5)
    assert "was trained for 3 classes, the config has 5" in told
    options = {
        "model.backbone.embed_dims": 64,
        "model.decode_head.in_channels": [64, 128, 320, 512],
    }
    told = command.fails("infer", tree, str(weights), "--out", str(tmp_path / "o"), **options)
    assert "is a SegFormer b0, the config builds b1" in told


class Bomb:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return (open, (str(self.trace), "w"))


def test_checkpoint_that_would_run_code(
    command: Command, tree: Path, weights: Path, tmp_path: Path
) -> None:
    from spark_seg.engine.checkpoints import load_state_dict

    trace, path = tmp_path / "it-ran", tmp_path / "foreign.pth"
    torch.save({"state_dict": load_state_dict(weights), "extra": Bomb(trace)}, path)
    for name in ("test", "infer"):
        told = command.fails(name, tree, str(path), "--out", str(tmp_path / "o"))
        assert "could run code" in told
    assert not trace.exists()
    code, _, err = command("test", tree, str(path), "--trust-checkpoint")
    assert code == 0, err
    assert trace.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"loss,epoch\n", "not a file that torch.save wrote"),
        (b"PK\x03\x04" + b"0" * 99, "truncated"),
    ],
)
def test_checkpoint_that_is_none(
    content: bytes, says: str, command: Command, tree: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    told = command.fails("test", tree, str(path))
    assert str(path) in told
    assert says in told


# -- inference ------------------------------------------------------------------------------------------------------
