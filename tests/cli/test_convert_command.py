"""`tools/convert.py`: ours to every form and back, the same tensors; what transformers makes of it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from spark_seg.cli.convert import main
from spark_seg.engine.checkpoints import load_state_dict, save_pth, save_safetensors, with_norms
from spark_seg.errors import UserError
from spark_seg.models.convert import from_mmseg
from spark_seg.models.pretrained import read_weights


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`built('paper')`: a b0 of that head with random weights, and its safetensors file, Hugging Face's norms noted."""
    from mmseg.registry import MODELS

    from spark_seg.config import load_config

    folder = tmp_path_factory.mktemp("ours")

    def build(head: str) -> tuple[Any, Path]:
        cfg = load_config(tiny.CONFIG, {"head": head})
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        torch.nn.init.normal_(model.decode_head.conv_seg.weight)
        path = folder / f"{head}.safetensors"
        save_safetensors(with_norms(model.state_dict(), "huggingface"), path)
        return model.eval(), path

    return build


@pytest.mark.parametrize("form", ["mmseg", "huggingface", "nvlabs"])
def test_round_trip(
    form: str, built: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, path = built("paper")
    there = tmp_path / ("hf" if form == "huggingface" else "there.pth")
    back = tmp_path / "back.safetensors"
    assert main([str(path), str(there), "--to", form]) == 0
    said = capsys.readouterr().out
    assert ("eps" in said) == (form != "huggingface"), (
        "a note where the form computes with another eps"
    )
    assert main([str(there), str(back), "--to", "safetensors"]) == 0
    state = load_state_dict(back)
    # what is written for mmseg remembers; the other forms are of their own family
    assert state.norms == {"mmseg": "huggingface"}.get(form, form)
    own = model.state_dict()
    assert state.keys() == own.keys()
    assert all(torch.equal(state[k], own[k]) for k in own)


def test_mmsegs_own_form_is_loaded_by_mmengine(built: Any, tmp_path: Path) -> None:
    from mmengine.runner import load_checkpoint

    model, path = built("mmseg")
    main([str(path), str(tmp_path / "out.pth"), "--to", "mmseg"])
    other, _ = built("mmseg")
    for p in other.parameters():
        p.data.zero_()
    load_checkpoint(other, str(tmp_path / "out.pth"), strict=True)
    assert all(torch.equal(other.state_dict()[k], v) for k, v in model.state_dict().items())


def test_transformers_reads_what_is_written(built: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install 'transformers>=5'"
    )
    from spark_seg.models.convert import set_norms

    model, path = built("paper")
    main([str(path), str(tmp_path / "hf"), "--to", "huggingface"])
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["id2label"] == {"0": "background", "1": "body", "2": "panel"}
    theirs, info = transformers.SegformerForSemanticSegmentation.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    set_norms(model, "huggingface")
    theirs, model = theirs.double().eval(), model.double()
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(image).logits,
            model.decode_head(model.backbone(image)),
            atol=1e-10,
            rtol=1e-10,
        )


def test_backbone_only(built: Any, tmp_path: Path) -> None:
    model, path = built("mmseg")
    with pytest.raises(UserError, match="write the encoder alone"):
        main([str(path), str(tmp_path / "hf"), "--to", "huggingface"])
    assert not (tmp_path / "hf").exists(), "nothing half written"
    main([str(path), str(tmp_path / "hf"), "--to", "huggingface", "--backbone-only"])
    weights = read_weights(str(tmp_path / "hf"))
    assert set(weights.state) == {k for k in model.state_dict() if k.startswith("backbone.")}


def test_wrong_input(built: Any, tmp_path: Path) -> None:
    _, path = built("paper")
    with pytest.raises(UserError, match=r"ends in \.pth"):
        main([str(path), str(tmp_path / "out.bin"), "--to", "mmseg"])
    with pytest.raises(UserError, match="no SegFormer variant 'b7'"):
        main(["imagenet", str(tmp_path / "out.pth"), "--to", "mmseg", "--variant", "b7"])
    with pytest.raises(UserError, match="give the variant"):
        main(["imagenet", str(tmp_path / "out.pth"), "--to", "mmseg"])
    with pytest.raises(UserError, match="no checkpoint"):
        main([str(tmp_path / "none.pth"), str(tmp_path / "out.pth"), "--to", "mmseg"])


