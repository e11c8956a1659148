"""One of two processes cannot write: both end soon, one line says why, and what was saved stays whole."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from ranks import Group, Template

from spark_seg.engine.folder import damage, read_state

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
OPTIONS: dict[str, Any] = {**tiny.SMALL_MODEL, "precision": "fp32", "epochs": 1}
CONFIG = "segformer_b0_spark"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Template]:
    with Template(tmp_path_factory.mktemp("ranks")) as one:
        yield one


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tree(tmp_path_factory.mktemp("data") / "tree", train=4, val=1, size=64)


@pytest.fixture(scope="module")
def trained(template: Template, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of one epoch."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    arguments = [CONFIG, "--work-dir", str(folder), *tiny.command_options(tree, OPTIONS)]
    template.start("train", arguments).done()
    return folder


def told_once(group: Group, rank: int = 0) -> str:
    """Both end with a code within a minute of each other; the one line of rank 0 that says why.

    Where it was rank 1 that failed, it tells its own error too.
    """
    end = time.monotonic() + 240
    while all(group.code(rank) is None for rank in range(2)):
        assert time.monotonic() < end, group.output()
        time.sleep(0.05)
    codes = group.wait(60)
    assert all(code > 0 for code in codes), group.output()
    texts = [group.text(0).splitlines(), group.text(1).splitlines()]
    errors = [[line for line in lines if line.startswith("error: ")] for lines in texts]
    assert [len(lines) for lines in errors] == [1, rank], group.output()
    assert not [line for lines in texts for line in lines if "Traceback" in line], group.output()
    return errors[0][0]


def test_metrics_cannot_be_written(template: Template, tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    metrics = folder / "metrics.jsonl"
    metrics.symlink_to("/dev/full")
    arguments = [CONFIG, "--work-dir", str(folder), *tiny.command_options(tree, OPTIONS)]
    told = told_once(template.start("train", arguments))
    assert f"no room left while writing {metrics}" in told


def test_checkpoint_cannot_be_written(template: Template, tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = [CONFIG, "--work-dir", str(folder)]
    template.start("train", [*arguments, *tiny.command_options(tree, OPTIONS)]).done()
    last = folder / "checkpoints" / "last"
    assert read_state(last)["epoch"] == 1
    arguments += ["--resume", *tiny.command_options(tree, {**OPTIONS, "epochs": 2})]
    group = template.start("rank_tasks:failing", ["disk", 0, "train", arguments])
    assert f"no room left while writing {last}" in told_once(group)
    assert damage(last) is None
    assert read_state(last)["epoch"] == 1
    assert not last.with_name("last.tmp").exists()


def test_no_loss_of_one_is_finite(template: Template, tree: Path, tmp_path: Path) -> None:
    """Both stop after as many steps, and the line names the frames of both."""
    options = {**OPTIONS, "max_skipped": 2}
    arguments = [CONFIG, "--work-dir", str(tmp_path), *tiny.command_options(tree, options)]
    group = template.start("rank_tasks:failing", ["loss", 1, "train", arguments])
    assert all(code > 0 for code in group.wait(240)), group.output()
    told = next(line for line in group.text(0).splitlines() if line.startswith("error: "))
    assert "2 steps in a row had a loss or gradient that is not finite" in told
    assert told.count("/image_") == 4, "two frames on each"
    assert not (tmp_path / "checkpoints" / "last").exists()


def infer_arguments(tree: Path, trained: Path, out: Path) -> list[str]:
    model = trained / "checkpoints" / "best.safetensors"
    return [CONFIG, str(model), "--out", str(out), *tiny.command_options(tree, tiny.SMALL_MODEL)]


def test_zip_cannot_be_written(
    template: Template, tree: Path, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "submission.zip.tmp").symlink_to("/dev/full")
    told = told_once(template.start("infer", infer_arguments(tree, trained, out)))
    assert f"no room left while writing {out / 'submission.zip'}" in told
    template.start("infer", infer_arguments(tree, trained, out)).done()
    assert (out / "submission.zip").is_file(), "started again it goes on"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_prediction_cannot_be_written(
    rank: int, template: Template, tree: Path, trained: Path, tmp_path: Path
) -> None:
    arguments = infer_arguments(tree, trained, tmp_path / "out")
    group = template.start("rank_tasks:failing", ["prediction", rank, "infer", arguments])
    assert "no room left while writing" in told_once(group, rank)
    assert not (tmp_path / "out" / "submission.zip").exists()


@pytest.mark.parametrize(("how", "code"), [("well", 0), ("mistake", 2), ("interrupt", 130)])
def test_the_end_is_not_torchs_teardown(
    template: Template, tmp_path: Path, how: str, code: int
) -> None:
    """Which was seen to abort. What is to be done at the exit is done, and each process has its own code."""
    group = template.start("rank_tasks:ending", [how, str(tmp_path)])
    assert group.wait(60) == [code, code], group.output()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{how}0", f"{how}1"]
    for rank in (0, 1):
        assert ("error: " in group.text(rank)) == (code != 0)
        assert "Traceback" not in group.text(rank)
