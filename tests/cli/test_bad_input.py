"""What can be wrong with data, checkpoints and folders: one line each on stderr, exit code 2, nothing lost."""

import errno
import logging
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tiny
import torch

from spark_seg.cli import run

ONE_IMAGE = "images/Cheops/{split}/image_00001_img.jpg"
ONE_MASK = "mask/Cheops/{split}/image_00001_layer.jpg"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tree(tmp_path_factory.mktemp("data") / "tree", train=2, val=2, size=64)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Path:
    """A b0 with random weights whose predictions hold all classes."""
    from mmseg.registry import MODELS

    from spark_seg.engine.checkpoints import save_safetensors

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    model = MODELS.build(tiny.tiny_config(tree, folder).model)
    model.init_weights()
    torch.nn.init.normal_(model.decode_head.conv_seg.weight, std=1.0)
    save_safetensors(model.state_dict(), folder / "best.safetensors")
    return folder / "best.safetensors"


class Command:
    """Runs a command in this process, as `tools/NAME.py` does."""

    def __init__(self, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self.capsys, self.folder = capsys, folder

    def __call__(
        self, name: str, tree: Path, *args: str, single: bool = True, **options: Any
    ) -> tuple[int, str, str]:
        given = {k.replace("__", "."): v for k, v in options.items()}
        common = ["--work-dir", str(self.folder / "work")]
        if single:
            common += ["--strategy", "single"]
        with pytest.raises(SystemExit) as e:
            run(name, ["segformer_b0_spark", *args, *common, *tiny.command_options(tree, given)])
        said = self.capsys.readouterr()
        return int(e.value.code or 0), said.out, said.err

    def fails(self, name: str, tree: Path, *args: str, code: int = 2, **options: Any) -> str:
        """The one line of a command that must fail."""
        found, _, err = self(name, tree, *args, **options)
        assert found == code, err
        assert "Traceback" not in err
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, err
        assert err.rstrip().endswith(errors[0]), "it is the last thing said"
        return errors[0]


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Command:
    for name in ("SPARK_DATA_ROOT", "SPARK_TEST_ROOT"):
        monkeypatch.delenv(name, raising=False)
    # mmengine's loggers outlive a test, and with them the stream that pytest has closed since
    monkeypatch.setattr(logging, "raiseExceptions", False)
    return Command(capsys, tmp_path)


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
    assert "subset=50: there are 4 frames" in command.fails("train", tree, subset=50)
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


@pytest.mark.parametrize("dtype", ["bool", "uint8"])
def test_interrupted_inference_goes_on_to_the_same_zip(
    dtype: str,
    command: Command,
    tree: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from spark_seg.submission.writer import SubmissionWriter

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    code, out, err = command("infer", tree, str(weights), "--out", str(whole), "--dtype", dtype)
    assert code == 0, err
    assert f"submission: {whole / 'submission.zip'}" in out
    add, added = SubmissionWriter.add, []

    def stop_after_two(self: Any, name: Any, labels: Any) -> None:
        if len(added) == 2:
            raise KeyboardInterrupt
        added.append(name)
        add(self, name, labels)

    monkeypatch.setattr(SubmissionWriter, "add", stop_after_two)
    args = (str(weights), "--out", str(parts), "--dtype", dtype)
    assert "interrupted" in command.fails("infer", tree, *args, code=130)
    assert not (parts / "submission.zip").exists()
    again: list[Any] = []
    monkeypatch.setattr(
        SubmissionWriter,
        "add",
        lambda self, name, labels: (again.append(name), add(self, name, labels)),
    )
    code, _, err = command("infer", tree, *args)
    assert code == 0, err
    assert "2 of 3 images are done, going on" in err
    assert len(again) == 1
    assert (parts / "submission.zip").read_bytes() == (whole / "submission.zip").read_bytes()
    assert [p.name for p in parts.iterdir()] == ["submission.zip"]
    with zipfile.ZipFile(whole / "submission.zip") as archive:
        assert archive.namelist() == [f"test_{i:05d}_layer.npz" for i in range(3)]
        arrays = [np.load(archive.open(n))["data"] for n in archive.namelist()]
    assert [a.shape for a in arrays] == [(64, 85, 3), (64, 64, 3), (64, 64, 3)]
    assert {a.dtype.name for a in arrays} == {dtype}


def test_other_options_start_afresh(
    command: Command, tree: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = (str(weights), "--out", str(tmp_path / "o"), "--keep-npz")
    code, _, err = command("infer", tree, *args)
    assert code == 0, err
    code, _, err = command("infer", tree, *args, "--overlays", "2")
    assert code == 0, err
    assert len(list((tmp_path / "o" / "overlays").glob("*.png"))) == 2
    code, _, err = command("infer", tree, *args, image_size=96)
    assert "starting afresh" in err


def test_disk_full_while_writing_the_zip(
    command: Command, tree: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "o"
    args = (str(weights), "--out", str(out))
    code, _, err = command("infer", tree, *args)
    assert code == 0, err
    before = (out / "submission.zip").read_bytes()

    write = zipfile.ZipFile.writestr

    def full(self: zipfile.ZipFile, *args: Any, **options: Any) -> None:
        if "submission.zip" in str(self.filename):  # a member is a zip too, made in memory
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "writestr", full)
        told = command.fails("infer", tree, *args)
    assert "no room left while writing" in told
    assert "submission.zip" in told
    assert (out / "submission.zip").read_bytes() == before, "the older zip is kept"
    assert not list(out.glob("*.tmp"))
    code, _, err = command("infer", tree, *args)
    assert code == 0, err
    assert "3 of 3 images are done, going on" in err


def test_images_that_are_not_there(
    command: Command, tree: Path, weights: Path, tmp_path: Path
) -> None:
    args = (str(weights), "--out", str(tmp_path / "o"), "--images")
    assert "there is no such folder" in command.fails("infer", tree, *args, str(tmp_path / "no"))
    (tmp_path / "bare").mkdir()
    assert "no image" in command.fails("infer", tree, *args, str(tmp_path / "bare"))


# -- the whole way --------------------------------------------------------------------------------------------------


def test_train_test_infer_and_a_runs_own_config(
    command: Command, tree: Path, tmp_path: Path
) -> None:
    """The three commands with DeepSpeed, the checkpoint found by itself; then again from the run's config.py."""
    code, out, err = command("train", tree, "--seed", "7", single=False, epochs=1)
    assert code == 0, err
    work = tmp_path / "work"
    assert f"best checkpoint: {work / 'checkpoints' / 'best.safetensors'}" in out
    assert "config: seed: 42 -> 7" in out
    code, out, err = command("test", tree, single=False)
    assert code == 0, err
    assert "IoU" in out
    assert {"metrics.json", "counts.npz", "overlays.png"} <= {
        p.name for p in (work / "test_val").iterdir()
    }
    own = str(work / "config.py")
    for args in (["test", own, "--split", "train"], ["infer", own, "--out", str(tmp_path / "o")]):
        with pytest.raises(SystemExit) as e:
            run(args[0], args[1:])
        assert not e.value.code, command.capsys.readouterr().err
    assert (work / "test_train" / "metrics.json").is_file()
    assert (tmp_path / "o" / "submission.zip").is_file()
