"""`tools/convert.py`: ours to every form and back, the same tensors; what transformers makes of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from spark_seg.cli.convert import main
from spark_seg.engine.checkpoints import load_state_dict, save_safetensors, with_norms
from spark_seg.errors import UserError
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
