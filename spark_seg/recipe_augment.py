"""The augmentations that are one value each at a config's top level, worked into the training pipeline.

    turns=0.75   crop_size=448   foreground_crop=0.8   mosaic=0.3   copy_paste=0.3
    camera_faults=2   coarse_dropout=0.3

Turns and windows become arguments of the pipeline's `RandomWarp`, mixing takes its place and holds it, the others come
last before packing (in two passes before `RandomRoi`). A value that is a dict has the transform's own options.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from spark_seg.errors import UserError

if TYPE_CHECKING:
    from mmengine.config import Config

_WARPS = ("RandomWarp", "CopyPaste", "Mosaic")


def _change(cfg: "Config", name: str, change: Callable[[list[Any]], None]) -> None:
    """Changes the training data set's pipeline, and the top-level one that it came from."""
    pipeline = cfg.train_dataloader.dataset.get("pipeline")
    if not pipeline:
        raise UserError(f"{name}: train_dataloader.dataset has no pipeline to work it into")
    change(pipeline)
    if "train_pipeline" in cfg:
        cfg.train_pipeline = [*pipeline]


def _place_of_warp(pipeline: list[Any], name: str) -> int:
    for at, step in enumerate(pipeline):
        if step.get("type") in _WARPS:
            return at
    raise UserError(f"{name}: train_pipeline has no RandomWarp to work it into")


def _warp_in(pipeline: list[Any], name: str) -> Any:
    """The config of the `RandomWarp`, wherever it is held."""
    step = pipeline[_place_of_warp(pipeline, name)]
    while step["type"] != "RandomWarp":
        step = step["warp"]
    return step


def judge(name: str, registry: str, config: Any) -> Any:
    """Builds a part, so that a value out of range is told where the config is loaded.

    Returns:
        The part; None where an argument is unknown, which `check_arguments` will tell.

    Raises:
        UserError: It cannot be built.
    """
    import torch
    from mmseg import registry as registries

    try:
        with torch.random.fork_rng(devices=[]):  # what is built and dropped draws for nobody
            return getattr(registries, registry).build(config)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except (TypeError, KeyError, ValueError, AttributeError, AssertionError, RuntimeError) as error:
        if "unexpected keyword argument" not in str(error):  # named by `check_arguments`
            raise UserError(
                f"{name}: a value is of the wrong type, or missing ({_short(error)})"
            ) from None
        return None


def _short(error: BaseException) -> str:
    """An error's last words: mmengine writes where it was before what it is."""
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


def _options(value: Any, key: str = "prob") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {key: value}
    for name in ("type", "warp"):  # settled here
        if name in value:
            raise UserError(f"an augmentation's group has no option {name!r}: see docs/data.md")
    return dict(value)


def _into_warp(name: str, argument: str) -> Callable[["Config", Any], None]:
    def work_in(cfg: "Config", value: Any) -> None:
        def change(pipeline: list[Any]) -> None:
            warp = _warp_in(pipeline, name)
            warp[argument] = value
            judge(name, "TRANSFORMS", warp)

        _change(cfg, name, change)

    return work_in


def _foreground_crop(cfg: "Config", value: Any) -> None:
    options = {"prob": 1.0} | _options(value)
    unknown = set(options) - {"prob", "least"}
    if unknown:
        raise UserError(f"foreground_crop has prob and least, no {sorted(unknown)[0]!r}")

    def change(pipeline: list[Any]) -> None:
        warp = _warp_in(pipeline, "foreground_crop")
        if warp.get("crop") is None:
            raise UserError("foreground_crop places a window: set crop_size too")
        warp["focus"] = options["prob"]
        if "least" in options:
            warp["least"] = options["least"]
        judge("foreground_crop", "TRANSFORMS", warp)

    _change(cfg, "foreground_crop", change)


def _around_warp(name: str, kind: str) -> Callable[["Config", Any], None]:
    def work_in(cfg: "Config", value: Any) -> None:
        def change(pipeline: list[Any]) -> None:
            at = _place_of_warp(pipeline, name)
            pipeline[at] = dict(type=kind, warp=pipeline[at]) | _options(value)
            judge(name, "TRANSFORMS", pipeline[at])

        _change(cfg, name, change)

    return work_in


def _before_packing(name: str, kind: str, key: str) -> Callable[["Config", Any], None]:
    def work_in(cfg: "Config", value: Any) -> None:
        step = dict(type=kind) | _options(value, key)
        judge(name, "TRANSFORMS", step)

        def change(pipeline: list[Any]) -> None:
            packed = str(pipeline[-1].get("type", "")).startswith("Pack")
            at = len(pipeline) - packed
            # two passes' pictures are cut from one frame: a later step would reach one of them alone
            both = [k for k, other in enumerate(pipeline) if other.get("type") == "RandomRoi"]
            pipeline.insert(both[0] if both else at, step)

        _change(cfg, name, change)

    return work_in


def training_window(cfg: "Config") -> tuple[int, int]:
    """Height and width of training samples."""
    pipeline = cfg.train_dataloader.dataset.get("pipeline") or []
    if not any(step.get("type") in _WARPS for step in pipeline):
        return int(cfg.image_size), int(cfg.image_size)
    from mmseg.registry import TRANSFORMS

    height, width = TRANSFORMS.build(_warp_in(pipeline, "crop_size")).crop
    return int(height), int(width)


def training_side(cfg: "Config") -> tuple[str, int]:
    """The longer side of training samples, and the value to set it by."""
    side = max(training_window(cfg))
    return ("image_size" if side == cfg.image_size else "crop_size"), side


AUGMENTATIONS: dict[str, Callable[["Config", Any], None]] = {
    "turns": _into_warp("turns", "turns"),
    "crop_size": _into_warp("crop_size", "crop"),
    "foreground_crop": _foreground_crop,  # after the window that it places
    "copy_paste": _around_warp("copy_paste", "CopyPaste"),
    "mosaic": _around_warp("mosaic", "Mosaic"),  # of pasted frames, too
    "camera_faults": _before_packing("camera_faults", "CameraFaults", "strength"),
    "coarse_dropout": _before_packing("coarse_dropout", "CoarseDropout", "prob"),
}
