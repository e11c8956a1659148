"""Pretrained weights: the real loading code on small files in the published formats."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spark_seg.errors import UserError, UserFileNotFoundError
from spark_seg.models import pretrained
from spark_seg.models.pretrained import CLASSIFIER, load_pretrained
from spark_seg.models.published import Published

State = dict[str, Tensor]


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """`publish(content)`: saves `content` as what the table offers, and returns the cached path."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def put(content: Any, backbone_only: bool = False, zipped: bool = True) -> Path:
        plain = tmp_path / "plain.pth"
        torch.save(content, plain, _use_new_zipfile_serialization=zipped)
        digest = hashlib.sha256(plain.read_bytes()).hexdigest()[:8]
        named = plain.rename(tmp_path / f"weights-{digest}.pth")
        entry = Published(named.as_uri(), backbone_only)
        monkeypatch.setattr(pretrained, "published", lambda source, variant: entry)
        return tmp_path / "torch" / "hub" / "checkpoints" / named.name

    return put


@pytest.fixture(scope="module")
def models(build_model: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """`models('b0', classes)`: a network with constant weights, so that what changed shows."""

    def build(variant: str = "b0", classes: int = 3, value: float = 0.0) -> nn.Module:
        model = build_model(variant, classes)
        for tensor in model.state_dict().values():
            tensor.fill_(value)
        return model

    return build


def filled(model: nn.Module, value: float) -> set[str]:
    return {key for key, tensor in model.state_dict().items() if (tensor == value).all()}


def mmseg_file(model: nn.Module) -> dict[str, Any]:
    """What mmseg publishes: weights, and what the run logged."""
    meta = {"CLASSES": ("wall", "sky"), "PALETTE": [[120, 120, 120]], "env_info": "Python 3.7"}
    meta["hook_msgs"] = {"best_score": np.float64(0.37), "iter": np.int64(160000)}  # type: ignore[assignment]
    return {"meta": meta, "state_dict": model.state_dict()}


@pytest.mark.parametrize("zipped", [True, False])
def test_other_classes(models: Any, publish: Any, zipped: bool) -> None:
    path = publish(mmseg_file(models(classes=150, value=2.0)), zipped=zipped)
    model = models()
    report = load_pretrained(model, "ade20k", "b0")
    assert report is not None
    assert report.path == path
    assert set(report.dropped) == set(report.kept) == set(CLASSIFIER)
    assert set(report.loaded) == set(model.state_dict()) - set(CLASSIFIER)
    assert filled(model, 2.0) == set(report.loaded)
    assert filled(model, 0.0) == set(CLASSIFIER)


def test_same_classes(models: Any, publish: Any) -> None:
    publish(mmseg_file(models(classes=19, value=2.0)))
    model = models(classes=19)
    report = load_pretrained(model, "cityscapes", "b0")
    assert report is not None
    assert report.dropped == report.kept == ()
    assert filled(model, 2.0) == set(model.state_dict())


def test_backbone_only(models: Any, publish: Any) -> None:
    publish(models(value=2.0).backbone.state_dict(), backbone_only=True)
    model = models()
    report = load_pretrained(model, "imagenet", "b0")
    assert report is not None
    assert report.dropped == ()
    assert set(report.kept) == {k for k in model.state_dict() if k.startswith("decode_head.")}
    assert filled(model, 2.0) == {k for k in model.state_dict() if k.startswith("backbone.")}


def test_none_does_nothing(models: Any) -> None:
    model = models()
    assert load_pretrained(model, None, "b0") is None
    assert filled(model, 0.0) == set(model.state_dict())


def test_unknown_names(models: Any) -> None:
    with pytest.raises(UserError, match="did you mean 'cityscapes'"):
        load_pretrained(models(), "cityscape", "b0")
    with pytest.raises(UserError, match="no SegFormer variant 'b7'"):
        load_pretrained(models(), "ade20k", "b7")


def remove(prefix: str) -> Callable[[State], None]:
    def change(state: State) -> None:
        for key in [k for k in state if k.startswith(prefix)]:
            del state[key]

    return change


def reshape(state: State) -> None:
    state["decode_head.fusion_conv.conv.weight"] = torch.zeros(768, 1024, 1, 1)


def rename(state: State) -> None:
    state["backbone.norm9.weight"] = state.pop("backbone.layers.0.2.weight")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (remove("backbone.layers.3.2."), "2 keys missing (backbone.layers.3.2.weight, "),
        (
            remove("decode_head."),
            "32 keys missing (decode_head.conv_seg.weight, decode_head.conv_seg.bias, ",
        ),
        (remove("decode_head.conv_seg."), "2 keys missing (decode_head.conv_seg.weight, "),
        (
            lambda s: s.update({f"auxiliary_head.{i}": torch.zeros(1) for i in range(5)}),
            "5 keys unexpected (auxiliary_head.0, auxiliary_head.1, auxiliary_head.2, ...)",
        ),
        (reshape, "1 key of another shape (decode_head.fusion_conv.conv.weight)"),
        (
            rename,
            "1 key missing (backbone.layers.0.2.weight); 1 key unexpected (backbone.norm9.weight)",
        ),
    ],
)
def test_nothing_is_skipped_and_nothing_half_loaded(
    models: Any, publish: Any, change: Callable[[State], None], said: str
) -> None:
    state = dict(models(classes=150, value=2.0).state_dict())
    change(state)
    path = publish({"state_dict": state})
    model = models()
    with pytest.raises(UserError) as caught:
        load_pretrained(model, "ade20k", "b0")
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert filled(model, 0.0) == set(model.state_dict())


