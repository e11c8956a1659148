"""`bash tools/dist_train.sh CONFIG N`: torchrun on one node, here two CPU processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import command_options, make_tree

ROOT = Path(__file__).resolve().parents[2]


def script(tmp_path: Path, name: str, *args: str, **more: str) -> subprocess.CompletedProcess[str]:
    drop = ("SLURM_", "TORCHELASTIC", "MASTER_", "SPARK_")
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    env = {k: v for k, v in os.environ.items() if not k.startswith(drop) and k not in names}
    env |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHON": sys.executable}
    return subprocess.run(
        ["bash", str(ROOT / "tools" / name), *args],
        cwd=tmp_path,
        env=env | more,
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_train_test_infer_in_two_processes(tmp_path: Path) -> None:
    """All three, with staging and variables, and one process that speaks."""
    tree = make_tree(tmp_path / "tree")
    options = command_options(tree, {"epochs": 1})
    common = ("segformer_b0_spark", "2", "--work-dir", "run", *options)
    trained = script(
        tmp_path, "dist_train.sh", *common, "--stage-to", str(tmp_path / "local"), BATCH_SIZE="4"
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert trained.stdout.count("config: batch_size: 8 -> 2") == 1  # the command line goes first
    assert trained.stdout.count("epoch 1/1, step 2/2") == 1
    assert "staged" in trained.stdout
    best = tmp_path / "run/checkpoints/best.safetensors"
    assert best.is_file()
    tested = script(tmp_path, "dist_test.sh", *common, MODEL_PATH=str(best))
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert (tmp_path / "run/test_val/metrics.json").is_file()
    inferred = script(tmp_path, "dist_infer.sh", *common)
    assert inferred.returncode == 0, inferred.stdout + inferred.stderr
    assert (tmp_path / "run/submission/submission.zip").is_file()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_single_is_refused_in_two_processes(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    options = ("--strategy", "single", "--work-dir", "run", *command_options(tree))
    done = script(tmp_path, "dist_train.sh", "segformer_b0_spark", "2", *options)
    assert done.returncode != 0
    assert "--strategy single runs in one process and 2 were started" in done.stderr
    assert not (tmp_path / "run/checkpoints").exists()
