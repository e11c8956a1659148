"""Configs are read strictly: overrides reach what derives from them, and a slip is an error."""

from pathlib import Path
from typing import Any

import pytest

from spark_seg.config import find_config, load_config, parse_options, unresolved_text
from spark_seg.errors import UserError, UserFileNotFoundError

B0 = "segformer_b0_spark.py"


def write(folder: Path, text: str) -> str:
    """A user's own config over the shipped b0; returns its path."""
    path = folder / "mine.py"
    path.write_text(f"_base_ = [{str(find_config(B0))!r}]\n{text}\n")
    return str(path)


def strings(value: Any) -> list[str]:
    """All strings in a nested config."""
    if isinstance(value, dict):
        return [s for v in value.values() for s in strings(v)]
    if isinstance(value, list | tuple):
        return [s for v in value for s in strings(v)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize(
    ("options", "parsed"),
    [
        (["a=1", "b.c=2.5"], {"a": 1, "b.c": 2.5}),
        (["lr=1e-3"], {"lr": 1e-3}),
        (["a=[1,2]", "b=(0.9, 0.99)"], {"a": [1, 2], "b": (0.9, 0.99)}),
        (
            ["a=None", "b=none", "c=null", "d=true", "e=False"],
            dict(a=None, b=None, c=None, d=True, e=False),
        ),
        (["a=x=y", "b=XMM Newton", "c='3'"], {"a": "x=y", "b": "XMM Newton", "c": "3"}),
        (["a="], {"a": ""}),
        (None, {}),
    ],
)
def test_options_are_literals_or_text(options: list[str] | None, parsed: dict[str, Any]) -> None:
    assert parse_options(options) == parsed


@pytest.mark.parametrize("option", ["image_size", "=3", " =3"])
def test_option_that_is_no_assignment(option: str) -> None:
    with pytest.raises(UserError, match="key=value"):
        parse_options([option])


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("image_sze", 64, "'image_size'"),
        ("model.bakbone.drop_path_rate", 0.2, "'backbone'"),
        ("model.backbone.drop_path_rat", 0.2, "'drop_path_rate'"),
        ("model.decode_head.loss_decode.dice_wieght", 1, "'dice_weight'"),
        ("train_pipeline.2.rotaton", 10, "'rotation'"),
        ("train_dataloader.dataset.pipeline.2.rotaton", 10, "'rotation'"),
        ("train_dataloader.batchsize", 4, "'batch_size'"),
        ("optim_wrapper.optimizer.betass", 4, "'betas'"),
        ("optim_wrapper.clip_gradd", 4, "unknown"),
        ("custom_hooks.0.log_evry", 4, "'log_every'"),
        ("strategy.zero_optimization.overlap_com", True, "'overlap_comm'"),
        ("strategy.gradient_clip", 1, "'gradient_clipping'"),
        ("log_processor.window", 1, "'window_size'"),
        ("demo_data", 3, "group"),
        ("xyzzy_qq", 4, "'xyzzy_qq'"),
    ],
)
def test_unknown_override_names_the_nearest(key: str, value: Any, hint: str) -> None:
    config = "segformer_b0_spark_demo.py" if key == "demo_data" else B0
    with pytest.raises(UserError) as e:
        load_config(config, {key: value})
    assert hint in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("custom_hooks.7.log_every", 1, "no index"),
        ("custom_hooks.first.log_every", 1, "no index"),
        ("custom_hooks.9", 1, "no index"),
        ("image_size.height", 1, "'image_size' is a value"),
        ("model.backbone", 3, "model.backbone is a group"),
        ("train_dataloader", "x", "group"),
        ("model", None, "model must be a group"),
        ("betas.0", 0.8, "set the whole of betas"),
        ("_norm_cfg.type", "SyncBN", "_norm_cfg is a helper variable"),
        (
            "optim_wrapper.clip_grad",
            {"max_norm": 1},
            "unknown config key 'optim_wrapper.clip_grad'",
        ),
    ],
)
def test_override_that_cannot_be(key: str, value: Any, says: str) -> None:
    with pytest.raises(UserError, match=says.replace("'", ".")):
        load_config(B0, {key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_size", "big"),
        ("image_size", 16),
        ("image_size", 512.0),
        ("image_size", (512, 512)),
        ("batch_size", 0),
        ("batch_size", True),
        ("val_batch_size", 1.5),
        ("epochs", -1),
        ("epochs", "10x"),
        ("num_classes", 2),
        ("num_workers", -1),
        ("lr", 0),
        ("lr", "fast"),
        ("lr", float("nan")),
        ("weight_decay", -0.1),
        ("betas", 0.9),
        ("betas", (0.9, 1.0)),
        ("warmup_epochs", -1),
        ("warmup_epochs", "five"),
        ("min_lr", -1e-6),
        ("clip_grad", 0),
        ("zero_stage", 4),
        ("zero_stage", True),
        ("zero_stage", "1"),
        ("precision", "int8"),
        ("variant", "b6"),
        ("pretrained", 3),
        ("freeze_backbone", "yes"),
        ("deterministic", 1),
        ("seed", 1.5),
        ("data_root", 2024),
        ("test_images", 7),
        ("log_every", 0),
        ("log_every", 2.5),
        ("val_every", 0.5),
        ("save_best", "mIoU/forground"),
        ("save_best", None),
        ("save_best", "images"),
        ("save_best", "ECE"),
    ],
)
def test_wrong_value_is_told_before_anything_starts(key: str, value: Any) -> None:
    with pytest.raises(UserError) as e:
        load_config(B0, {key: value})
    assert str(e.value).startswith(key)
    assert repr(value) in str(e.value)


