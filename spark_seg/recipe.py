"""A training's choices, each one value at the config's top level, worked into the parts that they concern.

    loss="ce_dice+0.5*boundary"   class_weights="median_frequency"   head="paper"
    schedule="poly"   optimizer="SGD"   layer_decay=0.8   head_lr=10   drop_path=0.2
    patience=10   multi_scale=[384, 448, 512]   sampling="satellite"   tta=4
    mosaic=0.3   camera_faults=2   ... (`spark_seg.recipe_augment`)

None, which all of them are by default, leaves the part as the config has it. Where a choice has options of its own it
may be a dict with them: `schedule=dict(type="poly", power=0.9)`.
"""

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from spark_seg.errors import UserError, nearest
from spark_seg.recipe_augment import AUGMENTATIONS, judge, training_side

if TYPE_CHECKING:
    from mmengine.config import Config

COMPUTED = "computed"
"""What stands in a loss for class weights that are computed from the data."""

LOSSES: dict[str, dict[str, Any]] = {
    "ce": dict(type="CrossEntropyDiceLoss", ce_weight=1.0, dice_weight=0.0),
    "dice": dict(type="CrossEntropyDiceLoss", ce_weight=0.0, dice_weight=1.0),
    "ce_dice": dict(type="CrossEntropyDiceLoss", ce_weight=0.5, dice_weight=0.5),
    "focal": dict(type="SoftmaxFocalLoss"),
    "ohem": dict(type="OhemLoss"),
    "lovasz": dict(type="LovaszSoftmaxLoss"),
    "tversky": dict(type="TverskyRegionLoss"),
    "boundary": dict(type="DistanceBoundaryLoss"),
}
SCHEDULES = {
    "cosine": "WarmupCosineLR",
    "poly": "WarmupPolyLR",
    "step": "WarmupStepLR",
    "constant": "WarmupConstantLR",
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "AdamW": dict(betas="$betas", eps=1e-8),
    "Adam": dict(betas="$betas", eps=1e-8),
    "SGD": dict(momentum=0.9),
    "MuonAdamW": dict(betas="$betas", eps=1e-8),
}
HEADS = {"mmseg": "SegformerHead", "paper": "PaperSegformerHead"}
_PAPER_CHANNELS = {"b0": 256, "b1": 256}  # others 768


def expand(cfg: "Config", overrides: Mapping[str, Any] | None = None) -> None:
    """Works a loaded config's choices into its parts, in place.

    Args:
        cfg: With every `'$name'` replaced.
        overrides: Dotted keys that the user set to these values: no choice may undo one in silence. (Steps of
            pipelines, which move when others are put between, and values with a `'$name'` are not watched.)

    Raises:
        UserError: An unknown choice (with the nearest name) or option, a value out of range or of the wrong kind, or a
            choice that undoes an override.
    """
    watched = {key: value for key, value in (overrides or {}).items() if _stands(cfg, key, value)}
    for name, work_in in CHOICES.items():
        if cfg.get(name) is None:
            continue
        try:
            work_in(cfg, cfg[name])
        except UserError:
            raise
        except (TypeError, KeyError, AttributeError, ValueError, AssertionError) as error:
            raise UserError(
                f"{name}={cfg[name]!r}: something in it is missing or of the wrong kind ({error})"
            ) from None
        for key, value in watched.items():
            if not _stands(cfg, key, value):
                raise UserError(
                    f"{key}={value!r} has no effect beside {name}={cfg[name]!r}, which sets it: change that, or set "
                    f"{name}=None"
                )


def _stands(cfg: "Config", key: str, value: Any) -> bool:
    """Whether a dotted key has a value, or more than it: a choice may add to a group or a list."""
    parts = key.split(".")
    if parts[0] in CHOICES or "pipeline" in key:
        return False
    node: Any = cfg
    for part in parts:
        if isinstance(node, list | tuple) and part.lstrip("-").isdigit():
            node = node[int(part)] if -len(node) <= int(part) < len(node) else None
        else:
            node = node.get(part) if isinstance(node, Mapping) or hasattr(node, "get") else None
    return _holds(node, value)


