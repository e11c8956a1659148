"""A training that goes on under another config: the config's schedule holds, what does not fit is told in one line."""

from pathlib import Path
from typing import Any

import pytest
import tiny

from spark_seg.engine.curves import read_metrics
from spark_seg.engine.train import tell_changes, train
from spark_seg.errors import UserError

LAST = Path("checkpoints") / "last"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tree(tmp_path_factory.mktemp("data") / "tree", train=4, val=1, size=64)


def config(tree: Path, folder: Path, **options: Any) -> Any:
    given: dict[str, Any] = {"precision": "fp32", "epochs": 2, "val_every": 9, "zero_stage": 0}
    return tiny.tiny_config(tree, folder, **(given | options))


def rates(folder: Path) -> dict[int, float]:
    """Learning rate by step."""
    rows = read_metrics(folder / "metrics.jsonl")
    return {row["step"]: row["lr"] for row in rows if "lr" in row}


@pytest.mark.parametrize(
    ("strategy", "changed"),
    [
        ("single", dict(epochs=4)),
        ("deepspeed", dict(epochs=4, batch_size=4)),
        ("single", dict(epochs=4, lr=3e-4, schedule="poly")),
        ("deepspeed", dict(epochs=4, layer_decay=0.5, head_lr=4)),
    ],
    ids=["epochs", "batch", "rate", "groups"],
)
def test_the_schedule_is_the_configs(
    strategy: str, changed: dict[str, Any], tree: Path, tmp_path: Path
) -> None:
    """From its place on, each step has the rate that a whole training under the new config has there."""
    train(config(tree, tmp_path / "run"), strategy)
    train(config(tree, tmp_path / "run", **changed), strategy, resume=True)
    train(config(tree, tmp_path / "whole", **changed), strategy)
    found, wanted = rates(tmp_path / "run"), rates(tmp_path / "whole")
    behind = 2 * 8 // changed.get("batch_size", 2)
    after = [step for step in wanted if step > behind]
    assert len(after) == behind, "as many steps again"
    assert [found[step] for step in after] == pytest.approx([wanted[step] for step in after])
    assert found[after[-1]] < found[after[0]]


def test_it_says_that_the_rate_is_another(tree: Path, tmp_path: Path, capsys: Any) -> None:
    train(config(tree, tmp_path / "run"), "single")
    capsys.readouterr()
    train(config(tree, tmp_path / "run", epochs=4), "single", resume=True)
    told = " ".join(capsys.readouterr())
    assert "as the config has it at step 8; it was" in told
    train(config(tree, tmp_path / "run", epochs=4), "single", resume=True)
    assert "as the config has it" not in " ".join(capsys.readouterr()).split("going on from")[-1]


def test_it_says_which_values_are_others(tree: Path, tmp_path: Path, capsys: Any) -> None:
    other = tiny.make_tree(tmp_path / "other", train=4, val=1, size=64)
    train(config(tree, tmp_path / "run"), "single")
    said = []
    for _ in range(2):
        capsys.readouterr()
        train(config(other, tmp_path / "run", epochs=4, image_size=96), "single", resume=True)
        lines = capsys.readouterr().out.splitlines()
        said.append([line for line in lines if "another config" in line])
    first, again = said
    assert len(first) == 1
    assert not again, "the values are the same"
    told = first[0].removeprefix("going on under another config: ")
    data = f"data_root={str(other)!r}, before {str(tree)!r}"
    assert sorted(told.split("; ")) == [data, "epochs=4, before 2", "image_size=96, before 64"]
    staged = config(other, tmp_path / "run", epochs=4, image_size=96)
    staged.data_root = "/a/node's/copy"
    tell_changes(staged, tmp_path / "run" / LAST)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            dict(optimizer="SGD"),
            {},
            "was written by SGD, the config has AdamW: keep the optimizer",
        ),
        ({}, dict(optimizer="SGD"), "was written by AdamW, the config has SGD"),
        (dict(optimizer="MuonAdamW"), {}, "was written by MuonAdamW"),
        (dict(freeze_backbone=True), {}, r"no optimizer state for backbone\.layers.*exp_avg"),
    ],
)
def test_another_optimizer_or_other_parameters(
    before: dict[str, Any], after: dict[str, Any], said: str, tree: Path, tmp_path: Path
) -> None:
    train(config(tree, tmp_path / "run", epochs=1, **before), "single")
    recorded = (tmp_path / "run" / "config.py").read_text()
    with pytest.raises(UserError, match=said) as caught:
        train(config(tree, tmp_path / "run", **after), "single", resume=True)
    told = str(caught.value)
    assert "\n" not in told
    assert (tmp_path / "run" / "config.py").read_text() == recorded, "the run's, as it was"
    assert f"pretrained='{tmp_path / 'run' / 'checkpoints'}" in told
    # and that way works
    options = dict(after, pretrained=told.split("'")[-2], epochs=1)
    train(config(tree, tmp_path / "anew", **options), "single")


def stock_schedule(end: int, kind: str = "CosineAnnealingLR") -> list[dict[str, Any]]:
    return [dict(type=kind, T_max=end, eta_min=1e-5, begin=0, end=end, by_epoch=False)]


def test_a_schedule_of_mmengines_own(tree: Path, tmp_path: Path, capsys: Any) -> None:
    """Its place comes from the checkpoint, its settings from the config."""
    train(config(tree, tmp_path / "run", param_scheduler=stock_schedule(8)), "single")
    capsys.readouterr()
    longer = dict(epochs=4, param_scheduler=stock_schedule(16))
    train(config(tree, tmp_path / "run", **longer), "single", resume=True)
    assert "CosineAnnealingLR has other settings" in " ".join(capsys.readouterr())
    found = rates(tmp_path / "run")
    assert found[16] < found[9] < 1e-3, "it falls on, where the old settings would have ended"
    other = dict(epochs=5, param_scheduler=[dict(type="ConstantLR", by_epoch=False)])
    with pytest.raises(UserError, match="no state for ConstantLR"):
        train(config(tree, tmp_path / "run", **other), "single", resume=True)


def test_amsgrad_needs_what_adam_does_not_keep(tree: Path, tmp_path: Path) -> None:
    train(config(tree, tmp_path / "run", epochs=1), "single")
    changed = dict(optimizer=dict(type="AdamW", amsgrad=True))
    with pytest.raises(UserError, match=r"no optimizer state for .*max_exp_avg_sq"):
        train(config(tree, tmp_path / "run", **changed), "single", resume=True)


def test_adam_and_adamw_keep_the_same_state(tree: Path, tmp_path: Path) -> None:
    train(config(tree, tmp_path / "run", epochs=1), "single")
    train(config(tree, tmp_path / "run", optimizer="Adam"), "single", resume=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(pretrained="imagnet"), "did you mean 'imagenet'"),
        (dict(pretrained="nowhere.pth"), "nowhere.pth"),
        (dict(batch_size=9), "batch_size=9 is more than the 8 frames"),
    ],
)
def test_a_former_run_stays_where_it_is_when_the_next_cannot_begin(
    options: dict[str, Any], said: str, tree: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train(config(tree, folder, epochs=1), "single")
    with pytest.raises(UserError, match=said):
        train(config(tree, folder, **options), "single")
    assert (folder / LAST / "weights.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_weights_are_not_moved_away_from_under_the_training(tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(config(tree, folder, epochs=1), "single")
    with pytest.raises(UserError, match=r"lies in the work folder.*--work-dir"):
        train(config(tree, folder, pretrained=str(folder / LAST)), "single")
    assert (folder / LAST).is_dir()
