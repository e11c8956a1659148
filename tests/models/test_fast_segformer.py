"""The accelerated SegFormer is mmseg's: outputs, gradients, statistics, random masks, checkpoints."""

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from same_network import accelerate, assert_same, difference, image, randomize, run
from torch import Tensor, nn

from spark_seg.models.freeze import freeze_backbone

QUICK, OTHERS = ("b0", "b2"), ("b1", "b3", "b4", "b5")
VARIANTS = [*QUICK, *(pytest.param(v, marks=pytest.mark.slow) for v in OTHERS)]
PARTS = {"b0": 21, "b2": 37, "b1": 21, "b3": 61, "b4": 87, "b5": 109}  # 2 a block, 4 embeddings, 1


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def stock_b0(build_model: Callable[..., nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return randomize(build_model("b0"))


@pytest.fixture
def pair(stock_b0: nn.Module) -> tuple[Any, Any]:
    """Stock b0 and its accelerated copy, in train mode."""
    stock = copy.deepcopy(stock_b0).train()
    fast = copy.deepcopy(stock)
    assert accelerate(fast) == PARTS["b0"]
    return stock, fast


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_gradients_and_statistics(
    build_model: Callable[..., nn.Module], variant: str
) -> None:
    from spark_seg.models.fast_inference import freeze_weights

    torch.manual_seed(0)
    stock = randomize(build_model(variant))
    fast = copy.deepcopy(stock)
    assert accelerate(fast) == PARTS[variant]
    for dtype in (torch.float32, torch.float64):
        for training in (True, False):  # in train mode with drop path and dropout, of equal masks
            ours, theirs = (copy.deepcopy(m).to(dtype).train(training) for m in (fast, stock))
            assert_same(ours, theirs, image(dtype=dtype))
        # what predictions run: in eval mode, with frozen weights
        assert freeze_weights(ours, dtype)
        with torch.no_grad():
            x = image(64, 96, dtype=dtype)
            limit = 1e-5 if dtype == torch.float32 else 1e-10
            assert difference(ours(x), theirs(x)) < limit


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(96, 128), (97, 131), (33, 50)])
def test_any_size(pair: tuple[Any, Any], size: tuple[int, int], training: bool) -> None:
    stock, fast = (m.double().train(training) for m in pair)
    assert_same(fast, stock, image(*size, dtype=torch.float64))


def test_frozen_norms_in_training(pair: tuple[Any, Any]) -> None:
    # Norms in eval mode within a network in train mode are folded too, and get their gradients.
    for model in pair:
        model.double()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    stock, fast = pair
    assert_same(fast, stock, image(dtype=torch.float64))


def test_checkpoints_are_interchangeable(pair: tuple[Any, Any]) -> None:
    stock, fast = pair
    ours, theirs = fast.state_dict(), stock.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert [n for n, _ in fast.named_parameters()] == [n for n, _ in stock.named_parameters()]
    changed = {k: t + 0.01 if t.is_floating_point() else t for k, t in ours.items()}
    stock.load_state_dict(changed)
    fast.load_state_dict(stock.state_dict())
    assert_same(fast.eval(), stock.eval(), image())


def test_folded_norms_follow_the_weights(pair: tuple[Any, Any]) -> None:
    x = image()
    stock, fast = (m.eval() for m in pair)
    with torch.no_grad():
        before = fast(x)
        for model in (stock, fast):
            norm = model.decode_head.fusion_conv.norm
            norm.weight.mul_(1.5)
            norm.running_mean.add_(0.3)
            model.decode_head.convs[1].norm.running_var.mul_(2)
        assert difference(fast(x), stock(x)) < 1e-5
        assert difference(before, stock(x)) > 1e-2


def test_hooked_norms_are_called(pair: tuple[Any, Any]) -> None:
    stock, fast = (m.eval() for m in pair)
    seen = []
    handle = fast.decode_head.fusion_conv.norm.register_forward_hook(lambda *a: seen.append(a))
    assert_same(fast, stock, image())
    assert len(seen) == 1
    handle.remove()
    assert_same(fast, stock, image())
    assert len(seen) == 1


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_stay_fast(pair: tuple[Any, Any], duplicate: Callable[[Any], Any]) -> None:
    stock, fast = pair
    twin = duplicate(fast)
    assert [type(m) for m in twin.modules()] == [type(m) for m in fast.modules()]
    assert_same(twin, stock, image())


def test_activation_checkpointing(pair: tuple[Any, Any]) -> None:
    stock, fast = pair
    blocks = [m for m in fast.modules() if hasattr(m, "with_cp") and hasattr(m, "ffn")]
    assert len(blocks) == 8
    for block in blocks:
        block.with_cp = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch wants `use_reentrant` said, mmseg does not say it
        assert_same(fast, stock, image())


@pytest.mark.parametrize("bf16", [False, True])
def test_outputs_of_gelu_are_not_kept(pair: tuple[Any, Any], bf16: bool) -> None:
    from torch.multiprocessing.reductions import StorageWeakRef

    _, fast = pair
    networks = [m for m in fast.modules() if hasattr(m, "layers") and len(m.layers) == 6]
    assert len(networks) == 8
    kept = []
    for module in networks:
        module.layers[2].register_forward_hook(
            lambda _, given, out: kept.append(
                [StorageWeakRef(t.untyped_storage()) for t in (given[0], out)]
            )
        )
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        out = fast(image()).float().square().mean()
    assert [[ref.expired() for ref in refs] for refs in kept] == [[False, True]] * 8
    out.backward()


