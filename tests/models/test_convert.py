"""Weights under other names: against transformers' own SegFormer, and against NVlabs' forward as its code reads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spark_seg.errors import UserError, UserFileNotFoundError
from spark_seg.models.convert import NORMS, from_mmseg, norms_of, set_norms, to_mmseg
from spark_seg.models.pretrained import CLASSIFIER, load_pretrained, read_weights

DEPTHS = {"b0": (2, 2, 2, 2), "b1": (2, 2, 2, 2), "b2": (3, 4, 6, 3), "b3": (3, 4, 18, 3), "b4": (3, 8, 27, 3),
          "b5": (3, 6, 40, 3)}  # fmt: skip
NO_TRANSFORMERS = "transformers is not installed: pip install 'transformers>=5'"
# Every weight drawn at this scale keeps deep networks' numbers near 1, where rounding is small against the bounds.
SCALE = 0.05


def randomise(model: nn.Module) -> nn.Module:
    """Every weight, bias and statistic drawn anew, so that none may be left out or exchanged."""
    rng = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=rng) * SCALE
            norm = tensor.dim() == 1 and name.endswith((".weight", "running_var"))
            tensor.copy_(1 + noise if norm else noise)
    return model


def hf_model(variant: str, width: int = 256, labels: int = 3, kind: str = "segmentation") -> Any:
    transformers = pytest.importorskip("transformers", reason=NO_TRANSFORMERS)
    config = transformers.SegformerConfig(
        depths=list(DEPTHS[variant]),
        hidden_sizes=[32, 64, 160, 256] if variant == "b0" else [64, 128, 320, 512],
        decoder_hidden_size=width,
        num_labels=labels,
    )
    cls = {
        "segmentation": transformers.SegformerForSemanticSegmentation,
        "classification": transformers.SegformerForImageClassification,
    }[kind]
    return randomise(cls(config)).eval()


@pytest.fixture(scope="module")
def paper_model(model_config: Callable[..., Any]) -> Callable[..., nn.Module]:
    """`paper_model('b0', channels)`: that network with the paper's head."""
    from mmengine.registry import DefaultScope
    from mmseg.registry import MODELS

    import spark_seg.register  # noqa: F401

    def build(variant: str, channels: int = 256, classes: int = 3) -> nn.Module:
        cfg = model_config(variant, classes)
        cfg.decode_head.type, cfg.decode_head.channels = "PaperSegformerHead", channels
        with DefaultScope.overwrite_default_scope("mmseg"):
            return MODELS.build(cfg).eval()

    return build


def load(model: nn.Module, state: dict[str, Tensor], norms: str) -> nn.Module:
    converted = to_mmseg(state)
    assert converted.unused == ()
    model.load_state_dict(converted.state, strict=True)
    set_norms(model, norms)
    return model


@pytest.mark.parametrize(
    "variant", ["b0", "b1", "b2", *(pytest.param(v, marks=pytest.mark.slow) for v in ("b3", "b4", "b5"))]
)  # fmt: skip
def test_features_and_logits_equal_transformers(variant: str, paper_model: Any) -> None:
    width = 256 if variant in ("b0", "b1") else 768
    theirs = hf_model(variant, width)
    ours = load(paper_model(variant, width), theirs.state_dict(), "huggingface")
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
            ours, theirs = ours.to(dtype), theirs.to(dtype)
            features = ours.backbone(image.to(dtype))
            wanted = theirs(image.to(dtype), output_hidden_states=True)
            for mine, their in zip(features, wanted.hidden_states, strict=True):
                assert mine.shape == their.shape
                assert (mine - their).abs().max() <= bound * their.abs().max()
            logits = ours.decode_head(features)
            assert (logits - wanted.logits).abs().max() <= bound * wanted.logits.abs().max()
            assert logits.std() > 1e-3


def test_eps_of_the_source_matters(paper_model: Any) -> None:
    """With mmseg's eps the same weights compute something else: the bound above would tell."""
    theirs = hf_model("b0").double()
    ours = load(paper_model("b0"), theirs.state_dict(), "mmseg").double()
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        mine = ours.backbone(image)[-1]
        their = theirs(image, output_hidden_states=True).hidden_states[-1]
    assert (mine - their).abs().max() > 1e-7 * their.abs().max()


