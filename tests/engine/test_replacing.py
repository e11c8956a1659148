"""Files and checkpoint folders take their place whole or not at all, whenever writing them ends."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from spark_seg.engine.checkpoints import load_state_dict, save_pth, save_safetensors
from spark_seg.engine.folder import newest_whole, replaced_folder
from spark_seg.errors import UserError

State = dict[str, torch.Tensor]


@pytest.fixture
def state() -> State:
    generator = torch.Generator().manual_seed(0)
    return {
        "backbone.weight": torch.randn(4, 3, generator=generator),
        "backbone.bias": torch.randn(4, generator=generator),
        "bn.running_mean": torch.randn(4, generator=generator),
        "bn.num_batches_tracked": torch.tensor(7),
        "transposed": torch.randn(5, 6, generator=generator).T,
    }


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_replaced_folder_takes_the_place(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    for text in ("one", "two"):
        with replaced_folder(folder) as fresh:
            (fresh / "state").write_text(text)
            assert not (folder / "state").exists() or (folder / "state").read_text() == "one"
        assert (folder / "state").read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == ["last"]


def fail_half_way(folder: Path, error: type[BaseException]) -> None:
    with replaced_folder(folder) as fresh:
        (fresh / "state").write_text("half")
        raise error


def test_error_half_way_keeps_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    with replaced_folder(folder) as fresh:
        (fresh / "state").write_text("old")
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            fail_half_way(folder, error)
    assert (folder / "state").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["last"]


def test_leftovers_of_a_killed_save_are_cleared(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    for leftover in ("last.tmp", "last.old"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "junk").write_text("")
    with replaced_folder(folder) as fresh:
        (fresh / "state").write_text("new")
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "state"]
    assert [p.name for p in tmp_path.iterdir()] == ["last"]


def test_kill_between_the_two_renames_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever moment the process dies at, one whole folder is there under the name or beside it as `.old`."""
    import os

    folder = tmp_path / "last"
    with replaced_folder(folder) as fresh:
        (fresh / "state").write_text("old")
    real, calls = os.rename, []

    def rename(a: Any, b: Any) -> None:
        calls.append(a)
        if len(calls) == 2:
            raise KeyboardInterrupt  # stands in for a kill: nothing after it runs
        real(a, b)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(KeyboardInterrupt), replaced_folder(folder) as fresh:
        (fresh / "state").write_text("new")
    monkeypatch.undo()
    found = load_any(folder)
    assert found in ("old", "new")
    with replaced_folder(folder) as fresh:
        (fresh / "state").write_text("newer")
    assert (folder / "state").read_text() == "newer"


def load_any(folder: Path) -> str | None:
    for place in (folder, folder.with_name(folder.name + ".old")):
        if (place / "state").is_file():
            return (place / "state").read_text()
    return None


def test_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with (
        pytest.raises(UserError, match="cannot write"),
        replaced_folder(tmp_path / "checkpoints" / "last"),
    ):
        pass


@pytest.mark.parametrize(
    ("save", "name"), [(save_safetensors, "w.safetensors"), (save_pth, "w.pth")]
)
def test_failed_save_keeps_the_old_file(
    save: Callable[..., None],
    name: str,
    state: State,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import errno
    import os

    path = tmp_path / name
    save(state, path)

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="no room left while writing"):
        save({k: v + 1 for k, v in state.items()}, path)
    assert same(load_state_dict(path), state)
    assert [p.name for p in tmp_path.iterdir()] == [name]


_FULL = """
import resource, signal, sys
import torch
from spark_seg.engine.checkpoints import save_pth, save_safetensors
from spark_seg.engine.folder import replaced_folder
from spark_seg.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
state = {"w": torch.zeros(2_000_000)}
try:
    if sys.argv[1] == "file":
        save_pth(state, sys.argv[2] + "/w.pth")
    else:
        with replaced_folder(sys.argv[2] + "/last") as fresh:
            save_safetensors(state, fresh / "w.safetensors")
except UserError as e:
    print("told:", e)
"""


@pytest.mark.parametrize("how", ["file", "folder"])
def test_no_room_while_torch_writes(how: str, tmp_path: Path) -> None:
    """torch's own writer says RuntimeError where Python says OSError."""
    import subprocess
    import sys

    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _FULL, how, str(tmp_path)], capture_output=True, text=True, cwd=root
    )
    assert done.stdout.startswith("told: "), done.stderr[-800:]
    assert "w.pth" in done.stdout or "last" in done.stdout
    assert list(tmp_path.iterdir()) == []


def write(folder: Path, step: int, keep: str | None = None) -> None:
    """A checkpoint folder that says only how far it is."""
    with replaced_folder(folder, keep_former=keep) as fresh:
        (fresh / "state.json").write_text(json.dumps({"iter": step}))


def step(folder: Path) -> int:
    return json.loads((folder / "state.json").read_text())["iter"]


class Killed(BaseException):
    """Stands in for a kill: of what follows nothing happens."""


@pytest.mark.parametrize("name", ["last", "best"])
def test_killed_at_any_rename_or_removal(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a checkpoint that was sealed nothing is lost, and it has its own name before the next one is written."""
    keep = "previous" if name == "last" else None
    count = 0
    while True:
        count += 1
        folder = tmp_path / str(count)
        for number in (1, 2):
            write(folder / name, number, keep)
        calls = 0
        with monkeypatch.context() as patch:
            for module, function in ((os, "rename"), (shutil, "rmtree")):
                real = getattr(module, function)

                def counted(*args: Any, real: Any = real, last: int = count, **kwargs: Any) -> None:
                    nonlocal calls
                    calls += 1
                    if calls >= last:  # nothing after it either
                        raise Killed
                    real(*args, **kwargs)

                patch.setattr(module, function, counted)
            try:
                write(folder / name, 3, keep)
            except Killed:
                killed = True
            else:
                killed = False
        found, _ = newest_whole(folder)
        assert found == folder / name
        # killed before it was sealed, at the removal of what a kill before had left
        assert step(found) == (2 if count == 1 else 3)
        assert not (folder / f"{name}.tmp").exists() or count == 1
        write(folder / name, 4, keep)
        assert step(folder / name) == 4
        if not killed:
            break
    assert count >= 4


def test_a_damaged_last_does_not_take_the_place_of_the_previous(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write(tmp_path / "last", number, "previous")
    os.rename(tmp_path / "last", tmp_path / "last.tmp")
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "state.json").write_text("torn")
    found, _ = newest_whole(tmp_path)
    assert found == tmp_path / "last"
    assert step(found) == 3
    assert step(tmp_path / "previous") == 2


def test_what_a_kill_left_half_removed_is_no_warning(tmp_path: Path) -> None:
    write(tmp_path / "best", 1)
    shutil.copytree(tmp_path / "best", tmp_path / "best.old")
    (tmp_path / "best.old" / "state.json").unlink()
    assert newest_whole(tmp_path) == (tmp_path / "best", [])
