"""Loads a config strictly.

A config is mmengine's classic text config. Three things are added to `mmengine.Config.fromfile`:

- **Named once.** A string `'$image_size'` anywhere in a config stands for the top-level value `image_size` and is
  replaced after all inheritance and all overrides, so that one override reaches every place that derives from it.
- **Overrides** (`--cfg-options image_size=640 model.backbone.drop_path_rate=0.2`) change what exists, or set an
  argument that the class named by `type` beside it accepts.
- **Unknown keys are errors** with the nearest name, in overrides and in config files: mmengine's merge would create
  them silently, and a typo would train the default.
"""

import ast
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_seg.errors import UserError, UserFileNotFoundError, nearest

if TYPE_CHECKING:
    from mmengine.config import Config

# What a config may say at its top level: the recipe's values, each named once ...
RECIPE_KEYS = frozenset(
    [
        "variant",
        "image_size",
        "batch_size",
        "epochs",
        "num_classes",
        "num_workers",
        "pretrained",
        "freeze_backbone",
        "precision",
        "seed",
        "deterministic",
        "lr",
        "weight_decay",
        "betas",
        "warmup_epochs",
        "warmup_lr",
        "min_lr",
        "clip_grad",
        "zero_stage",
        "data_root",
        "subset",
        "leave_out",
        "val_batch_size",
        "test_images",
        "log_every",
        "val_every",
        "save_best",
        "demo_data",
    ]
)
# ... and the parts that mmengine's runner takes.
RUNNER_KEYS = frozenset(
    [
        "model",
        "train_dataloader",
        "val_dataloader",
        "test_dataloader",
        "val_evaluator",
        "test_evaluator",
        "optim_wrapper",
        "param_scheduler",
        "train_cfg",
        "val_cfg",
        "test_cfg",
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
        "data_preprocessor",
        "norm_cfg",
        "train_pipeline",
        "val_pipeline",
        "test_pipeline",
    ]
)
_POSITIVE = ("image_size", "batch_size", "val_batch_size", "epochs", "lr", "log_every", "val_every")
_CHOICES: dict[str, tuple[Any, ...]] = {
    "precision": ("auto", "fp32", "bf16"),
    "zero_stage": (0, 1, 2, 3),
}
_REFERENCE = re.compile(r"\$([A-Za-z_]\w*)")


def config_folders() -> list[Path]:
    """The folders in which a config is looked for by its bare name: the clone's, else the installed package's."""
    package = Path(__file__).resolve().parent
    return [f for f in (package.parent / "configs", package / "_configs") if f.is_dir()]


def find_config(name: str) -> Path:
    """Finds a config file by path, or by name among the configs that come with spark_seg.

    Raises:
        UserFileNotFoundError: There is none; the message holds the nearest names.
    """
    path = Path(name)
    if path.is_file():
        return path
    bare = path.name if path.suffix == ".py" else f"{path.name}.py"
    shipped = {f.name: f for folder in config_folders() for f in sorted(folder.glob("*.py"))}
    if bare in shipped:
        return shipped[bare]
    near = [f.name for f in path.parent.glob("*.py")] if path.parent.is_dir() else []
    hint = nearest(bare, [*shipped, *near])
    raise UserFileNotFoundError(
        f"no config file {name!r}{hint or '; there are: ' + ', '.join(sorted(shipped))}"
    )


