"""The shims over the frozen libraries do what they say, and each is still needed.

A failure that says "remove the shim" is good news: upstream mended what the shim stands in for.
"""

import importlib.util
import subprocess
import sys
import types
from pathlib import Path

import pytest

from spark_seg import compat
from spark_seg.errors import UserError


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a Python of its own, where no shim is installed yet."""
    import os

    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).resolve().parents[1],
        env={**os.environ, **env},
    )


def real_mmcv_ops() -> bool:
    mmcv = importlib.util.find_spec("mmcv")
    assert mmcv is not None
    assert mmcv.submodule_search_locations is not None
    return any(list(Path(place).glob("_ext*.so")) for place in mmcv.submodule_search_locations)


@pytest.fixture
def no_ext(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a fresh process: nothing has put `mmcv._ext` there."""
    monkeypatch.delitem(sys.modules, "mmcv._ext", raising=False)


@pytest.mark.skipif(real_mmcv_ops(), reason="the full mmcv is installed: no stub needed here")
def test_mmcv_stub_is_still_needed() -> None:
    done = python("import mmseg.models")
    assert done.returncode != 0, "mmseg imports with mmcv-lite alone: remove the shim mmcv._ext"
    assert "No module named 'mmcv._ext'" in done.stderr


@pytest.mark.skipif(real_mmcv_ops(), reason="the full mmcv is installed: no stub needed here")
@pytest.mark.usefixtures("no_ext")
def test_mmcv_stub_names_the_operator_and_hides_nothing() -> None:
    assert compat.install_mmcv_ext_stub()
    assert compat.install_mmcv_ext_stub(), "again changes nothing"
    import mmcv._ext as ext

    nms = ext.nms  # importing names from it works ...
    with pytest.raises(RuntimeError, match=r"'nms'.*mmcv-lite.*full package mmcv"):
        nms([], 0.5)  # ... using them does not
    with pytest.raises(AttributeError):
        _ = ext.__path__
    assert ext.__spec__.loader is None, "mmcv must go on believing that it is the lite one"


def test_real_mmcv_ext_in_memory_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = types.ModuleType("mmcv._ext")
    monkeypatch.setitem(sys.modules, "mmcv._ext", real)
    assert not compat.install_mmcv_ext_stub()
    assert sys.modules["mmcv._ext"] is real