@pytest.mark.parametrize("family", ["nvlabs", "huggingface", "transformers"])
@pytest.mark.parametrize("variant", ["b0", "b2"])
def test_round_trip_through_every_family(family: str, variant: str, paper_model: Any) -> None:
    state = randomise(paper_model(variant)).state_dict()
    written = from_mmseg(state, family)
    assert len(written) > len(state), "query, key and value are apart"
    assert not [key for key in written if ".in_proj" in key or "convs." in key]
    back = to_mmseg(written)
    assert back.family == family
    assert back.unused == ()
    assert back.state.keys() == state.keys()
    for key, tensor in state.items():
        assert torch.equal(back.state[key], tensor), key


def test_names_are_transformers_own(paper_model: Any) -> None:
    """What we write is, key by key and shape by shape, what transformers' modules have, and what its files have."""
    theirs = hf_model("b0")
    written = from_mmseg(paper_model("b0").state_dict(), "transformers")
    assert {k: v.shape for k, v in written.items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }


def test_files_of_transformers(paper_model: Any, tmp_path: Path) -> None:
    """A folder that transformers saved is read, and one of our files is read by transformers: same logits."""
    theirs = hf_model("b0")
    theirs.save_pretrained(tmp_path / "theirs")
    ours = paper_model("b0")
    report = load_pretrained(ours, str(tmp_path / "theirs"), "b0")
    assert report is not None
    assert report.kept == report.dropped == ()
    assert (report.norms, norms_of(ours)) == ("huggingface", "huggingface")
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.decode_head(ours.backbone(image)), theirs(image).logits, atol=1e-5, rtol=1e-5
        )


def test_classification_checkpoint_fills_the_encoder(paper_model: Any, tmp_path: Path) -> None:
    """As nvidia/mit-b2: an encoder and ImageNet's classifier, which is known and left out."""
    theirs = hf_model("b0", labels=1000, kind="classification")
    theirs.save_pretrained(tmp_path)
    ours = paper_model("b0")
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    report = load_pretrained(ours, str(tmp_path), "b0")
    assert report is not None
    assert set(report.dropped) == {"classifier.weight", "classifier.bias"}
    assert set(report.kept) == {k for k in before if k.startswith("decode_head.")}
    assert all(torch.equal(before[k], v) for k, v in ours.state_dict().items() if k in report.kept)
    assert not any(
        torch.equal(before[k], v) for k, v in ours.state_dict().items() if k in report.loaded
    )


# ---------------------------------------------------------------- NVlabs