def parse_options(options: Sequence[str] | None) -> dict[str, Any]:
    """Turns `["a.b=1", "c=[2,3]"]` into `{"a.b": 1, "c": [2, 3]}`.

    A value is a Python literal, one of `true`, `false`, `none`, `null`, or else plain text.

    Raises:
        UserError: An option is not of the form key=value.
    """
    parsed: dict[str, Any] = {}
    for option in options or ():
        key, sign, text = option.partition("=")
        if not sign or not key.strip():
            raise UserError(f"--cfg-options takes key=value, not {option!r}")
        parsed[key.strip()] = _literal(text.strip())
    return parsed


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def load_config(
    name: str,
    options: Mapping[str, Any] | None = None,
    changes: list[str] | None = None,
) -> "Config":
    """Loads, overrides, checks and resolves a config.

    Args:
        name: A config file's path, or the bare name of one that comes with spark_seg.
        options: Dotted keys and their values, as from `parse_options`; lists are indexed by numbers.
        changes: Receives a line such as `image_size: 512 -> 640` for each option.

    Returns:
        The merged config with every `'$name'` replaced.

    Raises:
        UserFileNotFoundError: No such config.
        UserError: The file is no valid config, a key is unknown, or a value is of the wrong kind.
    """
    from spark_seg import register  # noqa: F401  # importing it registers what the checks below look up
    from mmengine.config import Config  # isort: skip
    from mmengine.registry import init_default_scope  # isort: skip

    path = find_config(name)
    try:
        cfg = Config.fromfile(str(path), import_custom_modules=True)
    except UserError:
        raise
    except (
        Exception
    ) as e:  # a config is a program: whatever it raises is the user's to see, in one line
        raise UserError(f"{path} cannot be loaded: {type(e).__name__}: {_first_line(e)}") from e
    _check_top_level(cfg, path)
    for key, value in (options or {}).items():
        before = _override(cfg, key, value)
        if changes is not None:
            changes.append(f"{key}: {before!r} -> {value!r}")
    resolve(cfg)
    init_default_scope(cfg.get("default_scope", "mmseg"))
    _check_values(cfg)
    _check_arguments(cfg)
    return cfg


def resolve(cfg: "Config") -> None:
    """Replaces every `'$name'` by the top-level value of that name, in place."""

    def walk(value: Any, where: str) -> Any:
        if isinstance(value, str):
            match = _REFERENCE.fullmatch(value)
            if not match:
                return value
            name = match.group(1)
            if name not in cfg:
                raise UserError(
                    f"{where} refers to {value!r}, which the config does not define"
                    + nearest(name, cfg.keys())
                )
            return cfg[name]
        if isinstance(value, dict):
            for key in value:
                value[key] = walk(value[key], f"{where}.{key}")
        elif isinstance(value, list):
            for i, item in enumerate(value):
                value[i] = walk(item, f"{where}[{i}]")
        elif isinstance(value, tuple):
            return tuple(walk(item, f"{where}[{i}]") for i, item in enumerate(value))
        return value

    # Top-level names may refer to each other; twice is enough for one level of that.
    for _ in range(2):
        for key in list(cfg.keys()):
            cfg[key] = walk(cfg[key], key)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else "no message"


def _check_top_level(cfg: "Config", path: Path) -> None:
    known = RECIPE_KEYS | RUNNER_KEYS
    for key in cfg:
        if key not in known and not key.startswith("_"):
            raise UserError(
                f"{path}: unknown config key {key!r}{nearest(key, known)} "
                "(a helper variable of your own starts with an underscore)"
            )


def _override(cfg: "Config", key: str, value: Any) -> Any:
    """Sets one dotted key and returns what was there; `...` where there was nothing."""
    parts = key.split(".")
    node: Any = cfg
    for depth, part in enumerate(parts[:-1]):
        here = ".".join(parts[: depth + 1])
        if isinstance(node, list):
            node = node[_index(node, part, key)]
        elif part in node:
            node = node[part]
        else:
            names = sorted({*node.keys(), *_accepted(node)})
            raise UserError(f"unknown config key {here!r} in {key}={value!r}{nearest(part, names)}")
        if not isinstance(node, dict | list) and not hasattr(node, "keys"):
            raise UserError(f"{here!r} is a value ({node!r}), it has no key {parts[depth + 1]!r}")
    last = parts[-1]
    if isinstance(node, list):
        index = _index(node, last, key)
        before, node[index] = node[index], value
        return before
    if last not in node:
        accepted = _accepted(node)
        if last not in accepted:
            # A name that exists elsewhere at the top level is the most frequent slip.
            known = {*node.keys(), *accepted, *(RECIPE_KEYS if len(parts) == 1 else ())}
            raise UserError(f"unknown config key {key!r}{nearest(last, known)}")
    elif isinstance(node[last], dict) and not isinstance(value, dict | None):
        raise UserError(f"{key} is a group of keys, not a value: set one of {sorted(node[last])}")
    before, node[last] = node.get(last, ...), value
    return before


