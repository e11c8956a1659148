"""torch.compile by config: the same function, region by region."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from same_network import difference, randomize, run
from torch import nn

from spark_seg.errors import UserError
from spark_seg.models.compiling import (
    compile_options,
    compile_regions,
    is_compiled,
    require_compilable,
)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_same_function_and_keys(build_model: Callable[..., nn.Module], mode: str) -> None:
    """In train mode with drop path and dropout: from equal seeds equal outputs and gradients."""
    from spark_seg.models.fast_segformer import accelerate

    torch.manual_seed(0)
    plain: Any = randomize(build_model("b0")).double().train(mode == "train")
    accelerate(plain)
    compiled = copy.deepcopy(plain)
    told = compile_regions(compiled, {"backend": "aot_eager"}, training=True)
    assert told is not None
    assert "9 regions" in told
    assert ("slower" in told) == (not torch.cuda.is_available())
    assert is_compiled(compiled)
    assert not is_compiled(plain)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    for ours, theirs in zip(run(compiled, x), run(plain, x), strict=True):
        assert difference(ours, theirs) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_drop_path_by_a_tensor_draws_the_same(dtype: torch.dtype) -> None:
    """What compiled blocks share a graph by: from equal seeds equal masks, sums and gradients."""
    from mmcv.cnn.bricks.drop import DropPath

    from spark_seg.models.fast_segformer import TensorDropPath, add_branch

    usual = DropPath(0.3)
    shared = copy.deepcopy(usual)
    TensorDropPath.convert(shared)
    identity, branch = torch.randn(2, 64, 5, 8, dtype=dtype).unbind()
    found = []
    for drop in (usual, shared):
        torch.manual_seed(3)
        x, y = (t.clone().requires_grad_() for t in (identity, branch))
        out = add_branch(x, y, drop.train())
        out.square().sum().backward()
        found.append((out.detach(), x.grad, y.grad))
        assert torch.equal(add_branch(x, y, drop.eval()), x + y)
    kept = [(out - identity).flatten(1).any(1) for out, _, _ in found]
    assert 0 < int(kept[0].sum()) < len(identity)
    assert torch.equal(*kept)
    limit = 1e-6 if dtype == torch.float32 else 1e-14
    for ours, theirs in zip(*found, strict=True):
        assert difference(theirs, ours) < limit


def test_off() -> None:
    assert compile_options(False) is None
    assert compile_regions(nn.Linear(2, 2), False, training=True) is None
    require_compilable({"compile": False, "multi_scale": [64]}, 3, training=True)


@pytest.mark.parametrize("value", [{"mod": "default"}, "yes", 1])
def test_values_that_make_no_sense(value: Any) -> None:
    with pytest.raises(UserError, match="compile"):
        compile_options(value)


@pytest.mark.parametrize(
    ("stage", "options"),
    [(3, {}), (1, {"activation_checkpointing": True}), (0, {"multi_scale": [64, 96]})],
)
def test_refused(stage: int, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="compile with"):
        require_compilable({"compile": True, **options}, stage, training=True)
    require_compilable({"compile": True, **options}, stage, training=False)


def compiled_with_a_count(model: Any, training: bool) -> list[Any]:
    """The graphs that torch hands over from now on."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compile_regions(model, {"backend": backend}, training=training)
    return graphs


@pytest.mark.parametrize("fast", [True, False])
def test_no_block_is_left_out(build_model: Callable[..., nn.Module], fast: bool) -> None:
    """A training with its validation, and smaller last batches: every graph is of a stage, and torch's limit is far."""
    from spark_seg.models.fast_segformer import accelerate

    model: Any = build_model("b2")
    if fast:
        accelerate(model)
    graphs = compiled_with_a_count(model, training=True)
    counts = []
    for training, batch in ((True, 2), (False, 2), (False, 3), (True, 2), (False, 2)):
        model.train(training)
        with torch.set_grad_enabled(training):
            model(torch.randn(batch, 3, 64, 64))
        counts.append(len(graphs))
    assert counts[2:] == [counts[2]] * 3, "nothing is compiled twice"
    again, smaller = counts[1] - counts[0], counts[2] - counts[1]
    assert smaller == again >= 4, "beyond torch's limit blocks are left as they are"
    if fast:
        assert counts[0] <= 6
        assert again <= 6, "blocks that differ in drop path share their graphs in validation too"


def test_compiled_prediction_shares_graphs(build_model: Callable[..., nn.Module]) -> None:
    from spark_seg.models.fast_segformer import accelerate

    model: Any = build_model("b2").eval()
    accelerate(model)
    graphs = compiled_with_a_count(model, training=False)
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 64))
    assert len(graphs) <= 4 + 1, "four stages and the head's fusion"


def test_the_limit_grows_with_the_network(build_model: Callable[..., nn.Module]) -> None:
    """Every block of the largest variant may have graphs of its own: training, validation, smaller last batches."""
    torch._dynamo.config.recompile_limit = 8
    compile_regions(build_model("b5"), True, training=True)
    assert torch._dynamo.config.recompile_limit >= 4 * 52
    assert torch._dynamo.config.accumulated_recompile_limit >= 4 * 52
