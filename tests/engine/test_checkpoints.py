"""Weights of every form load and are the same; what cannot be trusted or does not fit is refused in one line."""

import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spark_seg.engine.checkpoints import load_state_dict, save_pth, save_safetensors
from spark_seg.engine.folder import WEIGHTS_FILE
from spark_seg.errors import UserError, UserFileNotFoundError

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


def refused(path: Path, trust: bool = False) -> str:
    """The one line with which a checkpoint is refused; it names the file."""
    with pytest.raises(UserError) as e:
        load_state_dict(path, trust)
    assert "\n" not in str(e.value)
    assert str(path) in str(e.value)
    return str(e.value)


FORMS: dict[str, Callable[[State], Any]] = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "meta": {"epoch": 3}},
    "module": lambda s: {"module": s, "lr": 0.1},
    "ddp": lambda s: {f"module.{k}": v for k, v in s.items()},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_torch_files_of_every_form(form: str, legacy: bool, state: State, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(FORMS[form](state), path, _use_new_zipfile_serialization=not legacy)
    assert same(load_state_dict(path), state)


def test_what_we_save_loads(state: State, tmp_path: Path) -> None:
    save_safetensors(state, tmp_path / "w.safetensors")
    save_pth(state, tmp_path / "w.pth")
    assert same(load_state_dict(tmp_path / "w.safetensors"), state)
    assert same(load_state_dict(tmp_path / "w.pth"), state)
    assert same(torch.load(tmp_path / "w.pth", weights_only=True), state)
    assert {p.name for p in tmp_path.iterdir()} == {"w.safetensors", "w.pth"}


@pytest.mark.parametrize("inside", ["", "checkpoints/best"])
def test_folders_with_plain_weights(inside: str, state: State, tmp_path: Path) -> None:
    (tmp_path / inside).mkdir(parents=True, exist_ok=True)
    save_safetensors(state, tmp_path / inside / WEIGHTS_FILE)
    assert same(load_state_dict(tmp_path), state)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"epoch,loss\n1,0.5\n", "not a file that torch.save wrote"),
        (b"PK\x03\x04" + b"x" * 500, "truncated"),
        (b"\x80\x02garbage that is no pickle", "damaged"),
        (b"\x80", "damaged"),
    ],
)
def test_files_that_are_no_checkpoint(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    assert says in refused(path)
    assert "--trust" not in refused(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.8, 0.999])
def test_truncated_file(share: float, legacy: bool, state: State, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    state["large"] = torch.zeros(10_000)
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    told = refused(path)
    assert "truncated" in told
    assert "--trust" not in told, "trusting it would not help"
    assert "truncated" in refused(path, trust=True)


def test_flipped_bits_in_a_torch_file(state: State, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    state["large"] = torch.arange(10_000, dtype=torch.float32)
    torch.save(state, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    assert "damaged" in refused(path)


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "submission.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("test_00000_layer.npz", b"x")
    assert "damaged" in refused(path)


@pytest.mark.parametrize("cut", [4, 60, -10])
def test_damaged_safetensors(cut: int, state: State, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_safetensors(state, path)
    path.write_bytes(path.read_bytes()[:cut])
    assert "no whole safetensors file" in refused(path)


@pytest.mark.parametrize("content", [b"", b"text, not tensors"])
def test_no_safetensors_at_all(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    assert "no whole safetensors file" in refused(path)


class Bomb:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return (open, (str(self.trace), "w"))


@pytest.mark.parametrize("legacy", [False, True])
def test_pickle_that_would_run_code_does_not(legacy: bool, state: State, tmp_path: Path) -> None:
    path, trace = tmp_path / "model.pth", tmp_path / "it-ran"
    torch.save(
        {"state_dict": state, "x": Bomb(trace)}, path, _use_new_zipfile_serialization=not legacy
    )
    assert "could run code" in refused(path)
    assert "--trust-checkpoint" in refused(path)
    assert not trace.exists()
    assert same(load_state_dict(path, trust=True), state)
    assert trace.exists(), "the bomb is real: trusting it set it off"


def test_bare_pickle_that_would_run_code_does_not(tmp_path: Path) -> None:
    path, trace = tmp_path / "model.pth", tmp_path / "it-ran"
    path.write_bytes(pickle.dumps(Bomb(trace)))
    refused(path)
    assert not trace.exists()


def test_mmengines_own_checkpoints_need_trust(state: State, tmp_path: Path) -> None:
    from mmengine.logging import HistoryBuffer

    path = tmp_path / "epoch_1.pth"
    history = HistoryBuffer([1.0], [1])
    torch.save({"state_dict": state, "message_hub": {"log_scalars": {"loss": history}}}, path)
    assert "--trust-checkpoint" in refused(path)
    assert same(load_state_dict(path, trust=True), state)


def test_trusted_file_that_needs_a_missing_class(state: State, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(
        b"\x80\x02cnot_a_module_here\nThing\n)R."  # a pickle that names a class of a package not installed
    )
    assert "--trust-checkpoint" in refused(path)
    assert "damaged" in refused(path, trust=True)


@pytest.mark.parametrize(
    "content",
    [{}, [1, 2], {"epoch": 3}, {"state_dict": {"a": 1}}, torch.zeros(3), {"state_dict": {}}],
)
def test_files_without_weights(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(content, path)
    assert "holds no weights" in refused(path)


def test_missing_file_and_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(UserFileNotFoundError, match="no checkpoint"):
        load_state_dict(tmp_path / "nowhere.pth")
    with pytest.raises(UserFileNotFoundError, match="holds no weights"):
        load_state_dict(tmp_path)


def test_numpy_is_not_needed_to_read_ours(state: State, tmp_path: Path) -> None:
    """Plain numbers and tensors only: nothing of numpy, which weights_only would refuse."""
    path = tmp_path / "x.pth"
    torch.save({"state_dict": state, "score": np.float64(0.5)}, path)
    assert "--trust-checkpoint" in refused(path)
    shutil.copy(path, tmp_path / "y.pth")
