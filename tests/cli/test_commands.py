"""Every command answers at once, and names the nearest word after a slip."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from spark_seg.cli import COMMANDS, call, main, run

ROOT = Path(__file__).resolve().parents[2]
TOOLS = sorted((ROOT / "tools").glob("*.py"))
_HELP = """
import sys
from spark_seg.cli import run
try:
    run(sys.argv[1], ["--help"])
except SystemExit as e:
    heavy = {"torch", "mmengine", "mmseg", "mmcv", "deepspeed", "matplotlib", "cv2"} & sys.modules.keys()
    print("code", e.code, "heavy", sorted(heavy))
"""


def test_every_command_has_its_tool() -> None:
    assert {path.stem for path in TOOLS} == set(COMMANDS)


@pytest.mark.parametrize("path", TOOLS, ids=lambda p: p.stem)
def test_help_within_a_second(path: Path) -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("usage: ")
        if seconds[-1] < 1:
            break
    assert min(seconds) < 1


@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_nothing_heavy(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HELP, name], capture_output=True, text=True, cwd=ROOT
    )
    last = done.stdout.splitlines()[-1]
    assert last in ("code 0 heavy []", "code None heavy []"), last + done.stderr


def fails(capsys: pytest.CaptureFixture[str], name: str, *args: str) -> str:
    """The one error line of a command that must fail."""
    with pytest.raises(SystemExit) as e:
        run(name, args)
    assert e.value.code == 2
    errors = [s for s in capsys.readouterr().err.splitlines() if "error: " in s]
    assert len(errors) == 1, errors
    return errors[0]


@pytest.mark.parametrize("name", ["train", "test", "infer", "make_demo_data", "check_dataset"])
def test_unknown_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    needed = {"infer": ["--out", "o"], "make_demo_data": ["--out", "o"]}.get(name, [])
    told = fails(capsys, name, "segformer_b0_spark", *needed, "--work-dri", "x")
    assert "--work-dri" in told


@pytest.mark.parametrize("name", ["train", "test", "infer"])
def test_unknown_option_names_the_nearest(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = fails(capsys, name, "segformer_b0_spark", "--out=o", "--work-dri", "x")
    assert "did you mean '--work-dir'" in told or "'--out=o'" in told
    assert "did you mean" in fails(capsys, "infer", "b0", "--out", "o", "--work-dri", "x")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["train"], "config"),
        (["train", "segformer_b9_spark"], "did you mean"),
        (["train", "segformer_b0_spark", "--strategy", "ddp"], "'ddp'"),
        (["train", "segformer_b0_spark", "--seed", "x"], "--seed"),
        (["train", "segformer_b0_spark", "--work", "x"], "unknown argument '--work'"),
        (["train", "segformer_b0_spark", "--cfg-options", "image_size"], "key=value"),
        (["train", "segformer_b0_spark", "--cfg-options", "image_siz=3"], "'image_size'"),
        (["infer", "segformer_b0_spark", "--work-dir", "none"], "no checkpoint given and none in"),
        (["infer", "segformer_b0_spark", "--out", "o", "--dtype", "float"], "'float'"),
    ],
)
def test_wrong_command_lines(
    args: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = fails(capsys, *args)
    assert told.startswith("error: ")
    assert says in told


def test_no_gpu_where_one_was_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    told = fails(capsys, "train", "segformer_b0_spark", "--device", "cuda")
    assert told.startswith("error: --device cuda: torch sees no GPU")


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ([], 2, "usage: spark-seg COMMAND"),
        (["--help"], 0, "make-demo-data"),
        (["trian"], 2, "no command 'trian'; did you mean 'train'"),
        (["make-demo-dat"], 2, "did you mean 'make-demo-data'"),
        (["train", "--help"], 0, "usage: train"),
        (["make-demo-data", "--help"], 0, "usage: make_demo_data"),
        (["train", "nowhere"], 2, "no config file"),
    ],
)
def test_console_command(
    args: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as e:
        main(args)
    assert (e.value.code or 0) == code
    said = capsys.readouterr()
    assert says in said.out + said.err


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from spark_seg.cli import train

    def broken(argv: object) -> int:
        raise ValueError("not a UserError")

    monkeypatch.setattr(train, "main", broken)
    with pytest.raises(ValueError, match="not a UserError"):
        run("train", [])


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("check_dataset", ["--split", "val"], "did you mean '--splits'"),
        ("check_dataset", ["--limit", "some"], "invalid int value"),
        ("make_demo_data", ["--out", "x", "--image", "3"], "did you mean '--images'"),
        ("make_demo_data", [], "--out"),
    ],
)
def test_commands_over_data_name_the_nearest_option(
    capsys: pytest.CaptureFixture[str], name: str, args: list[str], message: str
) -> None:
    assert message in fails(capsys, name, *args)


def failing(error: Exception) -> Callable[[list[str] | None], int]:
    def command(argv: list[str] | None = None) -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("code", "name", "told"),
    [
        (errno.EACCES, "there.csv", "cannot read {} (Permission denied)"),
        (errno.EIO, "there.csv", "cannot read {} (Input/output error)"),
        (errno.ENOENT, "none.csv", "cannot read {} (No such file or directory)"),
        (errno.EISDIR, ".", "cannot read {} (Is a directory)"),
        (errno.ESTALE, "none/none.csv", "cannot read {} (Stale file handle)"),
        (errno.EROFS, "there.csv", "cannot write {} (Read-only file system)"),
        (errno.ENOSPC, "there.csv", "no room left while writing {} (No space left on device)"),
    ],
)
def test_a_file_that_cannot_be_opened_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], code: int, name: str, told: str
) -> None:
    (tmp_path / "there.csv").write_text("")
    path = str(tmp_path / name)
    with pytest.raises(SystemExit) as e:
        call(failing(OSError(code, os.strerror(code), path)))
    assert e.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: " + told.format(path))


@pytest.mark.parametrize(("there", "kind"), [("there.csv", os.R_OK), ("none.csv", 0)])
def test_what_can_be_read_but_not_written_was_to_be_written(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    there: str,
    kind: int,
) -> None:
    (tmp_path / "there.csv").write_text("")
    monkeypatch.setattr(os, "access", lambda path, mode: mode == kind)
    with pytest.raises(SystemExit):
        call(failing(PermissionError(errno.EACCES, "no", str(tmp_path / there))))
    assert f"cannot write {tmp_path / there}" in capsys.readouterr().err


def test_a_full_gpu_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    said = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.78 GiB."
    with pytest.raises(SystemExit) as e:
        call(failing(torch.OutOfMemoryError(said)))
    assert e.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: CUDA out of memory: use a smaller batch_size, val_batch_size or")
    with pytest.raises(RuntimeError, match="ours"):
        call(failing(RuntimeError("ours")))


def test_an_error_that_is_ours_keeps_its_traceback() -> None:
    with pytest.raises(OSError, match="ours"):
        call(failing(OSError(errno.EBADF, "ours")))
