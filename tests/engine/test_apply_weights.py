"""A state dict goes into a model whole or not at all; what does not fit is told with the reason."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from spark_seg.engine.checkpoints import apply_state_dict, variant_of
from spark_seg.errors import UserError

State = dict[str, torch.Tensor]


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(scope="module")
def build() -> Callable[..., nn.Module]:
    from mmseg.registry import MODELS

    from spark_seg.config import load_config

    def model(variant: str = "b0", num_classes: int = 3) -> nn.Module:
        cfg = load_config(f"segformer_{variant}_spark.py", {"num_classes": num_classes})
        return MODELS.build(cfg.model)

    return model


def test_every_variant_is_recognised() -> None:
    from mmseg.registry import MODELS

    from spark_seg.config import load_config

    for variant in ("b0", "b1", "b2", "b3", "b4", "b5"):
        model = MODELS.build(load_config(f"segformer_{variant}_spark.py").model)
        assert variant_of(model.state_dict()) == variant
    assert variant_of({"conv.weight": torch.zeros(1)}) is None


def mismatch(model: nn.Module, state: State) -> str:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError) as e:
        apply_state_dict(model, state, "x.pth")
    assert same(before, dict(model.state_dict())), "all or nothing"
    assert "\n" not in str(e.value)
    assert "x.pth" in str(e.value)
    return str(e.value)


def test_weights_of_another_family(build: Callable[..., nn.Module]) -> None:
    from spark_seg.models.convert import from_mmseg

    model = build("b0")
    encoder = {k: v for k, v in model.state_dict().items() if k.startswith("backbone.")}
    for family in ("nvlabs", "huggingface"):
        told = mismatch(model, from_mmseg(encoder, family))
        assert (
            f"has the names of {family}'s SegFormer, not ours: convert it with tools/convert.py"
            in told
        )
    told = mismatch(model, {"layer1.weight": torch.ones(2), "fc.bias": torch.ones(2)})
    assert "x.pth is no SegFormer: it holds fc.bias, layer1.weight" in told


def test_weights_of_another_variant(build: Callable[..., nn.Module]) -> None:
    told = mismatch(build("b0"), build("b1").state_dict())
    assert "is a SegFormer b1, the config builds b0" in told
    assert "segformer_b1_spark.py" in told


def test_weights_of_another_class_count(build: Callable[..., nn.Module]) -> None:
    told = mismatch(build("b0", 3), build("b0", 5).state_dict())
    assert "5 classes, the config has 3" in told


def test_weights_that_lack_or_add_something(build: Callable[..., nn.Module]) -> None:
    model = build("b0")
    state = dict(model.state_dict())
    some = {k: v for k, v in state.items() if k != "decode_head.conv_seg.bias"}
    assert "1 missing weights, first decode_head.conv_seg.bias" in mismatch(model, some)
    assert "1 unknown weights, first extra" in mismatch(model, {**state, "extra": torch.zeros(1)})
    key = "backbone.layers.0.1.0.norm1.weight"
    assert f"1 misshapen weights, first {key}" in mismatch(model, {**state, key: torch.zeros(9)})
    fewer = {k: v for k, v in state.items() if "layers.3" not in k}
    assert "missing" in mismatch(model, fewer)


def test_weights_that_fit_are_all_copied(build: Callable[..., nn.Module]) -> None:
    one, other = build("b0"), build("b0")
    with torch.no_grad():
        for p in one.parameters():
            p.add_(torch.randn_like(p))
    apply_state_dict(other, one.state_dict(), "x.pth")
    assert same(dict(one.state_dict()), dict(other.state_dict()))
