"""Loads a config strictly.

A config is mmengine's classic text config. Four things are added to `mmengine.Config.fromfile`:

- **Named once.** A string `'$image_size'` anywhere in a config stands for the top-level value `image_size` and is
  replaced after all inheritance and all overrides, so that one override reaches every place that derives from it.
- **Overrides** (`--cfg-options image_size=640 model.backbone.drop_path_rate=0.2`) change what exists, or set an
  argument that the class named by `type` beside it accepts.
  A whole group can be named so too (`'$train_pipeline'`), and an override of it reaches it from either place.
- **A choice is a value or a group**: a group may take the place of a value, in a file that inherits
  (`compile = dict(backend="eager")` over the base's False) and in an override (`compile.backend=eager`).
- **Unknown keys are errors** with the nearest name, in overrides and in config files: mmengine's merge would create
  them silently, and a typo would train the default.
"""

import ast
import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_seg import compat
from spark_seg.config_checks import (
    KNOWN_KEYS,
    accepted,
    check_arguments,
    check_top_level,
    check_values,
    fits,
    is_judged,
    takes_group,
)
from spark_seg.errors import UserError, UserFileNotFoundError, nearest
from spark_seg.recipe import CHOICES, expand
from spark_seg.recipe_checks import check_recipe

if TYPE_CHECKING:
    from mmengine.config import Config

_REFERENCE = re.compile(r"\$([A-Za-z_]\w*)")
# Choices whose groups say by `type` which one is meant.
_NAMED = frozenset({"class_weights", "head", "loss", "optimizer", "schedule"})


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

    A value is a Python literal, in which a group may also be written `dict(a=1)` as in a config file, or as in JSON
    (`true`, `false`, `null`), or else plain text.

    Raises:
        UserError: An option is not of the form key=value, or a `dict(...)` cannot be read.
    """
    parsed: dict[str, Any] = {}
    for option in options or ():
        key, sign, text = option.partition("=")
        if not sign or not key.strip():
            raise UserError(f"--cfg-options takes key=value, not {option!r}")
        parsed[key.strip()] = _literal(text.strip(), key.strip())
    return parsed


_WORDS = {"true": True, "false": False, "none": None, "null": None}


class _AsLiteral(ast.NodeTransformer):
    """Turns what configs and JSON write, `dict(a=1)` and `true`, into the literals that mean the same."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        names = [keyword.arg for keyword in node.keywords]
        if not isinstance(node.func, ast.Name) or node.func.id != "dict" or node.args:
            return node
        if None in names or len(set(names)) < len(names):  # **others; twice the same
            return node
        return ast.Dict([ast.Constant(name) for name in names], [k.value for k in node.keywords])

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(_WORDS[node.id]) if node.id in _WORDS else node


