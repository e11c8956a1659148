"""Muon: matrices move along orthogonal updates, everything else as AdamW does."""

import pytest
import torch
from torch import nn

from spark_seg.engine.muon import MuonAdamW, is_matrix, orthogonalise
from spark_seg.engine.training_state import gather_optimizer_state, scatter_optimizer_state
from spark_seg.errors import UserError


def test_singular_values_come_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((16, 48), (48, 16), (32, 32)):
        # singular values over three decades, as gradients have them
        u, _, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
        update = (u * torch.logspace(0, -1.5, min(shape), dtype=torch.float64)) @ v
        out = orthogonalise(update)
        assert out.shape == update.shape
        assert out.dtype == update.dtype
        values = torch.linalg.svdvals(out)
        assert values.min() > 0.5
        assert values.max() < 1.4
        # along the same directions: u' out v stays diagonal, up to bf16
        inside = u.T @ out @ v.T
        assert (inside - torch.diag(inside.diagonal())).abs().max() < 0.1
    assert not orthogonalise(torch.zeros(16, 16)).any()


def test_which_parameters_are_matrices() -> None:
    assert is_matrix(nn.Linear(32, 16).weight)
    assert is_matrix(nn.Conv2d(16, 64, 1).weight)
    for module in (nn.Conv2d(64, 64, 3), nn.Conv2d(64, 3, 1), nn.Conv2d(64, 64, 1, groups=64)):
        assert not is_matrix(module.weight)
    assert not is_matrix(nn.LayerNorm(16).weight)


def test_what_is_no_matrix_moves_as_under_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Conv2d(4, 8, 3), nn.Conv2d(4, 8, 3)
    theirs.load_state_dict(ours.state_dict())
    settings = dict(lr=1e-2, betas=(0.8, 0.95), eps=1e-7, weight_decay=0.1)
    pair = [(ours, MuonAdamW(ours.parameters(), **settings))]
    pair.append((theirs, torch.optim.AdamW(theirs.parameters(), **settings)))
    for step in range(4):
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(step))
        for model, optimizer in pair:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_matrix_moves_by_its_rate_and_learns() -> None:
    torch.manual_seed(0)
    model = nn.Linear(32, 16, bias=False)
    optimizer = MuonAdamW(model.parameters(), lr=1e-3, matrix_lr=0.02)
    before = model.weight.detach().clone()
    x, target = torch.randn(64, 32), torch.randn(64, 16)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        losses.append(loss.item())
        if len(losses) == 1:
            optimizer.step()
            # every direction by 0.7 to 1.2 times the rate
            moved = torch.linalg.svdvals(model.weight - before) / 0.02
            assert moved.min() > 0.5
            assert moved.max() < 1.4
        else:
            optimizer.step()
    assert losses[-1] < 0.75 * losses[0]


def test_the_schedule_reaches_the_matrices() -> None:
    model = nn.Linear(16, 16, bias=False)
    optimizer = MuonAdamW(model.parameters(), lr=1e-3, matrix_lr=0.02)
    optimizer.param_groups[0]["lr"] = 5e-4  # as a schedule does it
    before = model.weight.detach().clone()
    model(torch.randn(8, 16)).square().mean().backward()
    optimizer.step()
    assert torch.linalg.svdvals(model.weight - before).max() < 0.02 * 0.5 * 1.4


@pytest.mark.parametrize("wrong", [dict(lr=0.0), dict(matrix_lr=-1.0), dict(momentum=1.0)])
def test_values_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError, match=f"MuonAdamW: {next(iter(wrong))}"):
        MuonAdamW(nn.Linear(16, 16).parameters(), **wrong)


def test_its_state_is_gathered_and_put_back() -> None:
    def steps(model: nn.Module, optimizer: MuonAdamW, count: range) -> None:
        for step in count:
            x = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    def make() -> tuple[nn.Module, MuonAdamW]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(16, 32, 1), nn.Conv2d(32, 3, 1))
        return model, MuonAdamW(model.parameters(), lr=1e-2)

    whole, theirs = make()
    steps(whole, theirs, range(3))
    state = gather_optimizer_state(theirs, whole, keep=True)
    assert "0.weight//exp_avg" in state
    assert "0.weight//exp_avg_sq" not in state
    assert "1.weight//exp_avg_sq" in state
    again, ours = make()
    again.load_state_dict(whole.state_dict())
    scatter_optimizer_state(ours, again, state)
    steps(whole, theirs, range(3, 6))
    steps(again, ours, range(3, 6))
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
