"""Every config that is shipped loads, builds its model and trains a step."""

import ast
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from spark_seg.config import load_config

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.py"))
MILLIONS = {"b0": 3.716, "b1": 13.679, "b2": 24.724, "b3": 44.600, "b4": 61.370, "b5": 81.971}

per_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tree(tmp_path_factory.mktemp("data") / "tree", size=64)


def test_there_are_configs() -> None:
    names = {path.stem for path in CONFIGS}
    assert {f"segformer_b{i}_spark" for i in range(6)} | {"segformer_b0_spark_demo"} <= names


@per_config
def test_leaf_is_short_and_names_its_command(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 25
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring
    assert f"    python tools/train.py configs/{path.name}" in docstring.splitlines()


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from leaves(inner, f"{where}.{i}")
    else:
        yield where, value


@per_config
def test_nothing_is_left_open(path: Path) -> None:
    cfg = load_config(str(path))
    left = [(k, v) for k, v in leaves(cfg.to_dict()) if isinstance(v, str) and "$" in v]
    assert left == []


@per_config
def test_one_value_changes_size_batch_epochs_and_classes(path: Path) -> None:
    """No other place holds the old value: what derives from it derives from the name."""
    new = {"image_size": 648, "num_classes": 7, "batch_size": 11, "epochs": 333}
    before = load_config(str(path))
    after = dict(leaves(load_config(str(path), new).to_dict()))
    changed = {k for k, v in leaves(before.to_dict()) if after.get(k) != v}
    ends = {k.rsplit(".", 1)[1] for k in changed}
    assert ends == {"image_size", "size", "num_classes", "batch_size", "epochs", "max_epochs"}
    used = {f".{split}_dataloader.dataset.pipeline" for split in ("train", "val", "test")}
    sizes = {k for k in changed if ".pipeline." in k and k.endswith(".size")}
    assert {k.rsplit(".", 2)[0] for k in sizes} == used
    assert {".model.decode_head.num_classes", ".train_dataloader.batch_size"} <= changed
    assert ".train_cfg.max_epochs" in changed
    assert {after[k] for k in changed} == set(new.values())


@pytest.mark.parametrize(
    "path",
    # b5 takes 20 seconds and 6 GB
    [pytest.param(p, marks=[pytest.mark.slow] * ("b5" in p.stem), id=p.stem) for p in CONFIGS],
)
def test_trains_a_step(path: Path, tree: Path, tmp_path: Path) -> None:
    from spark_seg.engine.build import training_runner
    from spark_seg.models.summary import count_parameters

    options = {"epochs": 1, "subset": 2, "val_every": 5, "default_hooks__checkpoint": None}
    if "demo" in path.stem:
        options["image_size"] = (
            128  # its windows are a quarter of it; the first attention shrinks them by 32
        )
    cfg = tiny.tiny_config(tree, tmp_path, str(path), **options)
    runner = training_runner(cfg)
    model = runner.train()
    assert runner.iter == 1
    loss = runner.message_hub.get_scalar("train/loss").current()
    assert math.isfinite(loss)
    assert loss > 0
    assert count_parameters(model.model.module)["total"] / 1e6 == pytest.approx(
        MILLIONS[cfg.variant], abs=5e-4
    )