def test_boundaries_and_boxes_may_choose_the_best_where_they_are_counted() -> None:
    for name in ("boundary_IoU/craft", "box_IoU", "boundary_F2px/craft"):
        assert load_config(B0, {"save_best": name}).save_best == name
        with pytest.raises(UserError, match="is no metric"):
            load_config(B0, {"save_best": name, "val_evaluator.details": False})
    assert load_config(B0, {"val_evaluator.details": None})
    wide = {"save_best": "boundary_F5px/craft", "val_evaluator.boundary_px": 5}
    assert load_config(B0, wide).save_best == wide["save_best"]


@pytest.mark.parametrize(("key", "value"), [("boundary_px", "2"), ("boundary_px", [True])])
def test_tolerances_that_are_no_numbers(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"val_evaluator.{key}=.*give a number, or a list"):
        load_config(B0, {f"val_evaluator.{key}": value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.backbone.with_cp", True),
        ("model.decode_head.interpolate_mode", "nearest"),
        ("model.decode_head.loss_decode.class_weight", [1, 2, 3]),
        ("train_dataloader.prefetch_factor", 4),
        ("strategy.zero_optimization.round_robin_gradients", True),
        ("strategy.gradient_accumulation_steps", 2),
        ("train_dataloader.dataset.serialize_data", False),
        ("optim_wrapper.paramwise_cfg", {"custom_keys": {"head": {"lr_mult": 10.0}}}),
        ("randomness.diff_rank_seed", True),
        ("train_cfg.val_begin", 3),
        ("pretrained", None),
        ("seed", None),
        ("clip_grad", None),
        ("subset", 0.1),
        ("leave_out", ["Soho", "Smart1"]),
        ("work_dir", "x"),
    ],
)
def test_arguments_that_the_class_takes_are_accepted(key: str, value: Any) -> None:
    node: Any = load_config(B0, {key: value})
    for part in key.split("."):
        node = node[part]
    assert node == value


def test_override_inside_a_list_and_what_is_shown() -> None:
    hooks = len(load_config(B0).custom_hooks)
    changes: list[str] = []
    cfg = load_config(B0, {"custom_hooks.-1": {"type": "ProgressHook"}, "image_size": 640}, changes)
    assert len(cfg.custom_hooks) == hooks
    assert changes[1] == "image_size: 512 -> 640"


@pytest.mark.parametrize(
    "key", ["train_pipeline.2.rotation", "train_dataloader.dataset.pipeline.2.rotation"]
)
def test_pipeline_can_be_overridden_by_either_name(key: str) -> None:
    cfg = load_config(B0, {key: 7})
    assert cfg.train_dataloader.dataset.pipeline[2].rotation == 7
    assert cfg.train_dataloader.dataset.pipeline[2].size == 512


def test_pipeline_of_a_users_config_is_the_one_that_runs(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'val_pipeline = [dict(type="LoadSparkImage"), dict(type="ResizeFrame", size="$image_size")]',
    )
    cfg = load_config(path, {"image_size": 96})
    assert [t.type for t in cfg.val_dataloader.dataset.pipeline] == [
        "LoadSparkImage",
        "ResizeFrame",
    ]
    assert cfg.val_dataloader.dataset.pipeline[1].size == 96


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image_sise = 3", "unknown config key 'image_sise'; did you mean 'image_size'"),
        ("norm_cfg = dict(type='SyncBN')", "unknown config key 'norm_cfg'"),
        (
            "model = dict(backbone=dict(drop_path_rat=0.1))",
            "takes no argument 'drop_path_rat'; did you mean 'drop_path_rate'",
        ),
        ("model = dict(backbone=dict(type='MixVisionTransfomer'))", "MixVisionTransformer"),
        ("train_dataloader = dict(batchsize=4)", "'batchsize'; did you mean 'batch_size'"),
        ("train_dataloader = dict(dataset=dict(splt='val'))", "'splt'; did you mean 'split'"),
        ("custom_hooks = [dict(type='ProgresHook')]", "'ProgressHook'"),
        ("optim_wrapper = dict(optimizer=dict(weight_decai=1))", "'weight_decay'"),
        ("optim_wrapper = dict(clip_grad=dict(max_norm=1))", "'clip_grad'"),
        ("strategy = dict(zero_optimization=dict(stge=1))", "'stge'; did you mean 'stage'"),
        ("demo_data = dict(imges=1)", "'imges'; did you mean 'images'"),
        ("lr = '$learning_rate'", "refers to '$learning_rate'"),
        ("lr = '$weight_decay'\nweight_decay = '$lr'", "back to itself"),
        ("lr = ", "SyntaxError"),
        ("lr = 1 / 0", "ZeroDivisionError"),
        ("import not_there", "ModuleNotFoundError"),
    ],
)
def test_mistake_in_a_config_file(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError) as e:
        load_config(write(tmp_path, text))
    assert says in str(e.value)
    assert "\n" not in str(e.value)


