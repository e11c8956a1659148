"""Which run a checkpoint is of: what test and infer say of it, and whose results they leave alone."""

from pathlib import Path

import pytest
import tiny

from spark_seg.cli.make_demo_data import main as make_demo_data
from spark_seg.cli.which_run import results_folder, run_of, tell_differences
from spark_seg.config import load_config
from spark_seg.errors import UserError


def run(path: Path, tree: Path, **options: object) -> Path:
    """A run's folder as far as it is looked at."""
    (path / "checkpoints" / "best").mkdir(parents=True)
    (path / "checkpoints" / "best.safetensors").write_bytes(b"")
    cfg = tiny.tiny_config(tree, path, **options)
    (path / "config.py").write_text(cfg.pretty_text)
    return path


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tree(tmp_path_factory.mktemp("data") / "tree")


def test_the_run_of_a_checkpoint(tree: Path, tmp_path: Path) -> None:
    mine = run(tmp_path / "mine", tree)
    for given in (mine, mine / "checkpoints" / "best", mine / "checkpoints" / "best.safetensors"):
        assert run_of(given) == mine
    (tmp_path / "loose.pth").write_bytes(b"")
    assert run_of(tmp_path / "loose.pth") is None


def test_anothers_weights_leave_a_runs_results_alone(tree: Path, tmp_path: Path) -> None:
    mine, other = run(tmp_path / "mine", tree), run(tmp_path / "other", tree)
    assert results_folder(mine, mine / "checkpoints" / "best", "test_val") == mine / "test_val"
    assert results_folder(mine, other, "test_val") == mine / "test_val_other"
    assert results_folder(mine, other, "submission") == mine / "submission_other"
    assert results_folder(tmp_path / "none", other, "test_val") == tmp_path / "none" / "test_val"
    assert results_folder(mine, tmp_path / "loose.pth", "test_train") == mine / "test_train"
    assert results_folder(mine, None, "submission") == mine / "submission"


def test_another_size_is_told(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = run(tmp_path / "mine", tree, image_size=96)
    best = mine / "checkpoints" / "best.safetensors"
    tell_differences(load_config(str(mine / "config.py")), best, str(mine / "config.py"))
    tell_differences(tiny.tiny_config(tree, tmp_path, image_size=96), best, tiny.CONFIG)
    assert capsys.readouterr().err == ""
    cfg = tiny.tiny_config(
        tree, tmp_path, image_size=128, model__data_preprocessor__mean=[36.0, 36.0, 36.0]
    )
    tell_differences(cfg, best, tiny.CONFIG)
    told = capsys.readouterr().err
    assert told.startswith("warning: these weights were trained with image_size=96, now 128; model")
    assert told.count("\n") == 1
    assert f"name {mine / 'config.py'}" in told
    tell_differences(cfg, tmp_path / "loose.pth", tiny.CONFIG)
    (mine / "config.py").write_text("no config")
    tell_differences(cfg, best, tiny.CONFIG)
    assert capsys.readouterr().err == ""


def test_demo_frames_are_not_replaced_unasked(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    small = ["--out", str(out), "--val", "1", "--test", "1", "--size", "64", "--workers", "1"]
    assert make_demo_data([*small, "--images", "2"]) == 0
    before = sorted(p.name for p in out.rglob("*"))
    with pytest.raises(UserError, match=r"holds other demo frames \(.*images 2,.*--force"):
        make_demo_data([*small, "--images", "3"])
    assert sorted(p.name for p in out.rglob("*")) == before
    assert make_demo_data([*small, "--images", "2"]) == 0
    assert make_demo_data([*small, "--images", "3", "--force"]) == 0
    assert len(list((out / "images").rglob("train/*.jpg"))) == 3