NVLABS_LOST = ("backbone.norm4.weight", "decode_head.linear_c2.proj.weight")
LOST = "backbone.layers.3.2.weight, decode_head.convs.1.conv.weight"


@pytest.mark.parametrize("form", ["safetensors", "huggingface"])
def test_a_missing_weight_is_an_error(form: str, built: Any, tmp_path: Path) -> None:
    model, _ = built("paper")
    state = from_mmseg(model.state_dict(), "nvlabs")
    path, out = tmp_path / "nv.pth", tmp_path / "out.safetensors"
    save_pth({k: v for k, v in state.items() if k not in NVLABS_LOST}, path)
    said = rf"nv\.pth .* b0: 2 keys missing \({re.escape(LOST)}\)"
    with pytest.raises(UserError, match=said) as caught:
        main([str(path), str(out), "--to", form])
    assert "\n" not in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize("head", ["mmseg", "paper"])
@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("backbone.layers.1.1.1.", "none of SegFormer b0 to b5: whole blocks are missing"),
        ("decode_head.convs.0.", "keys? missing"),
        ("decode_head.conv_seg.bias", "1 key missing"),
    ],
)
def test_a_missing_part_is_an_error(
    head: str, lost: str, said: str, built: Any, tmp_path: Path
) -> None:
    model, _ = built(head)
    path, out = tmp_path / "in.pth", tmp_path / "out.pth"
    save_pth({k: v for k, v in model.state_dict().items() if not k.startswith(lost)}, path)
    with pytest.raises(UserError, match=said):
        main([str(path), str(out), "--to", "mmseg"])
    assert not out.exists()


@pytest.mark.parametrize("lost", ["decode_head.", "decode_head.conv_seg."])
def test_decoder_and_classifier_may_be_missing(lost: str, built: Any, tmp_path: Path) -> None:
    model, _ = built("paper")
    path, out = tmp_path / "in.pth", tmp_path / "out.pth"
    kept = {k: v for k, v in model.state_dict().items() if not k.startswith(lost)}
    save_pth(kept, path)
    assert main([str(path), str(out), "--to", "mmseg"]) == 0
    assert load_state_dict(out).keys() == kept.keys()


@pytest.mark.parametrize("options", [[], ["--backbone-only"]])
def test_an_unknown_key_is_an_error(options: list[str], built: Any, tmp_path: Path) -> None:
    model, _ = built("mmseg")
    path, out = tmp_path / "in.pth", tmp_path / "out.safetensors"
    foreign = {"backbone.foo": torch.zeros(1), "neck.bar": torch.zeros(1)}
    save_pth(model.state_dict() | foreign, path)
    with pytest.raises(UserError, match=r"2 keys unexpected \(backbone\.foo, neck\.bar\)"):
        main([str(path), str(out), "--to", "safetensors", *options])
    assert not out.exists()


def test_leftovers_of_training_are_told(
    built: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = built("mmseg")
    path, out = tmp_path / "in.pth", tmp_path / "out.safetensors"
    left = {"auxiliary_head.conv_seg.weight": torch.zeros(1), "optimizer.step": torch.zeros(1)}
    save_pth(model.state_dict() | left, path)
    assert main([str(path), str(out), "--to", "safetensors"]) == 0
    assert "left out: 2 keys of training alone (auxiliary_head." in capsys.readouterr().err
    assert load_state_dict(out).keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ("banana", "no SegFormer variant 'banana'; there are b0, "),
        ("b01", "did you mean 'b1' or 'b0'"),
        ("b3", "is a SegFormer b0, not a b3"),
    ],
)
def test_a_variant_holds_for_files_too(variant: str, said: str, built: Any, tmp_path: Path) -> None:
    _, path = built("paper")
    out = tmp_path / "out.pth"
    with pytest.raises(UserError, match=said):
        main([str(path), str(out), "--to", "mmseg", "--variant", variant])
    assert not out.exists()
    assert main([str(path), str(out), "--to", "mmseg", "--variant", "b0"]) == 0