@pytest.mark.parametrize("backbone_only", [True, False])
def test_wrong_variant(models: Any, publish: Any, backbone_only: bool) -> None:
    other = models("b1", 150)
    content = other.backbone.state_dict() if backbone_only else mmseg_file(other)
    publish(content, backbone_only)
    with pytest.raises(UserError, match=r"it is a b1, not a b0: .* keys of another shape"):
        load_pretrained(models(), "ade20k", "b0")


def test_backbone_file_with_a_head_is_an_error(models: Any, publish: Any) -> None:
    publish(models(value=2.0).state_dict(), backbone_only=True)
    with pytest.raises(UserError, match=r"keys unexpected \(decode_head\."):
        load_pretrained(models(), "imagenet", "b0")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code ran",)


def test_file_that_would_run_code(models: Any, publish: Any, capsys: Any) -> None:
    publish({"state_dict": models().state_dict(), "meta": Evil()})
    with pytest.raises(UserError, match="could run code: refused"):
        load_pretrained(models(), "ade20k", "b0")
    assert "code ran" not in capsys.readouterr().out


def test_damaged_cache(models: Any, publish: Any) -> None:
    path = publish(mmseg_file(models(classes=150)))
    load_pretrained(models(), "ade20k", "b0")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"is damaged .* delete it"):
        load_pretrained(models(), "ade20k", "b0")


def test_dead_address(models: Any, publish: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    publish({})
    entry = Published("file:///nowhere/weights-00000000.pth", False)
    monkeypatch.setattr(pretrained, "published", lambda source, variant: entry)
    with pytest.raises(UserError, match=r"cannot download file:///nowhere.* pretrained=None"):
        load_pretrained(models(), "ade20k", "b0")


@pytest.mark.parametrize("place", ["checkpoints/best", "."])
def test_own_run_folder(models: Any, tmp_path: Path, place: str) -> None:
    """A run's folder gives its best checkpoint, a checkpoint's folder itself; the norms' eps noted there holds."""
    from spark_seg.engine.checkpoints import save_safetensors, with_norms
    from spark_seg.engine.folder import WEIGHTS_FILE
    from spark_seg.models.convert import norms_of

    folder = tmp_path / "run" / place
    folder.mkdir(parents=True)
    state = with_norms(models(classes=3, value=2.0).state_dict(), "nvlabs")
    save_safetensors(state, folder / WEIGHTS_FILE)
    model = models()
    report = load_pretrained(model, str(tmp_path / "run"), "b0")
    assert report is not None
    assert report.dropped == report.kept == ()
    assert filled(model, 2.0) == set(model.state_dict())
    assert norms_of(model) == "nvlabs"


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_own_file(models: Any, tmp_path: Path, form: str) -> None:
    from safetensors.torch import save_file

    path = tmp_path / f"best.{form}"
    state = models(classes=5, value=2.0).state_dict()
    torch.save(state, path) if form == "pth" else save_file(state, path)
    model = models()
    report = load_pretrained(model, str(path), "b0")
    assert report is not None
    assert set(report.dropped) == set(CLASSIFIER)
    assert filled(model, 2.0) == set(report.loaded)
    with pytest.raises(UserFileNotFoundError, match=r"other\.pth"):
        load_pretrained(model, str(tmp_path / "other.pth"), "b0")


def test_weights_that_are_no_numbers(models: Any, tmp_path: Path) -> None:
    model = models("b0")
    state = {**model.state_dict(), "backbone.layers.0.2.weight": torch.full((32,), float("nan"))}
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(
        UserError, match=r"nan\.pth: 1 key with NaN .*backbone\.layers\.0\.2\.weight"
    ):
        load_pretrained(models("b0"), str(tmp_path / "nan.pth"), "b0")


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_norms_of_another_version(models: Any, tmp_path: Path, form: str) -> None:
    """A mark that is not known is told before anything is loaded."""
    from safetensors.torch import save_file

    state = models("b0", value=1.0).state_dict()
    file = tmp_path / f"marked.{form}"
    if form == "pth":
        torch.save({"state_dict": state, "meta": {"layer_norms": 5}}, file)
    else:
        save_file(state, str(file), metadata={"layer_norms": "martian"})
    model = models("b0")
    with pytest.raises(
        UserError, match=r"^\S*marked\.\w+: its layer norms are marked (5|'martian')"
    ):
        load_pretrained(model, str(file), "b0")
    assert filled(model, 0.0) == set(model.state_dict())


def test_the_config_that_fits_is_that_of_the_file(models: Any, tmp_path: Path) -> None:
    """Whatever the config says its variant is: the network's own shapes count."""
    torch.save(models("b0").state_dict(), tmp_path / "b0.pth")
    with pytest.raises(UserError, match=r"it is a b0, not a b1: .*segformer_b0_spark\.py fits it"):
        load_pretrained(models("b1"), str(tmp_path / "b0.pth"), "b0")


def test_looking_at_a_source_fetches_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from spark_seg.models.pretrained import look_at

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(pretrained, "fetch_in_job", None)
    monkeypatch.setattr(pretrained, "fetch_repo", None)
    assert look_at(None, "b0") is None
    assert "not in the cache yet: tools/fetch_weights.py" in str(look_at("ade20k", "b2"))
    assert "not in the cache yet" in str(look_at("backbone:nvidia/mit-b2", "b2"))
    (tmp_path / "own.pth").write_bytes(b"")
    assert look_at(str(tmp_path / "own.pth"), "b2") == f"weights from {tmp_path / 'own.pth'}"
    for missing in ("/nope/x.pth", "/nope/run", "backbone:/nope/x.pth"):
        with pytest.raises(UserFileNotFoundError, match="there is no file or folder /nope"):
            look_at(missing, "b0")
    with pytest.raises(UserError, match="ade20k"):
        look_at("ade2k", "b0")
