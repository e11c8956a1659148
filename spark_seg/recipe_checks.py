"""What a whole config is looked at for once its choices are worked in: values that contradict each other."""

from typing import TYPE_CHECKING, Any

import numpy as np

from spark_seg.errors import UserError, nearest

if TYPE_CHECKING:
    from mmengine.config import Config

_PER_CLASS = ("class_weight", "alpha")  # losses' arguments that may hold a number for each class


def check_recipe(cfg: "Config") -> None:
    """Raises for what no single value shows.

    Raises:
        UserError: A loss' list of another length than there are classes; a schedule that ends above where it begins; a
            metric that is none; a choice for the encoder's training beside `freeze_backbone`.
    """
    _check_per_class(cfg.model, int(cfg.num_classes), "model")
    schedule = cfg.get("schedule")
    name = schedule.get("type") if isinstance(schedule, dict) else schedule
    if cfg.min_lr > cfg.lr and name != "constant":
        raise UserError(
            f"min_lr={cfg.min_lr} is above lr={cfg.lr}: the learning rate would rise to it; lower min_lr"
        )
    if cfg.get("freeze_backbone"):
        for key in ("layer_decay", "drop_path"):
            if cfg.get(key) is not None:
                raise UserError(
                    f"{key}={cfg[key]} has no effect beside freeze_backbone=True: leave one of them out"
                )
    _check_patience(cfg)


def _check_per_class(node: Any, classes: int, where: str) -> None:
    if isinstance(node, list | tuple):
        for k, item in enumerate(node):
            _check_per_class(item, classes, f"{where}.{k}")
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        listed = isinstance(value, list | tuple)
        if key in _PER_CLASS and listed and len(value) != classes:
            raise UserError(
                f"{where}.{key} has {len(value)} values, but num_classes is {classes}: give one per class"
            )
        _check_per_class(value, classes, f"{where}.{key}")


def _check_patience(cfg: "Config") -> None:
    if (cfg.get("val_evaluator") or {}).get("type") != "SparkMetric":
        return  # an evaluator of the user's own has names of its own
    from spark_seg.evaluation.table import metrics_of

    names = metrics_of(np.zeros((1, 3, 3), np.int64))
    for hook in cfg.get("custom_hooks") or []:
        if hook.get("type") == "PatienceHook" and hook.get("metric") not in names:
            raise UserError(
                f"patience: metric={hook.get('metric')!r} is no metric{nearest(str(hook.get('metric')), names)}"
            )
