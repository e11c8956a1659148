"""infer.py interrupted, with other options, on a full disk; and the chain of train, test and infer."""

import errno
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Command

from spark_seg.cli import run


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
    for args in (["test", own, "--split", "train"], ["infer", own]):
        with pytest.raises(SystemExit) as e:
            run(args[0], args[1:])
        assert not e.value.code, command.capsys.readouterr().err
    assert (work / "test_train" / "metrics.json").is_file()
    assert (work / "submission" / "submission.zip").is_file(), "the run's own, unasked"