def _index(node: list, part: str, key: str) -> int:
    if not part.lstrip("-").isdigit() or not -len(node) <= int(part) < len(node):
        raise UserError(f"{key}: {part!r} is no index into a list of {len(node)}")
    return int(part)


def _accepted(node: Any) -> set[str]:
    """The arguments that the class named by the node's `type` takes; empty where there is no class."""
    cls = _find_class(node.get("type")) if hasattr(node, "get") else None
    return _arguments(cls)[0] if cls is not None else set()


def _find_class(name: Any) -> Any:
    """The class or function that a config's `type` names, in whichever registry it is."""
    if not isinstance(name, str):
        return name
    from mmengine import registry as engine_registry
    from mmengine.registry import Registry
    from mmseg import registry as mmseg_registry

    for module in (mmseg_registry, engine_registry):
        for candidate in vars(module).values():
            if isinstance(candidate, Registry) and candidate.get(name) is not None:
                return candidate.get(name)
    return None


def _arguments(cls: Any) -> tuple[set[str], bool]:
    """All named arguments of a class through its bases, and whether it also takes any other."""
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


def _check_arguments(cfg: "Config") -> None:
    """Every dict with a `type` may hold only what that class takes."""
    extra = {"type", "_scope_", "priority"}

    def walk(node: Any, where: str) -> None:
        if isinstance(node, dict):
            if "type" in node:
                cls = _find_class(node["type"])
                if cls is None:
                    raise UserError(
                        f"{where}: no registered class {node['type']!r}{_nearest_class(node['type'])}"
                    )
                names, anything = _arguments(cls)
                allowed = names | extra | _BUILDER_KEYS.get(where.split(".")[0], set())
                for key in node:
                    if not anything and key not in allowed:
                        raise UserError(
                            f"{where}: {node['type']} takes no argument {key!r}{nearest(key, names)}"
                        )
            for key, value in node.items():
                # norm_cfg, act_cfg, init_cfg ... go to builders of their own, which take more than the class
                if not key.endswith("_cfg"):
                    walk(value, f"{where}.{key}")
        elif isinstance(node, list | tuple):
            for i, item in enumerate(node):
                walk(item, f"{where}.{i}")

    for key in RUNNER_KEYS & set(cfg.keys()):
        if key not in ("custom_imports", "env_cfg", "norm_cfg"):
            walk(cfg[key], key)


# Keys that a builder takes out before the class is called.
_BUILDER_KEYS = {
    "optim_wrapper": {"optimizer", "constructor", "paramwise_cfg", "clip_grad"},
    "param_scheduler": {"convert_to_iter_based", "by_epoch"},
}


def _nearest_class(name: Any) -> str:
    from mmengine import registry as engine_registry
    from mmengine.registry import Registry
    from mmseg import registry as mmseg_registry

    names: set[str] = set()
    for module in (mmseg_registry, engine_registry):
        for candidate in vars(module).values():
            if isinstance(candidate, Registry):
                names |= set(candidate.module_dict)
    return nearest(str(name), names)


def _check_values(cfg: "Config") -> None:
    for key in _POSITIVE:
        if key in cfg and (isinstance(cfg[key], bool) or not isinstance(cfg[key], int | float)):
            raise UserError(f"{key} must be a number, not {cfg[key]!r}")
        if key in cfg and cfg[key] <= 0:
            raise UserError(f"{key} must be above 0, not {cfg[key]!r}")
    for key in ("image_size", "batch_size", "val_batch_size", "epochs", "num_classes", "seed"):
        if key in cfg and not (isinstance(cfg[key], int) and not isinstance(cfg[key], bool)):
            raise UserError(f"{key} must be a whole number, not {cfg[key]!r}")
    if cfg.get("image_size", 32) < 32:
        raise UserError(f"image_size must be at least 32, not {cfg['image_size']}")
    for key, choices in _CHOICES.items():
        if key in cfg and cfg[key] not in choices:
            raise UserError(
                f"{key} must be one of {', '.join(map(repr, choices))}, not {cfg[key]!r}"
            )
