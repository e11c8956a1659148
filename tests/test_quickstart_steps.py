"""Which steps of tools/quickstart.sh run again, and which are told as done; with a stand-in for Python."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RUN = Path("work_dirs/segformer_b0_spark_demo")
# Notes what is called and leaves what the real command would leave; a training stops where STOP is set.
PYTHON = f"""#!/usr/bin/env bash
echo "$@" ${{SPARK_TEST_ROOT-}} ${{SPARK_STAGE_DIR-}} >>calls
leave() {{ mkdir -p "$(dirname "$1")" && date +%N >"$1"; }}
case "$*" in
*cuda.is_available*) exit "${{NO_GPU:-1}}" ;;
*tools/train.py*) [ -z "$STOP" ] || exit 1; leave {RUN}/checkpoints/best.safetensors ;;
*tools/test.py*) leave {RUN}/test_val/table.txt ;;
*tools/infer.py*) leave {RUN}/submission/submission.zip ;;
esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for folder in ("configs", "spark_seg", "tools"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    (tmp_path / "tools" / "setup_env.sh").write_text("setup_env() { :; }\n")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path


def quickstart(clone: Path, stop: bool = False) -> tuple[list[str], str]:
    """The tools called, a resumed training as `train.py --resume`, and what was said."""
    (clone / "calls").write_text("")
    done = subprocess.run(
        ["bash", "tools/quickstart.sh"],
        cwd=clone,
        env={**os.environ, "STOP": "1" if stop else ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode != 0) == stop, done.stdout + done.stderr
    calls = []
    for line in (clone / "calls").read_text().splitlines():
        name = next((part for part in line.split() if part.startswith("tools/")), "")
        if name:
            calls.append(name.removeprefix("tools/") + " --resume" * ("--resume" in line))
    return calls, done.stdout


def test_a_second_time_does_nothing_again(clone: Path) -> None:
    assert quickstart(clone)[0] == ["train.py", "test.py", "infer.py"]
    calls, said = quickstart(clone)
    assert calls == []
    assert said.count("done before") == 2


@pytest.mark.parametrize(
    "changed", ["configs/_base_/default_runtime.py", "spark_seg/datasets/demo/render.py"]
)
def test_after_a_pull_it_is_done_anew(changed: str, clone: Path) -> None:
    """Neither the old training nor its table and zip are told as those of the new code."""
    quickstart(clone)
    with open(clone / changed, "a") as file:
        file.write("\n# pulled\n")
    calls, said = quickstart(clone)
    assert calls == ["train.py", "test.py", "infer.py"]
    assert "configs or code are others" in said
    assert quickstart(clone)[0] == []


def test_a_gpu_trains_longer(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the precision that the config chooses there."""
    monkeypatch.setenv("NO_GPU", "0")
    quickstart(clone)
    lines = (clone / "calls").read_text().splitlines()
    train = next(line for line in lines if "train.py" in line)
    assert train.endswith("segformer_b0_spark_demo.py --cfg-options epochs=27 val_every=27")


def test_the_demo_has_data_of_its_own(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever real data the environment names."""
    monkeypatch.setenv("SPARK_TEST_ROOT", "/real/test")
    monkeypatch.setenv("SPARK_STAGE_DIR", "/real/stage")
    quickstart(clone)
    assert "/real" not in (clone / "calls").read_text()


def test_an_interrupted_training_goes_on(clone: Path) -> None:
    assert quickstart(clone, stop=True)[0] == ["train.py"]
    assert quickstart(clone)[0] == ["train.py --resume", "test.py", "infer.py"]


def test_what_does_not_compute_does_not_count(clone: Path) -> None:
    quickstart(clone)
    (clone / "README.md").write_text("pulled")
    (clone / "spark_seg" / "__pycache__").mkdir()
    (clone / "spark_seg" / "__pycache__" / "x.pyc").write_text("compiled")
    assert quickstart(clone)[0] == []


def test_an_environment_whose_making_was_interrupted_is_made_over(tmp_path: Path) -> None:
    """Its python comes first and pip last; what is in it already stays."""
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    for name in ("setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python, half = tmp_path / "python", tmp_path / ".venv" / "bin" / "python"
    half.parent.mkdir(parents=True)
    half.write_text("#!/bin/sh\nexit 0\n")
    python.write_text(
        '#!/bin/sh\n[ "$1 $2" != "-m venv" ] || { echo again >>made; cp "$0" .venv/bin/pip; }\n'
    )
    half.chmod(0o755), python.chmod(0o755)
    for _ in range(2):
        subprocess.run(
            ["bash", "-ec", ". tools/setup_env.sh; setup_env '[fast]'"],
            cwd=tmp_path,
            env={**os.environ, "PYTHON": str(python)},
            check=True,
        )
        assert (tmp_path / "made").read_text() == "again\n"
    assert half.read_text().endswith("exit 0\n")
    half.unlink()
    half.symlink_to(tmp_path / "removed")
    python.write_text(
        '#!/bin/sh\n[ "$1 $2" != "-m venv" ] || { mkdir -p .venv/bin; cp "$0" .venv/bin/pip;'
        ' cp "$0" .venv/bin/python; echo anew >>made; }\n'
    )
    subprocess.run(
        ["bash", "-ec", ". tools/setup_env.sh; setup_env '[fast]'"],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": str(python)},
        check=True,
    )
    assert (tmp_path / "made").read_text() == "again\nanew\n", "its Python was gone"