def nvlabs_forward(state: dict[str, Tensor], image: Tensor) -> Tensor:
    """Logits of NVlabs' SegFormer-b0 (`mix_transformer.py`, `segformer_head.py`), written out over its state dict."""
    import torch.nn.functional as F

    heads, ratios, depths = (1, 2, 5, 8), (8, 4, 2, 1), (2, 2, 2, 2)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def conv(x: Tensor, name: str, **options: Any) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **options)

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    x, maps = image, []
    for s in range(4):
        p = f"backbone.patch_embed{s + 1}"
        x = conv(x, f"{p}.proj", stride=4 if s == 0 else 2, padding=3 if s == 0 else 1)
        h, w = x.shape[2:]
        x = norm(x.flatten(2).transpose(1, 2), f"{p}.norm", 1e-5)
        for j in range(depths[s]):
            p = f"backbone.block{s + 1}.{j}"
            y = norm(x, f"{p}.norm1", 1e-6)
            b, n, c = y.shape
            q = linear(y, f"{p}.attn.q").view(b, n, heads[s], -1).transpose(1, 2)
            if ratios[s] > 1:
                y = conv(y.transpose(1, 2).view(b, c, h, w), f"{p}.attn.sr", stride=ratios[s])
                y = norm(y.flatten(2).transpose(1, 2), f"{p}.attn.norm", 1e-5)
            kv = linear(y, f"{p}.attn.kv").view(b, -1, 2, heads[s], c // heads[s])
            k, v = kv.permute(2, 0, 3, 1, 4)
            weights = (q @ k.transpose(-2, -1) * (c // heads[s]) ** -0.5).softmax(-1)
            x = x + linear((weights @ v).transpose(1, 2).reshape(b, n, c), f"{p}.attn.proj")
            y = linear(norm(x, f"{p}.norm2", 1e-6), f"{p}.mlp.fc1")
            y = y.transpose(1, 2).reshape(b, -1, h, w)
            y = conv(y, f"{p}.mlp.dwconv.dwconv", padding=1, groups=y.shape[1])
            x = x + linear(F.gelu(y.flatten(2).transpose(1, 2)), f"{p}.mlp.fc2")
        x = norm(x, f"backbone.norm{s + 1}", 1e-6)
        x = x.transpose(1, 2).reshape(b, c, h, w)
        maps.append(x)
    projected = []
    for n in (4, 3, 2, 1):
        y = linear(maps[n - 1].flatten(2).transpose(1, 2), f"decode_head.linear_c{n}.proj")
        y = y.transpose(1, 2).unflatten(2, maps[n - 1].shape[2:])
        projected.append(F.interpolate(y, maps[0].shape[2:], mode="bilinear", align_corners=False))
    y = conv(torch.cat(projected, 1), "decode_head.linear_fuse.conv")
    bn = "decode_head.linear_fuse.bn"
    y = F.batch_norm(
        y,
        *(state[f"{bn}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")),
    )
    return conv(y.relu(), "decode_head.linear_pred")


def nvlabs_state(model: nn.Module) -> dict[str, Tensor]:
    """What NVlabs' files hold: also the classifier of mmseg's base class, with 128 channels, which it never calls."""
    state = from_mmseg(model.state_dict(), "nvlabs")
    unused = {"weight": torch.zeros(3, 128, 1, 1), "bias": torch.zeros(3)}
    return state | {f"decode_head.conv_seg.{leaf}": t for leaf, t in unused.items()}


def test_nvlabs_file_computes_what_its_code_computes(paper_model: Any, tmp_path: Path) -> None:
    state = nvlabs_state(randomise(paper_model("b0")))
    torch.save({"meta": {"CLASSES": ["a"]}, "state_dict": state}, tmp_path / "segformer.b0.pth")
    ours = paper_model("b0")
    report = load_pretrained(ours, str(tmp_path / "segformer.b0.pth"), "b0")
    assert report is not None
    assert report.family == norms_of(ours) == "nvlabs"
    assert set(report.dropped) == {"decode_head.conv_seg.weight", "decode_head.conv_seg.bias"}
    assert report.kept == ()
    ours = ours.double()
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        logits = ours.decode_head(ours.backbone(image))
        wanted = nvlabs_forward({k: v.double() for k, v in state.items()}, image)
    torch.testing.assert_close(logits, wanted, rtol=1e-10, atol=1e-10)


def test_nvlabs_imagenet_encoder(paper_model: Any, tmp_path: Path) -> None:
    """As mit_b0.pth: no prefix, and ImageNet's classifier."""
    state = nvlabs_state(randomise(paper_model("b0")))
    bare = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    bare |= {"head.weight": torch.zeros(1000, 256), "head.bias": torch.zeros(1000)}
    torch.save(bare, tmp_path / "mit_b0.pth")
    report = load_pretrained(paper_model("b0"), str(tmp_path / "mit_b0.pth"), "b0")
    assert report is not None
    assert set(report.dropped) == {"head.weight", "head.bias"}
    assert {k.split(".")[0] for k in report.kept} == {"decode_head"}


def test_norms(paper_model: Any) -> None:
    model = paper_model("b0")
    assert norms_of(model) == "mmseg"
    for family in NORMS:
        set_norms(model, family)
        assert norms_of(model) == family
    set_norms(model, "nvlabs")
    eps = {name: m.eps for name, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    assert eps["backbone.layers.0.0.norm"] == eps["backbone.layers.0.1.0.attn.norm"] == 1e-5
    assert eps["backbone.layers.0.1.0.norm1"] == eps["backbone.layers.0.2"] == 1e-6
    eps_module = model.backbone.layers[0][2]
    eps_module.eps = 0.1
    assert norms_of(model) is None


# ---------------------------------------------------------------- what goes wrong


def refused(model: nn.Module, source: Path | str, variant: str = "b0") -> str:
    """The one line of an error that leaves the model as it was."""
    before = {k: v.clone() for k, v in model.state_dict().items()}
    norms = norms_of(model)
    with pytest.raises(UserError) as caught:
        load_pretrained(model, str(source), variant)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert norms_of(model) == norms
    return str(caught.value)


def test_another_decoder_says_which_and_what_fits(
    paper_model: Any, build_model: Any, tmp_path: Path
) -> None:
    path = tmp_path / "nv.pth"
    torch.save(nvlabs_state(paper_model("b0", 128)), path)
    told = refused(build_model("b0"), path)
    assert 'head={"type": "paper", "channels": 128}' in told
    assert f"pretrained=backbone:{path} takes the encoder alone" in told
    model = build_model("b0")
    report = load_pretrained(model, f"backbone:{path}", "b0")
    assert report is not None
    assert all(key.startswith("backbone.") for key in report.loaded)
    assert len(report.loaded) == len(model.backbone.state_dict())
    assert set(CLASSIFIER) <= set(report.kept)


def test_another_variant_says_which_config(
    paper_model: Any, build_model: Any, tmp_path: Path
) -> None:
    path = tmp_path / "nv.pth"
    torch.save(nvlabs_state(paper_model("b1")), path)
    told = refused(build_model("b0"), path)
    assert "it is a b1, not a b0" in told
    assert "segformer_b1_spark.py fits it" in told


def test_every_key_needs_its_place(paper_model: Any, tmp_path: Path) -> None:
    state = nvlabs_state(paper_model("b0"))
    path = tmp_path / "nv.pth"
    torch.save(state | {"backbone.pos_embed": torch.zeros(1)}, path)
    assert "1 keys that no part of a SegFormer takes (first backbone.pos_embed)" in refused(
        paper_model("b0"), path
    )
    part = {k: v for k, v in state.items() if k != "backbone.block2.1.attn.kv.weight"}
    torch.save(part, path)
    assert (
        "lacks 1 of the matrices that make up backbone.layers.1.1.1.attn.attn.in_proj_weight"
        in (refused(paper_model("b0"), path))
    )
    part = {k: v for k, v in state.items() if not k.startswith("backbone.norm3")}
    torch.save(part, path)
    assert "2 keys missing (backbone.layers.2.2.weight" in refused(paper_model("b0"), path)


def test_another_family(paper_model: Any, tmp_path: Path) -> None:
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "resnet50.pth")
    told = refused(paper_model("b0"), tmp_path / "resnet50.pth")
    assert "holds no SegFormer (first keys: layer1.0.conv1.weight)" in told
    folder = tmp_path / "vit"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    assert "is the config of a 'vit'" in refused(paper_model("b0"), folder)
    odd = {"model_type": "segformer", "num_attention_heads": [1, 2, 4, 8]}
    (folder / "config.json").write_text(json.dumps(odd))
    assert "num_attention_heads is [1, 2, 4, 8], but SegFormer" in refused(
        paper_model("b0"), folder
    )
    (folder / "config.json").write_text("{")
    assert "cannot be read as JSON" in refused(paper_model("b0"), folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "segformer"}))
    assert "holds none of model.safetensors and pytorch_model.bin" in refused(
        paper_model("b0"), folder
    )


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserFileNotFoundError, match="no folder runs/one"):
        read_weights("runs/one")
    with pytest.raises(UserFileNotFoundError, match="no file or folder a/b/c"):
        read_weights("a/b/c")
    with pytest.raises(UserError, match="did you mean 'imagenet'"):
        read_weights("imagnet")


def test_extra_norms_have_no_place_elsewhere(build_model: Any) -> None:
    with pytest.raises(UserError, match="write the encoder alone"):
        from_mmseg(build_model("b0").state_dict(), "huggingface")


def test_a_checkpoint_with_another_decoder_offers_the_config(
    paper_model: Any, build_model: Any
) -> None:
    """As tools/test.py and tools/infer.py load one."""
    from spark_seg.engine.checkpoints import apply_state_dict

    state = paper_model("b0", 128).state_dict()
    with pytest.raises(UserError, match="another decoder") as caught:
        apply_state_dict(build_model("b0"), state, "best.pth")
    assert 'head={"type": "paper", "channels": 128}' in str(caught.value)
