"""Commands run as `tools/NAME.py` runs them, in the test's own process."""

from pathlib import Path
from typing import Any

import pytest
import tiny

from spark_seg.cli import run


class Command:
    """Runs a command in this process, as `tools/NAME.py` does."""

    def __init__(self, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self.capsys, self.folder = capsys, folder

    def __call__(
        self, name: str, tree: Path, *args: str, single: bool = True, **options: Any
    ) -> tuple[int, str, str]:
        given = {k.replace("__", "."): v for k, v in options.items()}
        common = ["--work-dir", str(self.folder / "work")]
        if single:
            common += ["--strategy", "single"]
        with pytest.raises(SystemExit) as e:
            run(name, ["segformer_b0_spark", *args, *common, *tiny.command_options(tree, given)])
        said = self.capsys.readouterr()
        return int(e.value.code or 0), said.out, said.err

    def fails(self, name: str, tree: Path, *args: str, code: int = 2, **options: Any) -> str:
        """The one line of a command that must fail."""
        found, _, err = self(name, tree, *args, **options)
        assert found == code, err
        assert "Traceback" not in err
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, err
        assert err.rstrip().endswith(errors[0]), "it is the last thing said"
        return errors[0]