@pytest.mark.usefixtures("no_ext")
def test_real_mmcv_ext_on_disk_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "_ext.py").write_text("")
    spec = importlib.machinery.ModuleSpec("mmcv", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert not compat.install_mmcv_ext_stub()
    assert "mmcv._ext" not in sys.modules


@pytest.mark.usefixtures("no_ext")
def test_stub_without_mmcv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not compat.install_mmcv_ext_stub()


def test_register_deepspeed_optimizers_any_number_of_times() -> None:
    from mmengine.registry import OPTIMIZERS

    first = compat.register_deepspeed_optimizers()
    assert compat.register_deepspeed_optimizers() == first
    assert {"DeepSpeedCPUAdam", "FusedAdam", "FusedLamb"} <= set(first)
    for name in first:
        assert OPTIMIZERS.get(name).__name__ == name


def test_deepspeed_optimizers_shim_is_still_needed() -> None:
    done = python(
        "from mmengine._strategy.deepspeed import register_deepspeed_optimizers as register\n"
        "register()\nregister()\n"
    )
    assert done.returncode != 0, "mmengine's own function works twice: remove the shim"
    assert "onebit" in done.stderr or "already registered" in done.stderr, done.stderr[-500:]


def test_patched_strategy_uses_the_shim(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmengine._strategy import deepspeed as module

    monkeypatch.setattr(module, "register_deepspeed_optimizers", None)
    compat.patch_deepspeed_strategy()
    assert module.register_deepspeed_optimizers is compat.register_deepspeed_optimizers


_INIT = """
import os, socket, sys
{skip}
from deepspeed.ops.op_builder.cpu.comm import ShareMemCommBuilder
ShareMemCommBuilder.load = lambda self, *args: sys.exit("would compile " + self.NAME)
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
import deepspeed
deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
print("started")
"""


def test_skip_deepspeed_cpu_build_prevents_compilation() -> None:
    skip = "from spark_seg import compat; compat.skip_deepspeed_cpu_build()"
    done = python(_INIT.format(skip=skip), DS_ACCELERATOR="cpu")
    assert "started" in done.stdout, done.stderr[-500:]
    from deepspeed import ops

    compat.skip_deepspeed_cpu_build()
    assert ops.__compatible_ops__["deepspeed_shm_comm"] is False


def test_skip_deepspeed_cpu_build_is_still_needed() -> None:
    done = python(_INIT.format(skip=""), DS_ACCELERATOR="cpu")
    assert "would compile" in done.stderr, (
        "DeepSpeed starts on a CPU without compiling: remove the shim skip_deepspeed_cpu_build"
    )


def test_install_is_cheap_and_imports_no_mmseg() -> None:
    code = (
        "import sys; from spark_seg import compat; compat.install(); compat.install();"
        "print([m for m in ('torch', 'mmseg', 'deepspeed') if m in sys.modules])"
    )
    done = python(code)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_accuracy_is_mmsegs_without_waiting() -> None:
    compat.install()  # lets mmseg be imported
    import torch
    from mmseg.models.decode_heads import decode_head
    from mmseg.models.losses import accuracy as stock

    assert compat.patch_accuracy()
    assert compat.patch_accuracy(), "again changes nothing"
    generator = torch.Generator().manual_seed(0)
    pred = torch.rand(2, 3, 9, 7, generator=generator)
    target = torch.randint(0, 3, (2, 9, 7), generator=generator)
    target[0, :4] = 255
    for labels in (target, torch.full_like(target, 255)):
        ours = decode_head.accuracy(pred, labels, ignore_index=255)
        theirs = stock(pred, labels, ignore_index=255)
        torch.testing.assert_close(ours, theirs)
    ties = torch.randint(0, 2, (2, 3, 9, 7), generator=generator).float()
    ours = decode_head.accuracy(ties, target, ignore_index=255)
    torch.testing.assert_close(ours, stock(ties, target, ignore_index=255))
    two = decode_head.accuracy(pred, target, topk=(1, 2), ignore_index=255)
    torch.testing.assert_close(two, stock(pred, target, topk=(1, 2), ignore_index=255))


def test_accuracy_shim_is_still_needed() -> None:
    compat.install()
    import torch
    from mmseg.models.losses import accuracy as stock

    # a tensor without values, as the host sees one of the GPU before it has waited for it
    pred, target = torch.rand(2, 3, 4, 4, device="meta"), torch.zeros(2, 4, 4, device="meta")
    with pytest.raises((NotImplementedError, RuntimeError)):
        stock(pred, target, ignore_index=255)  # no error: remove the shim


def test_checkpointing_shim_is_still_needed() -> None:
    from mmseg.models.backbones import mit
    from torch.utils import checkpoint

    assert compat.patch_checkpointing()
    assert mit.cp.checkpoint.keywords == {"use_reentrant": True}
    source = Path(str(mit.__file__)).read_text()
    assert "cp.checkpoint(_inner_forward, x)" in source, "it says which way: remove the shim"
    assert mit.cp is not checkpoint


def test_autocast_globals_shim_is_still_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from deepspeed.runtime import torch_autocast

    monkeypatch.setattr(torch_autocast, "TORCH_AUTOCAST_INITIALIZED", True)
    monkeypatch.setattr(torch_autocast, "TORCH_AUTOCAST_DTYPE", torch.float16)
    assert torch_autocast.is_autocast_initialized(), "no global variables: remove the shim"
    compat.forget_deepspeed_autocast()
    assert not torch_autocast.is_autocast_initialized()
    assert torch_autocast.get_autocast_dtype() is None


def test_optional_modules_are_hidden_only_inside() -> None:
    with compat.hidden("wave"), pytest.raises(ImportError):
        import wave
    import wave

    with compat.hidden("wave"):  # what is imported already stays
        assert sys.modules["wave"] is wave


@pytest.mark.slow
def test_training_imports_neither_transformers_nor_inductor_at_its_start(tmp_path: Path) -> None:
    if importlib.util.find_spec("transformers") is not None:
        done = python("import mmengine.optim, sys; assert 'transformers' in sys.modules")
        assert not done.returncode, (
            "mmengine.optim is light by itself: remove import_mmengine_optim"
        )
    done = python(
        "import deepspeed.runtime.zero.muon.original_muon, sys; assert 'torch._inductor.lowering' in sys.modules"
    )
    assert not done.returncode, "DeepSpeed's Muon is light by itself: remove the shim"
    code = """
import sys
import tiny
from pathlib import Path
from spark_seg.cli.train import main
root = tiny.make_tree(Path(sys.argv[1]) / "tree", train=2, val=1, test=0, size=64)
options = ["pretrained=None", f"data_root={root}", "image_size=64", "batch_size=2", "epochs=1", "num_workers=0"]
assert main(["segformer_b0_spark.py", "--work-dir", sys.argv[1] + "/run", "--cfg-options", *options]) == 0
heavy = [name for name in ("transformers", "torch._inductor.lowering") if name in sys.modules]
assert not heavy, heavy
"""
    tests = str(Path(__file__).parent)
    code = f"import sys; sys.argv = ['', {str(tmp_path)!r}]; sys.path.insert(0, {tests!r})" + code
    done = python(code)
    assert not done.returncode, done.stderr[-3000:]


def test_capture_in_this_thread_is_still_needed() -> None:
    import inspect
    from typing import Any

    import torch

    arguments = inspect.signature(torch.cuda.make_graphed_callables).parameters
    assert "capture_error_mode" not in arguments, "torch takes it now: remove the shim"
    stock = torch.cuda.graph
    with compat.capture_in_this_thread():
        made: Any = torch.cuda.graph
        assert made.func is stock
        assert made.keywords == {"capture_error_mode": "thread_local"}
    assert torch.cuda.graph is stock


def test_groups_over_values_shim_is_still_needed() -> None:
    from mmengine.config import Config

    with pytest.raises(TypeError, match="_delete_"):
        Config._merge_a_into_b({"a": {"b": 1}}, {"a": None})  # no error: remove the shim


def test_groups_over_values_only_inside() -> None:
    from mmengine.config import Config

    stock = vars(Config)["_merge_a_into_b"]
    given = {"a": {"b": {"c": 1}}, "d": {"e": 2}, "f": {"_delete_": True, "g": 3}, "h": 4}
    base = {"a": {"b": None, "i": 5}, "d": [6], "f": None, "h": {"j": 7}}
    with compat.groups_replace_values(lambda key: key != "x", {"k"}):
        merged = Config._merge_a_into_b(given, base)
        # what mmengine's own overrides do to lists stays
        listed = Config._merge_a_into_b({"a": {"0": {"b": 2}}}, {"a": [{"b": 1, "c": 3}]}, True)
        other = Config._merge_a_into_b({"k": {"type": "b"}}, {"k": {"type": "a", "l": 1}})
        below = Config._merge_a_into_b({"m": {"k": {"type": "b"}}}, {"m": {"k": {"l": 1}}})
        with pytest.raises(UserError, match="change x at the top level"):
            Config._merge_a_into_b({"a": {"b": 1}}, {"a": "$x"})
        with pytest.raises(TypeError, match="x="):  # no group may stand there
            Config._merge_a_into_b({"x": {"b": 1}}, {"x": "text"})
        with pytest.raises(TypeError, match="b="):
            Config._merge_a_into_b({"a": {"b": {"c": 1}}}, {"a": {"b": "text"}})
    assert merged == {"a": {"b": {"c": 1}, "i": 5}, "d": {"e": 2}, "f": {"g": 3}, "h": 4}
    assert base == {"a": {"b": None, "i": 5}, "d": [6], "f": None, "h": {"j": 7}}
    assert given["d"] == {"e": 2}
    assert listed == {"a": [{"b": 2, "c": 3}]}
    assert (other, below) == ({"k": {"type": "b"}}, {"m": {"k": {"type": "b", "l": 1}}})
    assert vars(Config)["_merge_a_into_b"] is stock
    with pytest.raises(ZeroDivisionError), compat.groups_replace_values(lambda key: True):
        _ = 1 / 0
    assert vars(Config)["_merge_a_into_b"] is stock
