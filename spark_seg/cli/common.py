"""What train, test and infer share: options, the work folder, the device, the checkpoint."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from spark_seg.errors import UserError, UserFileNotFoundError, nearest

if TYPE_CHECKING:
    from mmengine.config import Config


class Parser(argparse.ArgumentParser):
    """argparse, with the nearest option named after a typo."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parsers = [self, *_subparsers(self)]
            options = [o for p in parsers for a in p._actions for o in a.option_strings]
            wrong = next((word for word in unknown if word.startswith("-")), unknown[0])
            self.error(f"unknown argument {wrong!r}{nearest(wrong, options)}")
        return parsed

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def _subparsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    kinds = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return [inner for action in kinds for inner in action.choices.values()]


def add_common(parser: argparse.ArgumentParser) -> None:
    """Adds CONFIG and the options that every command over a config has."""
    parser.add_argument(
        "config", help="a config file, or the name of one that comes with spark_seg"
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action="extend",
        metavar="KEY=VALUE",
        help="change the config: image_size=640 model.backbone.drop_path_rate=0.2",
    )
    parser.add_argument("--work-dir", help="the run's folder (default: work_dirs/<config's name>)")
    parser.add_argument(
        "--strategy",
        choices=("deepspeed", "single"),
        default="deepspeed",
        help="single: plain PyTorch on one device, without DeepSpeed",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto takes a GPU where there is one",
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds CHECKPOINT and --trust-checkpoint."""
    parser.add_argument(
        "checkpoint",
        nargs="?",
        help=".safetensors, .pth or a checkpoint folder (default: the best of the config's work folder)",
    )
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="also read checkpoints that can run code when loaded: only for files whose source you trust",
    )


def choose_device(device: str) -> None:
    """Makes the choice hold for torch and DeepSpeed; call it before either is imported.

    Raises:
        UserError: `cuda` was asked for and there is no GPU that torch can use.
    """
    # Environment variables are how both are told; they are read once, at import.
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if device != "cpu" and _cuda() else "cpu")
    if device == "cuda" and not _cuda():
        raise UserError(
            "--device cuda: torch sees no GPU; check nvidia-smi and that torch is a CUDA build, or leave "
            "--device out"
        )


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def quiet_libraries() -> None:
    """Leaves warnings that the user cannot act on out of the terminal."""
    import logging
    import warnings

    for text in (
        ".*pkg_resources.*",
        ".*pin_memory.*",
        ".*autocast.*deprecated.*",
        "This DataLoader will create.*",
    ):
        warnings.filterwarnings("ignore", message=text)
    warnings.filterwarnings(
        "ignore", module=r"mmengine\.|mmseg\.|mmcv\.|deepspeed\.|torch\.distributed"
    )
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    os.environ.setdefault("DS_LOG_LEVEL", "error")


def prepare(args: argparse.Namespace) -> "Config":
    """Loads the config that a command's arguments name, with overrides shown and the work folder set."""
    from spark_seg.config import find_config, parse_options
    from spark_seg.engine.launch import mute_other_ranks

    mute_other_ranks()
    find_config(args.config)  # a wrong name is told before seconds of imports
    options = parse_options(args.cfg_options)
    if getattr(args, "seed", None) is not None:
        options["seed"] = args.seed
    quiet_libraries()
    choose_device(args.device)
    from spark_seg.config import load_config

    changes: list[str] = []
    cfg = load_config(args.config, options, changes)
    for change in changes:
        print(f"config: {change}")
    path = find_config(args.config)
    default = str(Path("work_dirs") / path.stem)
    if _is_runs_own(path):
        cfg.work_dir = default = str(path.parent)  # a run's own, wherever the run was moved
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or default
    if not getattr(args, "dry_run", False):
        render_demo_data(cfg, path, options)
    return cfg


def _is_runs_own(config: Path) -> bool:
    """Whether a config is what a training has left in its folder."""
    return config.name == "config.py" and (config.parent / "checkpoints").is_dir()


def render_demo_data(cfg: "Config", path: Path, options: Mapping[str, Any]) -> None:
    """Renders what a config's `demo_data` asks for, where it is not there yet.

    Args:
        cfg: A loaded config.
        path: Its file; a former run's own names the frames of that run.
        options: What the command line changed of it. Other demo frames are replaced in the folder that a config names,
            not in one that was named here: those were rendered for something.
    """
    if not cfg.get("demo_data"):
        return
    from spark_seg.datasets.demo import ensure_demo_data

    if not cfg.data_root:
        raise UserError("demo_data says what to render, data_root where: set data_root too")
    replace = "data_root" not in options and not _is_runs_own(path)
    ensure_demo_data(cfg.data_root, **cfg.demo_data, replace=replace)


def unused(args: argparse.Namespace, cfg: "Config") -> list[str]:
    """What was chosen and concerns PyTorch alone, not a model that is exported."""
    chosen = {
        "--strategy": args.strategy != "deepspeed",
        "compile": bool(cfg.get("compile")),
        "accelerate=False": not cfg.get("accelerate", True),
        "allow_tf32": cfg.get("allow_tf32") is not None,
        f"precision={cfg.get('precision')}": cfg.get("precision", "auto") != "auto",
    }
    return [name for name, given in chosen.items() if given]


def tell_unused(args: argparse.Namespace, cfg: "Config", where: str) -> None:
    """Warns of what `where` (an option, a command) does not use."""
    if ignored := unused(args, cfg):
        print(f"warning: {where} does not use {', '.join(ignored)}", file=sys.stderr)


def find_checkpoint(given: str | None, work_dir: str) -> Path:
    """The checkpoint named on the command line, else the best of the work folder.

    Raises:
        UserFileNotFoundError: Neither is there.
    """
    if given:
        path = Path(given)
        if not path.exists():
            names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UserFileNotFoundError(f"no checkpoint {given}{nearest(path.name, names)}")
        return path
    from spark_seg.engine.folder import BEST_FILE

    best = Path(work_dir) / "checkpoints" / BEST_FILE
    if not best.is_file():
        raise UserFileNotFoundError(
            f"no checkpoint given and none in {best.parent}: train first, or name one"
        )
    return best
