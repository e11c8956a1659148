"""The environment variables that the launching scripts honour, as arguments of the commands.

    SEGFORMER_VARIANT=b3 IMAGE_SIZE=640 sbatch tools/dist_train_slurm.sh

The scripts ask this module (`python -m spark_seg.cli.environment train ARGS`), show the resulting command, and run
it. `tools/train.py` itself reads none of them: a forgotten `export LR=...` changes no run that was started by hand,
and the command that a job shows means the same wherever it is repeated. What is written on the command line goes
before the variables.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from spark_seg.errors import UserError, UserFileNotFoundError, nearest

_VARIANTS = ("b0", "b1", "b2", "b3", "b4", "b5")
_DEFAULT_VARIANT = "b2"
# Variable -> the config's key, for each command; the kind of number.
_OPTIONS: dict[str, dict[str, tuple[str, type]]] = {
    "train": {
        "IMAGE_SIZE": ("image_size", int),
        "BATCH_SIZE": ("batch_size", int),
        "EPOCHS": ("epochs", int),
        "LR": ("lr", float),
    },
    "test": {"IMAGE_SIZE": ("image_size", int), "BATCH_SIZE": ("val_batch_size", int)},
    "infer": {"IMAGE_SIZE": ("image_size", int), "BATCH_SIZE": ("val_batch_size", int)},
}


def command_arguments(
    command: str, args: Sequence[str], environ: Mapping[str, str] | None = None
) -> list[str]:
    """The full arguments of a command: what is given, with what the variables add put in.

    Args:
        command: `train`, `test` or `infer`.
        args: As for `tools/<command>.py`: the config first, then the checkpoint, then options. Without a config it is
            that of SEGFORMER_VARIANT, else b2's.
        environ: Instead of `os.environ`. SEGFORMER_VARIANT; IMAGE_SIZE, EPOCHS, LR, BATCH_SIZE (`val_batch_size` in
            evaluation and inference); MODEL_PATH, the checkpoint; SLURM_RESTART_COUNT, which makes a
            requeued training resume. Empty is as good as not set.

    Raises:
        UserFileNotFoundError: MODEL_PATH is not there.
        UserError: A value is of no use, or contradicts the command line.
    """
    env = {k: v for k, v in (os.environ if environ is None else environ).items() if v.strip()}
    if command not in _OPTIONS:
        raise UserError(f"no command {command!r}{nearest(command, _OPTIONS)}")
    rest = list(args)
    places = 1 if command == "train" else 2
    given: list[str] = []
    while rest and len(given) < places and not rest[0].startswith("-"):
        given.append(rest.pop(0))
    if any(arg in ("-h", "--help") for arg in rest):
        return [*given, *rest]
    full = [_config(env, given[0] if given else None)]
    if command != "train":
        full += _checkpoint(env, given[1] if len(given) > 1 else None)
    changes = [
        f"{key}={_number(env, name, kind)}"
        for name, (key, kind) in _OPTIONS[command].items()
        if name in env
    ]
    if changes:
        full += ["--cfg-options", *changes]
    if command == "train" and _restarted(env) and not _has(rest, "--resume"):
        full.append("--resume")
    return full + rest


def _config(env: Mapping[str, str], given: str | None) -> str:
    variant = env.get("SEGFORMER_VARIANT")
    if variant is None:
        return given or f"segformer_{_DEFAULT_VARIANT}_spark"
    variant = variant.strip().lower()
    if variant not in _VARIANTS:
        raise UserError(
            f"SEGFORMER_VARIANT={env['SEGFORMER_VARIANT']!r} is none of {', '.join(_VARIANTS)}"
            f"{nearest(variant, _VARIANTS)}"
        )
    named = f"segformer_{variant}_spark"
    if given is not None and Path(given).name.removesuffix(".py") != named:
        raise UserError(
            f"SEGFORMER_VARIANT={variant} asks for {named} and the command line for {given}: keep one"
        )
    return given or named


def _checkpoint(env: Mapping[str, str], given: str | None) -> list[str]:
    path = env.get("MODEL_PATH")
    if path is None:
        return [given] if given is not None else []
    if given is not None and Path(given) != Path(path):
        raise UserError(f"MODEL_PATH={path} and the command line's {given} differ: keep one")
    if not Path(path).exists():
        raise UserFileNotFoundError(f"MODEL_PATH={path}: there is no such checkpoint")
    return [path]


def _number(env: Mapping[str, str], name: str, kind: type) -> str:
    text = env[name].strip()
    what = "a whole number from 1 on" if kind is int else "a number above 0"
    try:
        value = kind(text)
    except ValueError:
        raise UserError(f"{name} must be {what}, not {text!r}") from None
    if not 0 < value < float("inf") or (kind is int and not text.isdecimal()):
        raise UserError(f"{name} must be {what}, not {text!r}")
    return text


def _restarted(env: Mapping[str, str]) -> bool:
    return env.get("SLURM_RESTART_COUNT", "0") != "0"


def _has(args: Sequence[str], option: str) -> bool:
    return any(arg == option or arg.startswith(f"{option}=") for arg in args)


def main(argv: list[str] | None = None) -> int:
    """Prints the arguments, each ended by a NUL, for `mapfile -d ''`."""
    args = sys.argv[1:] if argv is None else argv
    sys.stdout.write("".join(f"{arg}\0" for arg in command_arguments(args[0], args[1:])))
    return 0


if __name__ == "__main__":
    from spark_seg.cli import run

    run("environment", sys.argv[1:])