def _holds(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        return all(key in found and _holds(found[key], value) for key, value in wanted.items())
    if isinstance(wanted, list | tuple) and isinstance(found, list | tuple):
        return list(found[: len(wanted)]) == list(wanted)
    return bool(found == wanted)


def _chosen(what: str, value: Any, known: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A choice's name and options from `name` or `dict(type=name, ...)`."""
    options = dict(value) if isinstance(value, Mapping) else {"type": value}
    name = options.pop("type", None)
    if not isinstance(name, str) or name not in known:
        raise UserError(
            f"{what}: no {name!r}; there are {', '.join(known)}{nearest(str(name), known)}"
        )
    return name, options


def _loss(cfg: "Config", value: Any) -> None:
    configs = value if isinstance(value, list | tuple) else [value]
    losses: list[dict[str, Any]] = []
    for config in configs:
        if not isinstance(config, str | Mapping):
            raise UserError(
                f"loss={value!r}: give a name, a sum of names, a dict, or a list of these"
            )
        losses += _losses_of(config) if isinstance(config, str) else [_loss_of(config)]
    if not losses:
        raise UserError("loss: name one")
    for config in losses:
        part = judge("loss", "MODELS", config)
        own = {loss["type"] for loss in LOSSES.values()}  # which may log several
        if part is not None and not hasattr(part, "loss_name") and config["type"] not in own:
            raise UserError(f"loss: {config['type']} is no loss; there are {', '.join(LOSSES)}")
    for head in _parts(cfg.model, "loss_decode"):
        head["loss_decode"] = losses[0] if len(losses) == 1 else dict(type="LossSum", losses=losses)


def _loss_of(value: Mapping[str, Any]) -> dict[str, Any]:
    """A loss' config from a dict whose type is one of our names or a registered class."""
    options = dict(value)
    name = options.pop("type", None)
    if not isinstance(name, str):
        raise UserError(f"loss={dict(value)!r}: give its type, one of {', '.join(LOSSES)}")
    return LOSSES.get(name, {"type": name}) | options


def _parts(node: Any, key: str) -> list[Any]:
    """The dicts of a model's config that have a key, wherever they lie: a segmentor may be part of another."""
    if isinstance(node, list | tuple):
        return [part for item in node for part in _parts(item, key)]
    if not isinstance(node, dict):
        return []
    if key in node:
        return [node]
    return [part for item in node.values() for part in _parts(item, key)]


def _losses_of(text: str) -> list[dict[str, Any]]:
    """The losses of a sum such as `ce+0.5*lovasz`."""
    losses = []
    for term in text.split("+"):
        match = re.fullmatch(r"\s*(?:([\d.eE-]+)\s*\*)?\s*(\w+)\s*", term)
        name = match[2] if match else term.strip()
        if name not in LOSSES:
            raise UserError(
                f"loss: no {name!r}; there are {', '.join(LOSSES)}, sums such as 'ce+0.5*lovasz', and dicts"
                f"{nearest(name, LOSSES)}"
            )
        config = dict(LOSSES[name])
        if match and match[1]:
            factor = _number_in(match[1], text)
            if not factor > 0:
                raise UserError(
                    f"loss: {term.strip()!r} has no part in {text!r}: give a factor above 0"
                )
            for key in ("ce_weight", "dice_weight"):
                if key in config:
                    config[key] *= factor
            if "ce_weight" not in config:
                config["loss_weight"] = factor
        losses.append(config)
    return losses


def _number_in(text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"loss={whole!r}: {text!r} is no number") from None


def _class_weights(cfg: "Config", value: Any) -> None:
    from spark_seg.models.losses_weights import check_weights

    check_weights(value, int(cfg.num_classes))
    given = COMPUTED if isinstance(value, str | Mapping) else [float(w) for w in value]
    takers = _weighted_losses(cfg)
    if not takers:
        raise UserError(
            "class_weights: the loss takes none; of our losses ce, ce_dice, focal, ohem, lovasz and tversky do (the "
            "boundary loss has a class_weight of its own: loss=dict(type='boundary', class_weight=[...]))"
        )
    for loss in takers:
        loss["class_weight"] = given


def _weighted_losses(cfg: "Config") -> list[Any]:
    """The configs of those losses that class weights go to."""
    parts: list[Any] = []
    for head in _parts(cfg.model, "loss_decode"):
        loss = head["loss_decode"]
        for part in loss if isinstance(loss, list | tuple) else [loss]:
            parts += part["losses"] if part.get("type") == "LossSum" else [part]
    takes = {config["type"] for config in LOSSES.values()} - {"DistanceBoundaryLoss"}
    return [p for p in parts if p.get("type") in takes and p.get("ce_weight", 1) != 0]


def _head(cfg: "Config", value: Any) -> None:
    name, options = _chosen("head", value, HEADS)
    if name == "paper":
        options = {"channels": _PAPER_CHANNELS.get(cfg.get("variant"), 768)} | options
    channels = options.get("channels", 1)
    if not isinstance(channels, int) or isinstance(channels, bool) or channels < 1:
        raise UserError(f"head: channels={channels!r}: give a whole number from 1 up")
    for head in _parts(cfg.model, "loss_decode"):
        head.update({"type": HEADS[name]} | options)
        judge("head", "MODELS", {**head, "loss_decode": LOSSES["ce"]})


def _schedule(cfg: "Config", value: Any) -> None:
    name, options = _chosen("schedule", value, SCHEDULES)
    warmups = [s for s in cfg.param_scheduler if s["type"] in SCHEDULES.values()]
    if len(warmups) != 1:
        raise UserError("schedule: param_scheduler is one of your own: leave `schedule` out")
    warmups[0].type = SCHEDULES[name]
    warmups[0].update(options)
    import torch

    weight = torch.nn.Parameter(torch.zeros(1))  # draws no random number
    rule = dict(warmups[0]) | dict(optimizer=torch.optim.SGD([weight], lr=1.0))
    judge("schedule", "PARAM_SCHEDULERS", rule | dict(end=max(1, int(cfg.epochs)), epoch_length=9))


def _optimizer(cfg: "Config", value: Any) -> None:
    name, options = _chosen("optimizer", value, OPTIMIZERS)
    own = {k: cfg.betas if v == "$betas" else v for k, v in OPTIMIZERS[name].items()}
    base = dict(type=name, lr=cfg.lr, weight_decay=cfg.weight_decay)
    cfg.optim_wrapper.optimizer = base | own | options
    import torch

    weights = [torch.nn.Parameter(torch.zeros(2, 2))]
    judge("optimizer", "OPTIMIZERS", {**cfg.optim_wrapper.optimizer, "params": weights})


def _paramwise(key: str) -> Callable[["Config", Any], None]:
    def work_in(cfg: "Config", value: Any) -> None:
        cfg.optim_wrapper.setdefault("paramwise_cfg", {})[key] = value

    return work_in


def _drop_path(cfg: "Config", value: Any) -> None:
    backbones = _parts(cfg.model, "drop_path_rate")
    if not backbones:
        raise UserError("drop_path: the model has no backbone with a drop_path_rate")
    for backbone in backbones:
        backbone["drop_path_rate"] = value


def _add_hook(cfg: "Config", hook: dict[str, Any]) -> None:
    cfg.custom_hooks = [*(cfg.get("custom_hooks") or []), hook]


def _patience(cfg: "Config", value: Any) -> None:
    options = dict(value) if isinstance(value, Mapping) else {"patience": value}
    metric = cfg.get("save_best", "spark/score")
    hook = dict(type="PatienceHook", metric=metric) | options
    judge("patience", "HOOKS", hook)
    _add_hook(cfg, hook)


def _multi_scale(cfg: "Config", value: Any) -> None:
    options: dict[str, Any] = dict(value) if isinstance(value, Mapping) else {"sizes": list(value)}
    from spark_seg.engine.hooks.multi_scale import MultiScaleHook

    MultiScaleHook(options.get("sizes") or [], options.get("per", "step"))  # judges them
    largest = max(options["sizes"])
    name, side = training_side(cfg)
    if largest > side:
        raise UserError(
            f"multi_scale: {largest} is above {name}={side}, at which frames are made: set {name} to the largest size"
        )
    _add_hook(cfg, dict(type="MultiScaleHook") | options)


def _sampling(cfg: "Config", value: Any) -> None:
    from spark_seg.datasets.sampling import check_by, check_weighing

    options = dict(value) if isinstance(value, Mapping) else {"by": value}
    check_by(options.get("by", "satellite"))
    check_weighing(options.get("factor", 1.0), options.get("share", 0.5))
    cfg.train_dataloader.sampler = dict(type="WeightedSampler", shuffle=True) | options


def _tta(cfg: "Config", value: Any) -> None:
    from spark_seg.models.tta import make_tta

    make_tta(value)  # looked at here, used where predictions are made


def _roi(cfg: "Config", value: Any) -> None:
    from spark_seg.windows import make_rule

    make_rule(cfg.image_size, value)  # looked at here, used where '$roi' stands
    if cfg.model.get("type") != "RoiEncoderDecoder":
        raise UserError(
            "roi is for the configs in two passes: start from segformer_b2_spark_roi.py"
        )
    if cfg.get("compile"):
        raise UserError(
            "compile with roi: crops come in several sizes and numbers, each of which would be compiled anew; turn "
            "compile off"
        )
    if cfg.get("cuda_graphs"):
        raise UserError(
            "cuda_graphs with roi: crops come in several numbers, each of which would be recorded and keep its memory; "
            "turn cuda_graphs off"
        )


CHOICES: dict[str, Callable[["Config", Any], None]] = {
    **AUGMENTATIONS,
    "head": _head,
    "loss": _loss,
    "class_weights": _class_weights,  # after the loss that takes them
    "schedule": _schedule,
    "optimizer": _optimizer,
    "layer_decay": _paramwise("layer_decay"),
    "head_lr": _paramwise("head_lr"),
    "drop_path": _drop_path,
    "patience": _patience,
    "multi_scale": _multi_scale,
    "sampling": _sampling,
    "tta": _tta,
    "roi": _roi,
}


def from_data(cfg: "Config") -> None:
    """Works in what depends on the training data: counts of its classes, and the class weights made of them.

    The first process counts (see `mask_counts`), all get the counts. To be called before a training's model and loaders
    are built, by every process.

    Raises:
        UserError: A mask that cannot be read.
    """
    computed = [
        loss for loss in _weighted_losses(cfg) if loss.get("class_weight") == COMPUTED
    ]  # fmt: skip
    sampler = cfg.train_dataloader.get("sampler") or {}
    by = sampler.get("by", ()) if sampler.get("type") == "WeightedSampler" else ()
    if not computed and not {"small", "panel"} & set([by] if isinstance(by, str) else by):
        return
    from mmengine.logging import print_log
    from mmseg.registry import DATASETS

    from spark_seg.datasets.mask_counts import remember
    from spark_seg.engine.launch import first_process, from_first
    from spark_seg.models.losses_weights import class_weights

    dataset = DATASETS.build({**cfg.train_dataloader.dataset, "lazy_init": True})
    counts = from_first(first_process(_counts, dataset))
    remember(dataset.list_frames(), counts)
    if computed:
        weights = class_weights(counts, cfg.class_weights)
        print_log(
            f"class weights: {', '.join(f'{w:.4g}' for w in weights)} ({cfg.class_weights})",
            logger="current",
        )
        for loss in computed:
            loss["class_weight"] = weights


def _counts(dataset: Any) -> Any:
    from spark_seg.datasets.mask_counts import counts_of

    dataset.full_init()  # builds the label cache, which counting is far faster from
    return counts_of(dataset)
