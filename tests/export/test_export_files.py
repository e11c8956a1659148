"""Exported files compute what PyTorch computes; infer.py takes them in its place."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import spark_seg.register  # noqa: F401
from spark_seg.cli.common import tell_unused
from spark_seg.cli.export import main as export_main
from spark_seg.cli.infer import main as infer_main
from spark_seg.engine.checkpoints import save_safetensors
from spark_seg.errors import UserError
from spark_seg.export.backends import ExportedSegmentor, load_backend
from spark_seg.export.graph import (
    Graph,
    example,
    export_onnx,
    export_program,
    save_openvino,
    to_openvino,
)
from spark_seg.export.maps import as_maps
from spark_seg.export.run import compare, export, load_segmentor, pictures_of

SIZE = 64


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cfg(tmp_path_factory) -> Any:
    folder = tmp_path_factory.mktemp("export")
    return tiny.tiny_config(tiny.make_tree(folder / "tree"), folder / "run")


@pytest.fixture(scope="module")
def model(cfg) -> Any:
    from mmseg.registry import MODELS

    torch.manual_seed(0)
    return MODELS.build(cfg.model).eval()


def expected(model: Any, pictures: torch.Tensor) -> np.ndarray:
    """What mmseg's own model makes of pictures as the pipeline packs them."""
    with torch.no_grad():
        packed = model.data_preprocessor({"inputs": list(pictures)})["inputs"]
        return model(packed).numpy()