def test_what_is_made_again_is_right() -> None:
    from spark_seg.models.fast_layers import made_again

    torch.manual_seed(0)
    hidden = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)

    def branch(hidden: Tensor, weight: Tensor) -> Tensor:
        value = torch.sigmoid(hidden)
        with made_again(value, lambda: torch.sigmoid(hidden)):
            return nn.functional.linear(value, weight)

    assert torch.autograd.gradcheck(branch, (hidden, weight))
    assert torch.autograd.gradgradcheck(branch, (hidden, weight))


def test_frozen_backbone(pair: tuple[Any, Any]) -> None:
    stock, fast = pair
    freeze_backbone(stock)
    freeze_backbone(fast)
    assert_same(fast.train(), stock.train(), image())
    assert not any(m.training for m in fast.backbone.modules())
    late = copy.deepcopy(stock)
    assert accelerate(late) == PARTS["b0"]
    assert_same(late.train(), stock, image())


def test_autocast(pair: tuple[Any, Any]) -> None:
    # bf16 keeps 8 bits: both stray from fp32, ours no further than stock does.
    stock, fast = pair
    exact, exact_grads = run(stock, image())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs, their_grads = run(stock, image())
        ours, our_grads = run(fast, image())
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert difference(ours.float(), exact) < 1.5 * difference(theirs.float(), exact) < 0.1
    limit = 1.5 * difference(their_grads, exact_grads)
    assert difference(our_grads, exact_grads) < limit


def test_export(pair: tuple[Any, Any]) -> None:
    stock, fast = (m.eval() for m in pair)
    batch = torch.export.Dim("batch", min=1, max=16)
    with torch.no_grad():
        program = torch.export.export(fast, (image(),), dynamic_shapes={"inputs": {0: batch}})
        x = torch.cat([image(), image() + 1, image() - 1])
        assert difference(program.module()(x), stock(x)) < 1e-5


def test_drop_path_keeps_its_distribution() -> None:
    from mmcv.cnn.bricks.drop import DropPath

    from spark_seg.models.fast_segformer import add_branch

    torch.manual_seed(0)
    drop, count = DropPath(0.25).train(), 20000
    zeros, branch = torch.zeros(count, 3, 2), torch.full((count, 3, 2), 6.0)
    out = add_branch(zeros, branch, drop)
    assert (out == out[:, :1, :1]).all()  # a path is kept or dropped as a whole
    assert set(out.unique().tolist()) == {0.0, 8.0}
    # 4 standard deviations of a share
    assert (out[:, 0, 0] == 0).double().mean().item() == pytest.approx(0.25, abs=4 * 0.0031)
    assert torch.equal(add_branch(branch, branch, drop.eval()), 2 * branch)
    assert torch.equal(add_branch(branch, branch, DropPath(0.0).train()), 2 * branch)


def test_head_dropout_keeps_its_distribution(pair: tuple[Any, Any]) -> None:
    head = pair[1].decode_head.train()
    torch.manual_seed(0)
    features = torch.randn(4, 256, 2, 3)
    with torch.no_grad():
        exact = head.eval().cls_seg(features)
        head.train()
        drawn = torch.stack([head.cls_seg(features) for _ in range(2000)])
    # the mean is the output without dropout; the variance that of 256 channels kept with 0.9
    weight = head.conv_seg.weight[:, :, 0, 0]
    variance = torch.einsum("oc,bchw->bohw", weight**2, features**2) * (0.1 / 0.9)
    error = (drawn.mean(0) - exact) / (variance / len(drawn)).sqrt()
    assert error.abs().max() < 5
    assert (drawn.var(0) / variance - 1).abs().max() < 0.2


def test_attention_dropout_is_kept(pair: tuple[Any, Any]) -> None:
    fast = pair[1].backbone.layers[3][1][0].attn
    fast.dropout_layer.drop_prob = 0.0
    fast.attn.dropout = 0.3
    x = torch.randn(1, 4, fast.embed_dims)
    assert not torch.equal(fast(x, (2, 2)), fast(x, (2, 2)))
    fast.eval()
    assert torch.equal(fast(x, (2, 2)), fast(x, (2, 2)))


def test_again_and_elsewhere(pair: tuple[Any, Any]) -> None:
    _, fast = pair
    types = [type(m) for m in fast.modules()]
    assert accelerate(fast) == PARTS["b0"]
    assert [type(m) for m in fast.modules()] == types
    other = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    with pytest.warns(UserWarning, match=r"accelerate: Sequential has no SegFormer parts"):
        assert accelerate(other) == 0
    assert [type(m) for m in other] == [nn.Conv2d, nn.BatchNorm2d]


def test_what_is_not_usual_is_left_alone(stock_b0: nn.Module) -> None:
    from mmseg.models.backbones.mit import MixFFN

    class OtherFFN(MixFFN):
        pass

    model: Any = copy.deepcopy(stock_b0).double().eval()
    block = model.backbone.layers[0][1][0]
    block.ffn.__class__ = OtherFFN
    block.attn.attn.add_zero_attn = True
    nn.utils.parametrizations.weight_norm(model.decode_head.convs[2].conv)
    stock = copy.deepcopy(model)
    assert accelerate(model) == PARTS["b0"] - 3
    assert type(block.ffn) is OtherFFN
    assert type(block.ffn.layers[0]) is type(block.ffn.layers[1])
    assert_same(model, stock, image(dtype=torch.float64))
