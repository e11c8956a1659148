"""What a config may say: the keys, the arguments that the classes it names take, the values.

Every check raises a one-line `UserError` that names the place and the nearest right name.
"""

import inspect
import numbers
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from spark_seg.errors import UserError, nearest
from spark_seg.labels import CLASSES

if TYPE_CHECKING:
    from pathlib import Path

    from mmengine.config import Config

# What a config may say at its top level: the recipe's values, each named once, with what they must be ...
_Check = tuple[str, Callable[[Any], bool]]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and value == value


def _whole(least: int) -> _Check:
    return f"a whole number from {least} on", lambda v: _is_int(v) and v >= least


def _number(above: float | None = None) -> _Check:
    if above is None:
        return "a number, 0 or more", lambda v: _is_number(v) and v >= 0
    return f"a number above {above:g}", lambda v: _is_number(v) and v > above


def _one_of(*choices: Any) -> _Check:
    # 1 == True, and a stage of True is a slip
    return (
        "one of " + ", ".join(map(repr, choices)),
        lambda v: any(v == c and type(v) is type(c) for c in choices),
    )


def _or_none(check: _Check) -> _Check:
    return f"{check[0]}, or None", lambda v: v is None or check[1](v)


_SHARE: _Check = ("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1)


def _or_group(check: _Check) -> _Check:
    return _or_none((f"{check[0]}, a group of keys", lambda v: isinstance(v, dict) or check[1](v)))


_TEXT: _Check = ("text", lambda v: isinstance(v, str) and bool(v))
_FLAG: _Check = ("True or False", lambda v: isinstance(v, bool))
_ANY: _Check = ("anything", lambda v: True)
_NO_GROUP: _Check = ("a value or a list", lambda v: not isinstance(v, dict))

RECIPE: dict[str, _Check] = {
    "variant": _one_of("b0", "b1", "b2", "b3", "b4", "b5"),
    "image_size": _whole(32),
    "batch_size": _whole(1),
    "val_batch_size": _whole(1),
    "epochs": _whole(1),
    "num_classes": _whole(len(CLASSES)),
    "num_workers": _whole(0),
    "pretrained": _or_none(_TEXT),
    "freeze_backbone": _FLAG,
    "accelerate": _FLAG,
    "compile": ("True, False, or a group of keys", lambda v: isinstance(v, bool | dict)),
    "cuda_graphs": _FLAG,
    "precision": _one_of("auto", "fp32", "bf16", "fp16"),
    "allow_tf32": _or_none(_FLAG),
    "seed": _or_none(_whole(0)),
    "deterministic": _FLAG,
    "lr": _number(above=0),
    "weight_decay": _number(),
    "betas": (
        "two numbers in [0, 1)",
        lambda v: (
            isinstance(v, list | tuple)
            and len(v) == 2
            and all(_is_number(b) and 0 <= b < 1 for b in v)
        ),
    ),
    "warmup_epochs": _number(),
    "warmup_lr": _number(),
    "min_lr": _number(),
    "clip_grad": _or_none(_number(above=0)),
    "zero_stage": _one_of("auto", 0, 1, 2, 3),
    "accumulate": _whole(1),
    "ema_decay": _or_none(("a number between 0 and 1", lambda v: _is_number(v) and 0 < v < 1)),
    "max_skipped": _whole(1),
    "offload": _one_of(None, "optimizer", "optimizer+parameters"),
    "activation_checkpointing": _FLAG,
    "tensorboard": _FLAG,
    "wandb": ("a group of keys, or None", lambda v: v is None or isinstance(v, dict)),
    "mlflow": ("a group of keys, or None", lambda v: v is None or isinstance(v, dict)),
    "checkpoint_steps": _or_none(_whole(1)),
    # choices that `spark_seg.recipe` judges and works in
    "head": _ANY,
    "loss": _ANY,
    "class_weights": _or_none(
        ("numbers, a name, or a group of keys", lambda v: isinstance(v, list | tuple | str | dict))
    ),
    "schedule": _ANY,
    "optimizer": _ANY,
    "layer_decay": _or_none(("a number above 0, up to 1", lambda v: _is_number(v) and 0 < v <= 1)),
    "head_lr": _or_none(_number(above=0)),
    "drop_path": _or_none(("a number from 0, below 1", lambda v: _is_number(v) and 0 <= v < 1)),
    "patience": _or_none(
        (
            "a whole number from 1 on, or a group of keys",
            lambda v: isinstance(v, dict) or (_is_int(v) and v >= 1),
        )
    ),
    "multi_scale": _or_none(
        ("a list of sizes, or a group of keys", lambda v: isinstance(v, list | tuple | dict))
    ),
    "sampling": _or_none(
        (
            "a name, a list of names, or a group of keys",
            lambda v: isinstance(v, list | tuple | str | dict),
        )
    ),
    "tta": _ANY,
    "turns": _or_none(_SHARE),
    "crop_size": _or_none(
        (
            "a side in pixels, (height, width), or a share of image_size as a float",
            lambda v: not isinstance(v, bool) and isinstance(v, int | float | list | tuple),
        )
    ),
    "foreground_crop": _or_group(_SHARE),
    "copy_paste": _or_group(_SHARE),
    "mosaic": _or_group(_SHARE),
    "camera_faults": _or_group(("a strength from 0 to 5", lambda v: _is_number(v) and 0 <= v <= 5)),
    "coarse_dropout": _or_group(_SHARE),
    "roi": ("a group of keys, or None", lambda v: v is None or isinstance(v, dict)),
    "data_root": _or_none(_TEXT),
    "test_images": _or_none(_TEXT),
    "subset": _NO_GROUP,  # the dataset judges these two, which knows the frames
    "leave_out": _NO_GROUP,
    "cache": _or_none(_TEXT),
    "cache_dir": _or_none(_TEXT),
    "skip_bad_files": _FLAG,
    "log_every": _whole(1),
    "val_every": _whole(1),
    "save_best": _TEXT,
    "demo_data": ("a group of keys, or None", lambda v: v is None or isinstance(v, dict)),
}
# ... and the parts that the runner takes.
RUNNER_KEYS = frozenset(
    [
        "model",
        "train_dataloader",
        "val_dataloader",
        "test_dataloader",
        "val_evaluator",
        "optim_wrapper",
        "param_scheduler",
        "train_cfg",
        "val_cfg",
        "strategy",
        "default_hooks",
        "custom_hooks",
        "default_scope",
        "custom_imports",
        "env_cfg",
        "log_processor",
        "log_level",
        "visualizer",
        "randomness",
        "work_dir",
        "experiment_name",
        "train_pipeline",
        "val_pipeline",
        "test_pipeline",
    ]
)
_LISTS = ("custom_hooks", "param_scheduler", "train_pipeline", "val_pipeline", "test_pipeline")
KNOWN_KEYS = frozenset(RECIPE) | RUNNER_KEYS
# Without these nothing runs; a config that lacks one was not begun from ours.
_NEEDED = ("model", "train_dataloader", "val_dataloader", "test_dataloader", "optim_wrapper")


def fits(key: str, value: Any) -> bool:
    """Whether a value is one that a choice of that name may have."""
    return key in RECIPE and RECIPE[key][1](value)


def takes_group(key: str) -> bool:
    """Whether there is a choice of that name and it may be a group of keys."""
    return fits(key, {})


def is_judged(key: str) -> bool:
    """Whether what stands there is looked at, and a wrong kind told in the recipe's words."""
    return key in RECIPE or key in _LISTS


def check_top_level(cfg: "Config", path: "Path") -> None:
    """Every top-level name is known, or starts with an underscore; what every command needs is there.

    Raises:
        UserError: As said above.
    """
    for key in cfg:
        if key not in KNOWN_KEYS and not key.startswith("_"):
            raise UserError(
                f"{path}: unknown config key {key!r}{nearest(key, KNOWN_KEYS)} "
                "(a helper variable of your own starts with an underscore)"
            )
    for key in (*_NEEDED, "image_size", "strategy"):
        if key not in cfg:
            raise UserError(
                f"{path} lacks {key!r}: start it with _base_ = ['.../segformer_b2_spark.py']"
            )


def check_values(cfg: "Config") -> None:
    """The recipe's values are of the right kind and in range.

    Raises:
        UserError: One is not.
    """
    for key, (what, right) in RECIPE.items():
        if key in cfg and not right(cfg[key]):
            raise UserError(f"{key} must be {what}, not {cfg[key]!r}")
    if cfg.get("val_evaluator") and cfg.val_evaluator.get("type") == "SparkMetric":
        from spark_seg.evaluation.table import metric_names

        names = metric_names(cfg.val_evaluator)
        if cfg.get("save_best", "mIoU") not in names:
            raise UserError(
                f"save_best={cfg.save_best!r} is no metric{nearest(cfg.save_best, names)}"
            )
    for key in _NEEDED:
        if not isinstance(cfg[key], dict):
            raise UserError(f"{key} must be a group of keys, not {cfg[key]!r}")
    for key in _LISTS:  # a group in a file takes a base's list's place
        if not isinstance(cfg.get(key), list | tuple | None):
            raise UserError(f"{key} must be a list of groups, not {cfg[key]!r}")
    from spark_seg.models.compiling import compile_options

    compile_options(
        cfg.get("compile")
    )  # goes neither to a class nor into a part: nothing else looks at its keys here


def accepted(node: Any, where: str = "") -> set[str]:
    """The arguments that the class named by the node's `type` takes, or what belongs at that place; else empty.

    Args:
        node: A part of a config.
        where: Its dotted name.
    """
    if where in ("wandb", "mlflow"):
        from spark_seg.engine.trackers import MLFLOW_KEYS, WANDB_KEYS

        return set(WANDB_KEYS if where == "wandb" else MLFLOW_KEYS)
    cls = _class_at(node, where)
    return _arguments(cls)[0] | _BUILDER_KEYS.get(where, set()) if cls is not None else set()


def _class_at(node: Any, where: str) -> Any:
    """What a dict's keys are handed to, where its `type` or its place tells; else None."""
    if hasattr(node, "get") and node.get("type") is not None:
        return _find_class(node["type"])
    if where.endswith("_dataloader"):
        from torch.utils.data import DataLoader

        return DataLoader
    if where == "log_processor":
        from mmengine.runner import LogProcessor

        return LogProcessor
    if where == "randomness":
        from mmengine.runner import set_random_seed

        return set_random_seed
    if where == "demo_data":
        from spark_seg.datasets.demo import make_demo_data

        return make_demo_data
    if where == "strategy.zero_optimization":
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

        return DeepSpeedZeroConfig
    return None


def _find_class(name: Any) -> Any:
    """The class or function that a config's `type` names, in whichever registry it is."""
    if not isinstance(name, str):
        return name
    # By plain name first: `Registry.get` also searches the disk for a module of that name, for each registry anew.
    for registry in _registries():
        if name in registry.module_dict:
            return registry.module_dict[name]
    return next((cls for r in _registries() if (cls := r.get(name)) is not None), None)


def _registries() -> Iterator[Any]:
    from mmengine import registry as engine_registry
    from mmengine.registry import Registry
    from mmseg import registry as mmseg_registry

    for module in (mmseg_registry, engine_registry):
        yield from (r for r in vars(module).values() if isinstance(r, Registry))


def _arguments(cls: Any) -> tuple[set[str], bool]:
    """All named arguments of a class through its bases, and whether it also takes any other."""
    if hasattr(cls, "model_fields"):  # pydantic, which DeepSpeed's config is made of
        aliases = {f.alias for f in cls.model_fields.values() if f.alias}
        return set(cls.model_fields) | aliases, False
    if not inspect.isclass(cls):
        params = inspect.signature(cls).parameters.values()
        return {p.name for p in params}, any(p.kind is p.VAR_KEYWORD for p in params)
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        try:
            params = inspect.signature(vars(base)["__init__"]).parameters.values()
        except (TypeError, ValueError):
            return names, True
        names |= {p.name for p in params if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in params):
            return names - {"self"}, False
    return names - {"self"}, False


def check_arguments(cfg: "Config") -> None:
    """Every dict that goes to a known class holds only what that class takes.

    Raises:
        UserError: No such class, or it takes no such argument.
    """

    def walk(node: Any, where: str) -> None:
        if isinstance(node, dict):
            cls = _class_at(node, where)
            if cls is None and node.get("type") is not None:
                raise UserError(
                    f"{where}: no registered class {node['type']!r}{_nearest_class(node['type'])}"
                )
            if cls is not None:
                names, anything = _arguments(cls)
                allowed = names | {"type", "_scope_", "priority"} | _BUILDER_KEYS.get(where, set())
                for key in node:
                    if not anything and key not in allowed:
                        raise UserError(
                            f"{where}: {node.get('type', cls.__name__)} takes no argument {key!r}"
                            f"{nearest(key, names)}"
                        )
            for key, value in node.items():
                # norm_cfg, act_cfg, init_cfg ... go to builders of their own, which take more than the class
                if not key.endswith("_cfg"):
                    walk(value, f"{where}.{key}")
        elif isinstance(node, list | tuple):
            for i, item in enumerate(node):
                walk(item, f"{where}.{i}")

    for key in (RUNNER_KEYS | {"demo_data"}) & set(cfg.keys()):
        if key not in ("custom_imports", "env_cfg"):
            walk(cfg[key], key)


# Keys that a builder takes out before the class is called.
_LOADER_KEYS = {"dataset", "sampler", "batch_sampler", "collate_fn", "worker_init_fn"}
_BUILDER_KEYS = {
    "optim_wrapper": {"optimizer", "constructor", "paramwise_cfg"},
    **{f"param_scheduler.{i}": {"convert_to_iter_based", "by_epoch"} for i in range(9)},
    **{f"{name}_dataloader": _LOADER_KEYS for name in ("train", "val", "test")},
    "log_processor": {"window_size"},
    "randomness": {"seed"},
}


def _nearest_class(name: Any) -> str:
    return nearest(
        str(name), {known for registry in _registries() for known in registry.module_dict}
    )