def _literal(text: str, key: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(_AsLiteral().visit(ast.parse(text, mode="eval")))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        if re.match(r"dict\s*\(|\[.*\]$|\{.*\}$", text):  # never meant as text
            like = "['text', 1]" if text.startswith("[") else "dict(name='text', other=1)"
            raise UserError(
                f'{key}={text}: cannot be read; text inside wants quotes, and all of it others: "{key}={like}"'
            ) from None
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
        The merged config with every `'$name'` replaced. `unresolved_text` gives it as it was before.

    Raises:
        UserFileNotFoundError: No such config.
        UserError: The file is no valid config, a key is unknown, or a value is of the wrong kind.
    """
    from spark_seg import register  # noqa: F401  # importing it registers what the checks below look up
    from mmengine.config import Config  # isort: skip
    from mmengine.registry import init_default_scope  # isort: skip

    path = find_config(name)
    try:
        with compat.groups_replace_values(is_judged, CHOICES):
            cfg = Config.fromfile(str(path), import_custom_modules=True)
    except UserError:
        raise
    except (
        Exception
    ) as e:  # a config is a program: whatever it raises is the user's to see, in one line
        raise UserError(f"{path} cannot be loaded: {type(e).__name__}: {_first_line(e)}") from e
    check_top_level(cfg, path)
    for key, value in (options or {}).items():
        before = _override(cfg, key, value)
        if changes is not None:
            changes.append(f"{key}: {'nothing' if before is ... else repr(before)} -> {value!r}")
    unresolved = copy.deepcopy(cfg)
    resolve(cfg)
    # A run's config.py keeps the `'$name'`s, so that overrides of it reach as far as those of the original.
    object.__setattr__(cfg, "_unresolved", unresolved)
    init_default_scope(cfg.get("default_scope", "mmseg"))
    check_values(cfg)
    expand(cfg, options)
    check_arguments(cfg)
    check_recipe(cfg, options)
    return cfg


def resolve(cfg: "Config") -> None:
    """Replaces every `'$name'` by the top-level value of that name, in place."""

    def walk(value: Any, where: str, through: tuple[str, ...]) -> Any:
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
            if name in through:
                raise UserError(f"{where} refers to {value!r}, which refers back to itself")
            return walk(copy.deepcopy(cfg[name]), where, (*through, name))
        if isinstance(value, dict):
            for key in value:
                value[key] = walk(value[key], f"{where}.{key}", through)
        elif isinstance(value, list):
            for i, item in enumerate(value):
                value[i] = walk(item, f"{where}[{i}]", through)
        elif isinstance(value, tuple):
            return tuple(walk(item, f"{where}[{i}]", through) for i, item in enumerate(value))
        return value

    for key in list(cfg.keys()):
        cfg[key] = walk(cfg[key], key, ())


def unresolved(cfg: "Config") -> "Config":
    """A loaded config with overrides but with every `'$name'` as it was written."""
    return vars(cfg).get("_unresolved") or cfg


def unresolved_text(cfg: "Config") -> str:
    """As `unresolved`, as Python text."""
    return unresolved(cfg).pretty_text


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else "no message"


def _override(cfg: "Config", key: str, value: Any) -> Any:
    """Sets one dotted key and returns what was there; `...` where there was nothing."""
    parts = key.split(".")
    if parts[0].startswith("_") and parts[0] in cfg:
        raise UserError(
            f"{parts[0]} is a helper variable, whose value is already where it is used: override it there"
        )
    node: Any = cfg
    where = ""  # the dotted name of `node`, references followed
    for depth, part in enumerate(parts[:-1]):
        here = ".".join(parts[: depth + 1])
        if isinstance(node, list | tuple):
            child = node[_index(node, part, key)]
        elif part in node:
            child = node[part]
        else:
            names = {*node.keys(), *accepted(node, where)}
            raise UserError(f"unknown config key {here!r} in {key}={value!r}{nearest(part, names)}")
        where = f"{where}.{part}" if where else part
        while isinstance(child, str) and (match := _REFERENCE.fullmatch(child)):
            where = match.group(1)
            if where not in cfg:
                break
            child = cfg[where]
        if not isinstance(child, dict | list | tuple):
            child = _begin_group(cfg, where, here, child, parts[depth + 1])
        node = child
    last = parts[-1]
    if isinstance(node, tuple):
        raise UserError(f"{key}: set the whole of {'.'.join(parts[:-1])} ({node!r}) instead")
    if isinstance(node, list):
        index = _index(node, last, key)
        before, node[index] = node[index], value
        return before
    if last not in node:
        names = set(KNOWN_KEYS) if len(parts) == 1 else accepted(node, where)
        # a choice judges its group itself, when it is worked in
        if last not in names and (names or not takes_group(where.split(".")[0])):
            raise UserError(f"unknown config key {key!r}{nearest(last, {*node.keys(), *names})}")
    elif (
        isinstance(node[last], dict)
        and not isinstance(value, dict | None)
        # a choice is a name or a group, as one likes
        and (len(parts) > 1 or not (last in CHOICES or fits(last, value)))
    ):
        raise UserError(f"{key} is a group of keys, not a value: set one of {sorted(node[last])}")
    before, node[last] = node.get(last, ...), value
    return before


def _begin_group(cfg: "Config", where: str, here: str, value: Any, key: str) -> Any:
    """A new group in the place of a choice that is off, or just on, for `compile.backend=eager`.

    Args:
        cfg: Changed in place.
        where: The choice's name.
        here: What the user called it.
        value: What it is.
        key: The first of the group's keys.

    Raises:
        UserError: It takes no group, would lose a value, or does not begin with the name of what is chosen.
    """
    told = f"{here!r} is a value ({value!r}), it has no key {key!r}"
    if not takes_group(where):
        raise UserError(told)
    first = "type=..., " if where in _NAMED and key != "type" else ""
    if first or not (value is None or isinstance(value, bool)):
        raise UserError(f'{told}: set the whole of it, "{where}=dict({first}{key}=...)"')
    cfg[where] = {}
    return cfg[where]


def _index(node: list | tuple, part: str, key: str) -> int:
    if not part.lstrip("-").isdigit() or not -len(node) <= int(part) < len(node):
        raise UserError(f"{key}: {part!r} is no index into a list of {len(node)}")
    return int(part)
