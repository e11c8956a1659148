"""The commands. `tools/NAME.py` and `spark-seg NAME` both call `run(NAME)`, which calls `spark_seg.cli.NAME.main`.

Modules here import argparse and nothing heavy at the top, so that `--help` answers at once.
"""

import atexit
import contextlib
import errno
import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from spark_seg.errors import UserError, nearest

COMMANDS = {
    "train": "train a config",
    "test": "evaluate a checkpoint: table, metrics.json",
    "report": "an HTML report again, or of two evaluations side by side",
    "infer": "predict a folder of images and write the submission zip",
    "compare": "is run B better than run A? a paired bootstrap over their images",
    "benchmark": "measure what parts cost, against stock mmsegmentation",
    "browse_dataset": "a sheet of samples as training sees them",
    "cache": "decode masks once, for fast training",
    "check_dataset": "look over a SPARK tree before training on it",
    "convert": "weights in the form of mmsegmentation, Hugging Face or NVlabs",
    "export": "a model for ONNX Runtime, OpenVINO or plain torch, compared with PyTorch",
    "fetch_weights": "download published weights, for compute nodes without network",
    "make_demo_data": "render SPARK-like frames in the data's layout",
}
_UNREADABLE = {
    errno.EACCES,
    errno.EIO,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.ESTALE,
}
_WORKER_ERROR = re.compile(r"^(?:spark_seg\.errors\.)?User(?:FileNotFound)?Error: (.*)", re.M)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console command `spark-seg COMMAND ...`."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print("usage: spark-seg COMMAND [...]     spark-seg COMMAND --help\n")
        for name, purpose in COMMANDS.items():
            print(f"  {name.replace('_', '-'):16} {purpose}")
        raise SystemExit(0 if args else 2)
    name = args[0].replace("-", "_")
    if name not in COMMANDS:
        names = [n.replace("_", "-") for n in COMMANDS]
        print(f"error: no command {args[0]!r}{nearest(args[0], names)}", file=sys.stderr)
        raise SystemExit(2)
    run(name, args[1:])


def run(name: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and exits: 0, its own code, 2 after a user's mistake (one line on stderr), 130 after Ctrl-C."""
    # torch asks for huge pages where it allocates much at once: a fifth of a CPU training step. Read at its import.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    call(importlib.import_module(f"spark_seg.cli.{name}").main, argv)


def call(
    main: Callable[[list[str] | None], int | None], argv: Sequence[str] | None = None
) -> NoReturn:
    """Calls a command's `main` and exits as `run` does; also for `python -m` of a module that is a command."""
    try:
        code = main(list(argv) if argv is not None else None)
    except UserError as e:
        if getattr(e, "quiet", False):  # another process tells it
            _leave(2)
        _fail(_message(e), 2)
    except KeyboardInterrupt as e:
        code = getattr(e, "code", 130)
        if not getattr(e, "quiet", False):
            _tell(str(e) or "interrupted")
        if getattr(e, "at_once", False):  # everything is saved and closed
            sys.stdout.flush()
            os._exit(code)
        _leave(code)
    except BrokenPipeError:
        # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _leave(1)
    except OSError as e:
        told = _file_error(e)
        if told is None:
            raise
        _fail(told, 2)
    except RuntimeError as e:
        if not _is_gpu_full(e):
            raise
        first = str(e).strip().split(". ")[0]
        _fail(
            f"{first}: use a smaller batch_size, val_batch_size or image_size, or in training "
            "activation_checkpointing=True",
            2,
        )
    _leave(code or 0)


def _is_gpu_full(error: RuntimeError) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _file_error(error: OSError) -> str | None:
    """What to tell of a file that could not be opened; None where it is not the user's to mend.

    What we write is told where it is written (`spark_seg.atomic`), so most of what comes here was to be read.
    """
    from spark_seg.atomic import write_error

    path = error.filename
    if not isinstance(path, str | bytes | os.PathLike) or error.errno not in _UNREADABLE:
        return _told(write_error(error, os.fsdecode(path) if path else "a file"))
    name = os.fsdecode(path)
    there, folder = os.path.exists(name), os.path.dirname(name) or "."
    only_read = os.access(name, os.R_OK) and not os.access(name, os.W_OK)
    shut = os.path.isdir(folder) and not os.access(folder, os.W_OK)
    if error.errno != errno.ENOENT and (only_read if there else shut):
        return _told(write_error(error, name))
    return f"cannot read {name} ({os.strerror(error.errno)}): check the path and its permissions"


def _told(error: UserError | None) -> str | None:
    return None if error is None else str(error)


def _message(error: UserError) -> str:
    """The error's one line; an error that crossed from a loader's worker carries a traceback around it."""
    text = str(error)
    if text.startswith("Caught "):
        lines = _WORKER_ERROR.findall(text)
        if lines:
            return lines[-1]
    return text


def _tell(message: str) -> None:
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr, flush=True)


def _fail(message: str, code: int) -> NoReturn:
    _tell(message)
    _leave(code)


def _leave(code: int) -> NoReturn:
    """Ends the process with this code; one of several does not let torch take its process groups apart.

    That was seen, once in hundreds of trainings that had done everything, to abort in gloo's threads ("terminate called
    without an active exception"): the launcher then told of a training that failed.
    """
    distributed = sys.modules.get("torch.distributed")
    if (
        distributed
        and distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    ):
        atexit._run_exitfuncs()
        with contextlib.suppress(OSError):  # the reader may have gone
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
