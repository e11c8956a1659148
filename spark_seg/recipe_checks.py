"""What a whole config is looked at for once its choices are worked in: values that contradict each other."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from spark_seg.errors import UserError, nearest

if TYPE_CHECKING:
    from mmengine.config import Config

_LEAST_SIDE = 32  # as of `image_size`
_PER_CLASS = ("class_weight", "alpha")  # losses' arguments that may hold a number for each class


def check_recipe(cfg: "Config", overrides: Mapping[str, Any] | None = None) -> None:
    """Raises for what no single value shows.

    Args:
        cfg: A config with its choices worked in.
        overrides: What the command line changed.

    Raises:
        UserError: A loss' list of another length than there are classes; a schedule that ends above where it begins; a
            variant that is not the network's; windows too small for it; a metric that is none; a choice for the
            encoder's training beside `freeze_backbone`.
    """
    for key in ("work_dir", "experiment_name"):
        if not isinstance(cfg.get(key), str | None):
            raise UserError(f"{key}={cfg[key]!r}: give text")
    _check_per_class(cfg.model, int(cfg.num_classes), "model")
    schedule = cfg.get("schedule")
    name = schedule.get("type") if isinstance(schedule, dict) else schedule
    if name != "constant":
        _check_rates(cfg)
    if "variant" in (overrides or {}):  # a file may describe a network of its own
        _check_variant(cfg)
    _check_window(cfg)
    if cfg.get("freeze_backbone"):
        for key in ("layer_decay", "drop_path"):
            if cfg.get(key) is not None:
                raise UserError(
                    f"{key}={cfg[key]} has no effect beside freeze_backbone=True: leave one of them out"
                )
    _check_patience(cfg)


def _check_rates(cfg: "Config") -> None:
    """`lr` and `min_lr`, which choices may set too."""
    wrapper = cfg.get("optim_wrapper") or {}
    lr = (wrapper.get("optimizer") or {}).get("lr", cfg.lr)
    lows = [s["min_lr"] for s in cfg.get("param_scheduler") or [] if "min_lr" in s]
    for low in lows or [cfg.min_lr]:
        if low > lr:
            raise UserError(
                f"min_lr={low} is above lr={lr}: the learning rate would rise to it; lower min_lr"
            )


def _check_variant(cfg: "Config") -> None:
    from spark_seg.engine.checkpoints import NETWORKS

    backbone = cfg.model.get("backbone") or {}
    layers = backbone.get("num_layers")
    if not isinstance(layers, list | tuple):
        return
    told = (backbone.get("embed_dims"), tuple(layers))
    built = next((name for network, name in NETWORKS.items() if network == told), None)
    named = cfg.get("variant")
    if built is not None and named in NETWORKS.values() and named != built:
        raise UserError(
            f"variant={named!r}, but the network is a {built}: start from segformer_{named}_spark.py, or say "
            f"variant={built!r}"
        )


def _check_window(cfg: "Config") -> None:
    """A network's deepest maps are a 32nd of its pictures; below that there is none."""
    from mmseg.registry import TRANSFORMS

    for step in cfg.train_dataloader.dataset.get("pipeline") or []:
        while isinstance(step, Mapping) and "warp" in step:  # what mixes frames holds it
            step = step["warp"]
        if (
            isinstance(step, Mapping)
            and step.get("type") == "RandomWarp"
            and step.get("crop") is not None
        ):
            side = min(TRANSFORMS.build(step).crop)
            if side < _LEAST_SIDE:
                raise UserError(f"crop_size makes windows of {side} px: give {_LEAST_SIDE} or more")


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
    from spark_seg.evaluation.table import metric_names

    names = metric_names(cfg.val_evaluator)
    for hook in cfg.get("custom_hooks") or []:
        if hook.get("type") == "PatienceHook" and hook.get("metric") not in names:
            raise UserError(
                f"patience: metric={hook.get('metric')!r} is no metric{nearest(str(hook.get('metric')), names)}"
            )
