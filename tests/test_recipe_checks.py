"""Values that contradict each other are told where the config is loaded."""

import ast
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from spark_seg.config import find_config, load_config, parse_options
from spark_seg.errors import UserError

CASES: list[tuple[dict[str, Any], str]] = [
    ({"model.decode_head.loss_decode.class_weight": [1, 2]}, "class_weight has 2 values, but"),
    ({"loss": {"type": "focal", "alpha": [1, 2]}}, "alpha has 2 values, but num_classes is 3"),
    ({"loss": ["ce", {"type": "focal", "alpha": [1, 2]}]}, "alpha has 2 values"),
    ({"min_lr": 1e-3}, "min_lr=0.001 is above lr=6e-05"),
    ({"freeze_backbone": True, "layer_decay": 0.9}, "layer_decay=0.9 has no effect beside"),
    ({"freeze_backbone": True, "drop_path": 0.1}, "drop_path=0.1 has no effect beside"),
    ({"patience": {"patience": 3, "metric": "mIoV"}}, "patience: metric='mIoV' is no metric; did"),
    ({"head": {"type": "paper", "channels": "x"}}, "head: channels='x': give a whole number"),
    ({"head": {"type": "paper", "channels": -4}}, "head: channels=-4: give a whole number from 1"),
    ({"head": {"type": "paper", "channels": 0}}, "head: channels=0: give a whole number from 1"),
    ({"schedule": {"type": "cosine", "min_lr": 1.0}}, "min_lr=1.0 is above lr=6e-05"),
    ({"optimizer": {"type": "SGD", "lr": 1e-9}}, "min_lr=1e-06 is above lr=1e-09"),
    (
        {"variant": "b2"},
        "the network is a b0: start from segformer_b2_spark.py, or say variant='b0'",
    ),
    ({"crop_size": 28}, "crop_size makes windows of 28 px: give 32 or more"),
    ({"crop_size": [64, 16]}, "crop_size makes windows of 16 px"),
    ({"crop_size": 28, "mosaic": 0.5}, "crop_size makes windows of 28 px"),
    ({"crop_size": 28, "copy_paste": 0.5, "mosaic": 0.5}, "crop_size makes windows of 28 px"),
    ({"loss": {"type": "MixVisionTransformer"}}, "loss: MixVisionTransformer is no loss"),
    ({"loss": "0*lovasz"}, r"loss: '0\*lovasz' has no part in '0\*lovasz'"),
    ({"loss": "0*ce+dice"}, r"loss: '0\*ce' has no part in"),
    ({"loss": "boundary", "class_weights": [1, 2, 3]}, "of our losses ce, ce_dice, focal, ohem"),
    ({"optimizer": {"type": "Adam", "eps": "x"}}, "optimizer: a value is of the wrong type"),
    (
        {"optimizer": {"type": "SGD", "nesterov": True, "momentum": 0}},
        "optimizer: .*Nesterov momentum requires",
    ),
]


@pytest.mark.parametrize(("options", "said"), CASES)
def test_contradictions(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as e:
        load_config("segformer_b0_spark", options)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": {"type": "focal", "alpha": [1, 2, 3], "gamma": 3}},
        {"class_weights": [1, 2, 3]},
        {"lr": 1e-6, "min_lr": 1e-6},
        {"optimizer": {"type": "SGD", "lr": 1e-3}, "min_lr": 1e-4},
        {"crop_size": 32},
        {"loss": {"type": "FocalLoss"}, "class_weights": None},
        {"lr": 1e-6, "min_lr": 1e-3, "schedule": "constant"},
        {"freeze_backbone": True, "head_lr": 2},
        {"patience": {"patience": 3, "metric": "mIoU"}},
        {"head": {"type": "paper", "channels": 128}},
        *({"optimizer": name} for name in ("AdamW", "Adam", "SGD", "MuonAdamW")),
    ],
)
def test_what_fits_together(options: dict[str, Any]) -> None:
    load_config("segformer_b0_spark", options)


def options_in_the_docs() -> list[tuple[str, str]]:
    """Every group of docs/recipe.md's table: the choice and the text of its options."""
    text = Path(__file__).resolve().parents[1].joinpath("docs/recipe.md").read_text()
    table = text.split("## Options")[1].split("\n## ")[0]
    return re.findall(r"^\| .*?\| `(\w+)=(.*?)` \|", table, re.M)


def test_the_table_is_found() -> None:
    assert len(options_in_the_docs()) >= 14


@pytest.mark.parametrize(("key", "text"), options_in_the_docs())
def test_the_options_in_the_docs_are_the_options(tmp_path: Path, key: str, text: str) -> None:
    """As an override, and written into a file over a shipped config."""
    options = eval(text, {"__builtins__": {}, "dict": dict})
    assert ast.literal_eval(repr(options)) == options
    assert parse_options([f"{key}={text}"]) == {key: options}
    overridden = load_config("segformer_b2_spark", {key: options})
    path = tmp_path / "mine.py"
    path.write_text(f"_base_ = [{str(find_config('segformer_b2_spark'))!r}]\n{key} = {text}\n")
    assert load_config(str(path)).to_dict() == overridden.to_dict()


def test_loading_draws_no_random_number() -> None:
    import torch

    before = torch.random.get_rng_state()
    load_config("segformer_b0_spark", {"head": "paper", "optimizer": "SGD", "loss": "focal"})
    assert torch.equal(torch.random.get_rng_state(), before)


def test_groups_may_be_written_as_json() -> None:
    text = '{"type": "SGD", "nesterov": true, "momentum": 0.8}'
    options = parse_options([f"optimizer={text}", "loss=ce", "ema_decay=[not, json"])
    assert options == {
        "optimizer": {"type": "SGD", "nesterov": True, "momentum": 0.8},
        "loss": "ce",
        "ema_decay": "[not, json",
    }


@pytest.mark.parametrize("text", ["sampling=[satellite,small]", "loss={type:focal}"])
def test_a_list_of_bare_words_is_told(text: str) -> None:
    with pytest.raises(UserError, match="cannot be read; text inside wants quotes"):
        parse_options([text])


@pytest.mark.parametrize(
    "options",
    [
        {"train_pipeline": ["x"]},
        {"variant": "b0", "model.backbone.num_layers": 3},
        {"variant": "b0", "model.backbone.embed_dims": [1]},
    ],
)
def test_shapes_that_the_checks_do_not_expect(options: dict[str, Any]) -> None:
    """Whether it is told here or where the part is built: no traceback."""
    with suppress(UserError):
        load_config("segformer_b0_spark", options)
