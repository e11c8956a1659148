"""Training, evaluation and inference through sbatch on two nodes."""

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cluster import Cluster
from tiny import command_options

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).resolve().parents[2]
CONFIG = "segformer_b0_spark"


def submit(slurm: Cluster, command: str, *args: str, cwd: Path, nodes: int = 2, **env: str) -> int:
    """`sbatch tools/dist_COMMAND_slurm.sh ARGS`, one task on each node."""
    return slurm.submit(
        ROOT / "tools" / f"dist_{command}_slurm.sh",
        *args,
        options=(f"-N{nodes}", f"-n{nodes}"),
        cwd=cwd,
        PYTHON=sys.executable,
        **env,
    )


@pytest.fixture(scope="module")
def trained(slurm: Cluster, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a training on two nodes, one task each, whose config and numbers came from variables."""
    folder = tmp_path_factory.mktemp("runs")
    variables = ("data_root=", "image_size=", "batch_size=", "epochs=", "lr=")
    options = [o for o in command_options(tree) if not o.startswith(variables)]
    job = submit(
        slurm,
        "train",
        *("--work-dir", str(folder / "run"), *options),
        cwd=folder,
        SPARK_DATA_ROOT=str(tree),
        SEGFORMER_VARIANT="b0",
        IMAGE_SIZE="64",
        BATCH_SIZE="2",
        EPOCHS="2",
        LR="0.002",
    )
    output = slurm.completed(job, timeout=900)
    config = json.loads((folder / "run" / "training_params.json").read_text())["config"]
    assert [config[key] for key in ("variant", "image_size", "batch_size", "epochs", "lr")] == [
        "b0",
        64,
        2,
        2,
        0.002,
    ]
    assert "effective batch 4 (2 x 2 process(es)), 2 steps an epoch, 4 in all" in output
    assert output.count("epoch 2/2, step 2/2") == 1, output  # 8 frames, 2 nodes, 2 each; one speaks
    return folder / "run"


def test_training_leaves_a_checkpoint_that_evaluates_alone(
    slurm: Cluster, trained: Path, tree: Path
) -> None:
    done = slurm.run(
        *(sys.executable, str(ROOT / "tools/test.py"), CONFIG, "--work-dir", str(trained)),
        *("--out", str(trained / "alone"), *command_options(tree)),
        timeout=900,
    )
    assert "mIoU" in done.stdout
    best = json.loads((trained / "checkpoints/best.json").read_text())
    alone = json.loads((trained / "alone/metrics.json").read_text())
    assert alone["mIoU/foreground"] == pytest.approx(best["mIoU/foreground"], abs=1e-9)


def test_evaluation_over_two_nodes_counts_each_image_once(
    slurm: Cluster, trained: Path, tree: Path, tmp_path: Path
) -> None:
    """7 images over 2 processes: the sampler pads, the counts do not; equal to one process's, image by image."""
    model = trained / "checkpoints/best.safetensors"
    counts = []
    for nodes in (1, 2):
        out = tmp_path / f"on{nodes}"
        args = (CONFIG, "--out", str(out), *command_options(tree))
        job = submit(slurm, "test", *args, cwd=tmp_path, nodes=nodes, MODEL_PATH=str(model))
        slurm.completed(job)
        counts.append(np.load(out / "counts.npz"))
    one, two = counts
    assert len(one["ids"]) == 7
    assert one["ids"].tolist() == two["ids"].tolist()
    np.testing.assert_array_equal(one["confusion"], two["confusion"])


def test_inference_over_two_nodes_writes_the_same_zip(
    slurm: Cluster, trained: Path, tree: Path, tmp_path: Path
) -> None:
    """5 images over 2 processes: every member there, equal to one process's, bit by bit."""
    model = trained / "checkpoints/best.safetensors"
    zips = []
    for nodes in (1, 2):
        out = tmp_path / f"on{nodes}"
        args = (CONFIG, "--out", str(out), *command_options(tree))
        job = submit(slurm, "infer", *args, cwd=tmp_path, nodes=nodes, MODEL_PATH=str(model))
        slurm.completed(job)
        with zipfile.ZipFile(out / "submission.zip") as file:
            zips.append({name: file.read(name) for name in file.namelist()})
    assert len(zips[0]) == 5
    assert zips[0] == zips[1]


def test_training_by_hand_inside_an_allocation(slurm: Cluster, tree: Path, tmp_path: Path) -> None:
    """`srun python tools/train.py CONFIG` in an salloc shell."""
    run = tmp_path / "run"
    train = [sys.executable, str(ROOT / "tools/train.py"), CONFIG, "--work-dir", str(run)]
    options = command_options(tree, {"epochs": 1})
    done = slurm.run(*("salloc", "-N2", "-n2", "srun", *train, *options), cwd=tmp_path, timeout=900)
    assert done.stdout.count("epoch 1/1, step 2/2") == 1
    assert (run / "checkpoints/best.safetensors").is_file()


def test_single_strategy_is_refused(slurm: Cluster, tree: Path, tmp_path: Path) -> None:
    """Two processes that know nothing of each other would write one folder."""
    args = (CONFIG, "--strategy", "single", *command_options(tree))
    job = submit(slurm, "train", *args, cwd=tmp_path)
    assert slurm.wait(job) == "FAILED"
    assert "error: --strategy single runs in one process and 2 were started" in slurm.output(job)
    assert not list(tmp_path.glob("work_dirs/*/checkpoints"))
