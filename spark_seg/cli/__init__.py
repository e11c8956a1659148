"""The commands. `tools/NAME.py` and `spark-seg NAME` both call `run(NAME)`, which calls `spark_seg.cli.NAME.main`.

Modules here import argparse and nothing heavy at the top, so that `--help` answers at once.
"""

import importlib
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from spark_seg.errors import UserError, nearest

COMMANDS = {
    "train": "train a config",
    "test": "evaluate a checkpoint: table, metrics.json",
    "report": "an HTML report again, or of two evaluations side by side",
    "infer": "predict a folder of images and write the submission zip",
    "compare": "is run B better than run A? a paired bootstrap over their images",
    "benchmark": "measure what parts cost: eval",
    "cache": "decode masks once, for fast training",
    "check_dataset": "look over a SPARK tree before training on it",
    "convert": "weights in the form of mmsegmentation, Hugging Face or NVlabs",
    "fetch_weights": "download published weights, for compute nodes without network",
    "make_demo_data": "render SPARK-like frames in the data's layout",
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
    module = importlib.import_module(f"spark_seg.cli.{name}")
    try:
        code = module.main(list(argv) if argv is not None else None)
    except UserError as e:
        if getattr(e, "quiet", False):  # another process tells it
            raise SystemExit(2) from None
        _fail(_message(e), 2)
    except KeyboardInterrupt as e:
        _fail(str(e) or "interrupted", getattr(e, "code", 130))
    except BrokenPipeError:
        # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as e:
        from spark_seg.atomic import write_error

        told = write_error(e, e.filename or "a file")
        if told is None:
            raise
        _fail(str(told), 2)
    raise SystemExit(code or 0)


def _message(error: UserError) -> str:
    """The error's one line; an error that crossed from a loader's worker carries a traceback around it."""
    text = str(error)
    if text.startswith("Caught "):
        lines = _WORKER_ERROR.findall(text)
        if lines:
            return lines[-1]
    return text


def _fail(message: str, code: int) -> NoReturn:
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr, flush=True)
    # DataLoader workers and process groups must not delay or garble the end.
    sys.exit(code)