def far(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(abs(ours - theirs).max() / abs(theirs).max())


def test_graph_normalises_as_mmseg_does(model):
    pictures = example(SIZE, True, 3)
    with torch.no_grad():
        assert far(Graph(model)(pictures).numpy(), expected(model, pictures)) < 1e-5


@pytest.mark.parametrize("head", ["SegformerHead", "PaperSegformerHead"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_maps_for_openvino(cfg, head, dtype, limit):
    from mmseg.registry import MODELS

    parts = copy.deepcopy(cfg.model)
    parts.decode_head.type = head
    torch.manual_seed(0)
    stock = MODELS.build(parts).eval()
    for module in stock.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)
    graph = Graph(stock, normalise=False)
    before = {type(m).__name__ for m in graph.modules()}
    as_maps(graph.model)
    names = {type(m).__name__ for m in graph.modules()} - before
    assert names == {"MapMixFFN", f"Map{head}"}
    assert list(graph.model.state_dict()) == list(stock.state_dict())
    x = torch.randn(2, 3, 64, 96, dtype=dtype, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        graph.model.to(dtype), stock.to(dtype)
        assert far(graph.model(x).numpy(), stock(x).numpy()) < limit


def test_openvino_leaves_the_graph_alone(model):
    pytest.importorskip("openvino")
    graph = Graph(model)
    kinds = [type(m) for m in graph.modules()]
    assert to_openvino(graph, SIZE).input().partial_shape[0].is_dynamic
    assert [type(m) for m in graph.modules()] == kinds


def test_program(model, tmp_path):
    export_program(Graph(model), SIZE, tmp_path / "m.pt2")
    again = torch.export.load(tmp_path / "m.pt2").module()
    pictures = example(SIZE, True, 5)
    assert far(again(pictures).detach().numpy(), expected(model, pictures)) < 1e-5
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt2"]


@pytest.fixture(scope="module")
def onnx_file(model, tmp_path_factory) -> Path:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    return export_onnx(Graph(model), SIZE, tmp_path_factory.mktemp("onnx") / "model.onnx")


def _openvino_has_bf16() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.mark.parametrize(
    ("backend", "precision", "limit"),
    [("onnxruntime", "fp32", 1e-5), ("openvino", "fp32", 1e-5), ("openvino", "bf16", 0.05)],
)
def test_backends(model, onnx_file, backend, precision, limit, tmp_path):
    pytest.importorskip(backend)
    if precision == "bf16" and not _openvino_has_bf16():
        with pytest.raises(UserError, match="does not compute in bf16; use fp32"):
            load_backend(onnx_file, backend, precision)
        return
    path = onnx_file
    if backend == "openvino":
        path = save_openvino(to_openvino(Graph(model), SIZE), tmp_path / "m.xml")
    run = load_backend(path, backend, precision)
    segmentor = ExportedSegmentor(run, SIZE, "x")
    kept = []
    for batch in (1, 3, 2, 1):
        pictures = example(SIZE, True, batch)
        kept.append((segmentor(list(pictures)), expected(model, pictures)))
    for ours, theirs in kept:  # the second call left the first one's logits alone
        assert far(ours.numpy(), theirs) < limit
    with pytest.raises(UserError, match="takes 64 x 64 pixels"):
        segmentor(list(example(96, True)))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_several_calls_at_a_time(model, onnx_file, backend):
    """More of them than streams, with batches of three sizes, of which two are kept compiled."""
    pytest.importorskip(backend)
    run = load_backend(onnx_file, backend, streams=2)
    pictures = [example(SIZE, True, batch) for batch in (1, 2, 1, 3, 2, 1, 3, 1)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: run(x.numpy()), pictures))
    for ours, picture in zip(found, pictures, strict=True):
        assert far(ours, expected(model, picture)) < 1e-5


def test_a_cpu_without_bf16(cfg, model, monkeypatch, tmp_path):
    """Told before anything is computed, in words that fit the command."""
    openvino = pytest.importorskip("openvino")
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", "INT8"])
    with pytest.raises(UserError, match=r"^openvino in bf16: this CPU does not .*; use fp32$"):
        load_backend(tmp_path / "m.xml", "openvino", "bf16")
    weights, out = tmp_path / "w.safetensors", tmp_path / "files"
    told = r"^--formats openvino-bf16: this CPU does not compute in bf16; leave that format out"
    save_safetensors(copy.deepcopy(model).state_dict(), weights)
    with pytest.raises(UserError, match=told) as e:
        export(cfg, weights, out, formats=("openvino-fp32", "openvino-bf16"), frames=1)
    assert "--backend-precision" not in str(e.value)
    assert "\n" not in str(e.value)
    assert not out.exists()
    with pytest.raises(UserError, match=r"^--backend-precision bf16: this CPU does not"):
        load_segmentor(cfg, weights, "openvino", "bf16")
    (row,) = export(cfg, weights, out, formats=("openvino-fp32",), frames=1)
    assert row["logits"] < 1e-4


def test_compared_frames_come_from_all_of_the_split(cfg):
    """At equal distances: a split is sorted by satellite, and its beginning is one of them."""
    from mmseg.registry import DATASETS

    source = copy.deepcopy(cfg.val_dataloader.dataset)
    frames = DATASETS.build(source)
    assert len(frames) >= 3
    (first, _), (last, _) = pictures_of(cfg, "val", 2)
    assert torch.equal(first, frames[0]["inputs"])
    assert torch.equal(last, frames[len(frames) - 1]["inputs"])


def test_logits_that_are_no_numbers(cfg, model):
    """A runtime's are told of that format, PyTorch's own of the weights: neither counts as no difference."""
    graph = Graph(model)

    def run(images):
        return np.full((1, 3, SIZE // 4, SIZE // 4), np.nan, np.float32)

    with pytest.raises(UserError, match="openvino-int8 computes logits that are no finite numbers"):
        compare(cfg, graph, {"openvino-int8": (Path("model.xml"), run)}, 2)
    broken = copy.deepcopy(graph)
    torch.nn.init.constant_(broken.model.decode_head.conv_seg.bias, np.nan)
    with pytest.raises(UserError, match="PyTorch's own logits"):
        compare(cfg, broken, {"openvino-int8": (Path("model.xml"), run)}, 2)


def test_missing_files_and_precisions(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match="cannot read"):
        load_backend(tmp_path / "model.onnx", "onnxruntime")
    with pytest.raises(UserError, match="computes in fp32, not in bf16"):
        load_backend(tmp_path / "model.onnx", "onnxruntime", "bf16")


@pytest.mark.parametrize(
    "options",
    [
        ["--backend-precision", "bf16"],
        ["--exported", "x"],
        ["--backend", "onnxruntime", "--backend-precision", "int8"],
        ["--backend", "openvino", "--device", "cuda"],
        ["--backend", "onnxruntime", "--device", "cuda"],
    ],
)
def test_options_without_effect(options):
    with pytest.raises(UserError):
        infer_main(["segformer_b0_spark.py", "--out", "o", *options])


def test_what_an_exported_model_does_not_use_is_named(capsys):
    from argparse import Namespace

    tell_unused(Namespace(strategy="deepspeed"), {"accelerate": True}, "export")  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""
    chosen = {"compile": True, "precision": "bf16", "accelerate": False, "allow_tf32": True}
    tell_unused(Namespace(strategy="single"), chosen, "export")  # type: ignore[arg-type]
    told = "warning: export does not use --strategy, compile, accelerate=False, allow_tf32, precision=bf16\n"
    assert capsys.readouterr().err == told


def test_a_format_that_is_not(tmp_path):
    with pytest.raises(UserError, match="onnx"):
        export_main(["segformer_b0_spark.py", "--out", str(tmp_path), "--formats", "onx"])


@pytest.mark.slow
def test_export_then_infer(cfg, model, tmp_path, capsys):
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
        pytest.importorskip(package)
    weights = tmp_path / "w.safetensors"
    save_safetensors(copy.deepcopy(model).state_dict(), weights)
    common = [
        tiny.CONFIG,
        str(weights),
        "--strategy",
        "single",
        "--cfg-options",
        f"data_root={cfg.data_root}",
        f"image_size={SIZE}",
        "pretrained=None",
        "num_workers=0",
    ]
    formats = ["onnx", "openvino-fp32", "openvino-bf16", "openvino-int8", "torch"]
    if not _openvino_has_bf16():
        formats.remove("openvino-bf16")
    files = tmp_path / "files"
    told = ["--frames", "3", "--calibrate", "4", "--formats", *formats]
    assert export_main([*common, "--out", str(files), *told]) == 0
    out = capsys.readouterr().out
    assert all(f"{name}: model" in out for name in formats)
    assert "mIoU" in out
    zips = []
    for options in (
        [],
        ["--backend", "onnxruntime", "--exported", str(files)],
        ["--backend", "openvino"],
        ["--backend", "openvino", "--backend-precision", "int8", "--exported", str(files)],
    ):
        to = tmp_path / f"out{len(zips)}"
        assert infer_main([*common, "--out", str(to), *options]) == 0
        zips.append((to / "submission.zip").read_bytes())
    assert zips[0] == zips[1] == zips[2]

    # the files know what they were made of
    assert sorted(json.loads((files / "export.json").read_text())["files"]) == [
        "model.onnx",
        "model.pt2",
        "model.xml",
        "model_int8.xml",
    ]
    others = copy.deepcopy(model).state_dict()
    others["decode_head.conv_seg.bias"] += 1
    save_safetensors(others, weights)
    onnx = ["--backend", "onnxruntime", "--exported", str(files), "--out", str(tmp_path / "o")]
    with pytest.raises(UserError, match=r"exported from .*w\.safetensors, whose weights are not"):
        infer_main([*common, *onnx])
    bare = [common[0], *common[2:], "--work-dir", str(tmp_path / "none")]
    assert infer_main([*bare, *onnx]) == 0, "no checkpoint is needed"
    assert (tmp_path / "o" / "submission.zip").read_bytes() == zips[0]
    best = tmp_path / "none" / "checkpoints" / "best.safetensors"
    best.parent.mkdir(parents=True)
    save_safetensors(others, best)
    with pytest.raises(UserError, match=r"name the checkpoint that it was made of"):
        infer_main([*bare, *onnx])
    best.unlink()

    # another export leaves what it does not write, and a failed one leaves all
    before = (files / "model.onnx").read_bytes()
    export_main([*common, "--out", str(files), "--frames", "1", "--formats", "torch"])
    assert (files / "model.onnx").read_bytes() == before
    assert infer_main([*bare, *onnx]) == 0
    with pytest.raises(UserError, match="no id in it"):
        export_main([*common, "val_dataloader.dataset.subset=[]", "--out", str(files)])
    assert (files / "model.onnx").read_bytes() == before
    assert not list(files.glob(".*"))