def test_base_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("_base_ = ['nowhere.py']\n")
    with pytest.raises(UserError, match=r"mine\.py cannot be loaded: .*nowhere\.py"):
        load_config(str(path))


def test_config_that_lacks_a_part(tmp_path: Path) -> None:
    path = tmp_path / "alone.py"
    path.write_text("image_size = 64\n")
    with pytest.raises(UserError, match="lacks 'model'"):
        load_config(str(path))


def test_helper_variables_are_the_users_own(tmp_path: Path) -> None:
    cfg = load_config(write(tmp_path, "_mine = 3\nlr = _mine * 1e-4"))
    assert cfg.lr == pytest.approx(3e-4)


def test_missing_config_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserFileNotFoundError, match="segformer_b2_spark"):
        find_config("configs/segformer_b2_sparc.py")
    (tmp_path / "experiment_a.py").touch()
    with pytest.raises(UserFileNotFoundError, match=r"did you mean 'experiment_a\.py'"):
        find_config(str(tmp_path / "experiment_b.py"))
    with pytest.raises(UserFileNotFoundError, match=r"there are: .*segformer_b5_spark"):
        find_config("zzz")


def test_config_is_found_by_bare_name() -> None:
    assert find_config("segformer_b0_spark") == find_config(B0)
    assert find_config("configs/segformer_b0_spark.py").is_file()


@pytest.mark.parametrize(
    ("key", "value", "places"),
    [
        (
            "image_size",
            640,
            [
                "train_dataloader.dataset.pipeline.2.size",
                "val_dataloader.dataset.pipeline.1.size",
                "test_dataloader.dataset.pipeline.1.size",
            ],
        ),
        ("num_classes", 5, ["model.decode_head.num_classes"]),
        ("batch_size", 3, ["train_dataloader.batch_size"]),
        ("val_batch_size", 3, ["val_dataloader.batch_size", "test_dataloader.batch_size"]),
        ("epochs", 7, ["train_cfg.max_epochs"]),
        ("val_every", 7, ["train_cfg.val_interval"]),
        ("lr", 0.5, ["optim_wrapper.optimizer.lr"]),
        ("weight_decay", 0.5, ["optim_wrapper.optimizer.weight_decay"]),
        ("warmup_epochs", 2, ["param_scheduler.0.warmup_epochs"]),
        ("min_lr", 1e-5, ["param_scheduler.0.min_lr"]),
        ("clip_grad", 2.0, ["strategy.gradient_clipping"]),
        ("zero_stage", 3, ["strategy.zero_optimization.stage"]),
        ("seed", 7, ["randomness.seed"]),
        ("num_workers", 7, [f"{s}_dataloader.num_workers" for s in ("train", "val", "test")]),
        ("data_root", "D", [f"{s}_dataloader.dataset.data_root" for s in ("train", "val", "test")]),
        ("test_images", "D", ["test_dataloader.dataset.images"]),
        ("leave_out", "Soho", ["train_dataloader.dataset.leave_out"]),
        ("subset", 0.5, [f"{s}_dataloader.dataset.subset" for s in ("train", "val")]),
        ("save_best", "IoU/panel", ["default_hooks.checkpoint.save_best"]),
        ("log_every", 7, ["custom_hooks.0.log_every"]),
    ],
)
def test_one_value_reaches_every_place(key: str, value: Any, places: list[str]) -> None:
    cfg = load_config(B0, {key: value})
    for place in places:
        node: Any = cfg
        for part in place.split("."):
            node = node[int(part) if part.isdigit() else part]
        assert node == value, place


def test_loaded_config_survives_its_dump(tmp_path: Path) -> None:
    cfg = load_config(B0, {"image_size": 96, "model.backbone.drop_path_rate": 0.3})
    path = tmp_path / "config.py"
    path.write_text(unresolved_text(cfg))
    again = load_config(str(path))
    assert again.to_dict() == cfg.to_dict()
    assert not [s for s in strings(again.to_dict()) if s.startswith("$")]
    # ... and an override of the dump reaches as far as one of the original
    assert (
        load_config(str(path), {"image_size": 128}).val_dataloader.dataset.pipeline[1].size == 128
    )
