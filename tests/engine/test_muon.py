"""Muon and AdamW as one optimizer."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from spark_seg.engine.combinations import ELEMENTWISE
from spark_seg.engine.muon import (
    LIKE_ADAMW,
    MuonAdamW,
    fast_dtype,
    is_matrix,
    orthogonal,
    share_out,
)
from spark_seg.engine.training_state import gather_optimizer_state, scatter_optimizer_state
from spark_seg.errors import UserError


@pytest.mark.parametrize("shape", [(32, 32), (16, 64), (96, 24)])
def test_singular_values_become_about_one(shape: tuple[int, int]) -> None:
    stack = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    made = orthogonal(stack)
    assert made.shape == stack.shape
    assert made.dtype == fast_dtype(stack.device)
    values = torch.linalg.svdvals(made.float())
    assert values.median() > 0.65
    assert values.max() < 1.35
    u, _, v = torch.linalg.svd(stack, full_matrices=False)
    likeness = torch.nn.functional.cosine_similarity((u @ v).flatten(1), made.float().flatten(1))
    assert likeness.min() > 0.95


def test_a_matrix_without_gradient_gives_no_nan() -> None:
    assert not orthogonal(torch.zeros(1, 16, 16)).any()


def test_bf16_only_where_it_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert fast_dtype(torch.device("cpu")) == torch.float32
    assert fast_dtype(torch.device("cuda")) == torch.bfloat16
    assert orthogonal(torch.randn(1, 16, 16)).dtype == torch.float32


def test_what_is_a_matrix() -> None:
    assert is_matrix(torch.zeros(16, 16))
    assert is_matrix(torch.zeros(32, 3, 7, 7))
    few = [torch.zeros(3, 256, 1, 1), torch.zeros(64, 1, 3, 3), torch.zeros(64)]
    assert not any(is_matrix(p) for p in few)


def test_costs_are_shared_evenly() -> None:
    owners = share_out({(256, 1024): 4, (256, 256): 4, (64, 256): 9, (512, 256): 2}, 2)
    assert owners[256, 1024] == 0
    assert {owners[256, 256], owners[512, 256]} == {1}
    assert set(share_out({(16, 16): 1}, 4).values()) == {0}


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 32), nn.LayerNorm(32), nn.Linear(32, 3))


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, count: int, seed: int = 1) -> None:
    numbers = torch.Generator().manual_seed(seed)
    for _ in range(count):
        optimizer.zero_grad()
        net(torch.randn(8, 24, generator=numbers)).square().mean().backward()
        optimizer.step()


def test_small_parameters_move_as_adamw_moves_them() -> None:
    options: dict[str, Any] = dict(lr=1e-2, weight_decay=0.1, betas=(0.8, 0.9))
    ours, stock = nn.Linear(24, 3), nn.Linear(24, 3)
    stock.load_state_dict(ours.state_dict())
    steps(ours, MuonAdamW(ours.parameters(), **options), 5)
    steps(stock, torch.optim.AdamW(stock.parameters(), **options), 5)
    for a, b in zip(ours.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_first_step_by_hand() -> None:
    weight = nn.Parameter(torch.ones(16, 64))
    gradient = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    weight.grad = gradient.clone()
    MuonAdamW([weight], lr=0.1, weight_decay=0.5, momentum=0.9).step()
    want = 1 - 0.1 * 0.5 - 0.1 * LIKE_ADAMW * 8 * orthogonal(gradient[None])[0].float()
    torch.testing.assert_close(weight.detach(), want, atol=2e-3, rtol=0)


def test_as_torchs_own_muon() -> None:
    """torch's has it since 2.9, for two dimensions only; this test says nothing before."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch has no Muon before 2.9")
    ours, stock = nn.Linear(24, 32, bias=False), nn.Linear(24, 32, bias=False)
    stock.load_state_dict(ours.state_dict())
    options: dict[str, Any] = dict(lr=1e-2, weight_decay=0.1, momentum=0.95)
    steps(ours, MuonAdamW(ours.parameters(), **options), 5)
    rule = torch.optim.Muon(stock.parameters(), adjust_lr_fn="match_rms_adamw", **options)
    steps(stock, rule, 5)
    torch.testing.assert_close(ours.weight, stock.weight, atol=5e-3, rtol=0)  # of bf16


def test_goes_on_bit_for_bit() -> None:
    """State of two kinds, kept by name and put back."""
    whole = model()
    one = MuonAdamW(whole.parameters(), lr=1e-2)
    steps(whole, one, 3)
    state = gather_optimizer_state(one, whole, keep=True)
    assert "0.weight//exp_avg" in state
    assert "0.weight//exp_avg_sq" not in state
    again = model()
    again.load_state_dict(whole.state_dict())
    other = MuonAdamW(again.parameters(), lr=1e-2)
    scatter_optimizer_state(other, again, state)
    steps(whole, one, 3, seed=2)
    steps(again, other, 3, seed=2)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    # and again: the count of steps goes on too, of which matrices have none
    state = gather_optimizer_state(other, again, keep=True)
    assert state["step"] == 6
    third = model()
    third.load_state_dict(again.state_dict())
    last = MuonAdamW(third.parameters(), lr=1e-2)
    scatter_optimizer_state(last, third, state)
    kept = [{len(s) for p, s in o.state.items() if is_matrix(p)} for o in (one, last)]
    assert kept == [{1}, {1}]
    steps(whole, one, 3, seed=3)
    steps(third, last, 3, seed=3)
    for a, b in zip(whole.parameters(), third.parameters(), strict=True):
        assert torch.equal(a, b)


def test_state_that_lacks_a_part_is_told() -> None:
    """AdamW needs what Muon does not keep of a matrix, and Muon's own must be whole."""
    net = model()
    one = MuonAdamW(net.parameters(), lr=1e-2)
    steps(net, one, 1)
    state = gather_optimizer_state(one, net, keep=True)
    with pytest.raises(KeyError, match="exp_avg_sq"):
        scatter_optimizer_state(torch.optim.AdamW(net.parameters()), net, state)
    del state["0.bias//exp_avg_sq"]
    with pytest.raises(KeyError, match=r"0\.bias//exp_avg_sq"):
        scatter_optimizer_state(MuonAdamW(net.parameters()), net, state)


def _one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    net = model()
    steps(net, MuonAdamW(net.parameters(), lr=1e-2), 4)
    torch.save(net.state_dict(), f"{folder}/{rank}.pth")
    dist.destroy_process_group()


def test_processes_that_share_the_work_move_as_one(tmp_path: Path) -> None:
    """Each matrix is worked out by one of them: the two agree bit for bit, and with a single process to rounding."""
    torch.multiprocessing.spawn(_one_of_two, (str(tmp_path),), nprocs=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = model()
    steps(alone, MuonAdamW(alone.parameters(), lr=1e-2), 4)
    torch.set_num_threads(threads)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)
    first, second = (torch.load(tmp_path / f"{r}.pth", weights_only=True) for r in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_zero_must_not_cut_its_matrices() -> None:
    """tests/engine/test_combinations.py has what is said."""
    assert MuonAdamW.__name__ not in ELEMENTWISE


@pytest.mark.parametrize("wrong", [dict(momentum=1.0), dict(ns_steps=0), dict(ns_steps=2.5)])
def test_values_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        MuonAdamW([nn.Parameter(torch.zeros(2))], **wrong)
