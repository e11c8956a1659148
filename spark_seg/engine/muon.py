"""Muon: momentum whose matrices are made orthogonal, for trainings from scratch that have few steps.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/: an update U S V' of a weight matrix becomes U V', so
that every direction moves equally far, also those that few pixels ask for.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from mmengine.registry import OPTIMIZERS
from torch import Tensor, nn
from torch.optim.adamw import adamw

from spark_seg.errors import UserError

# Five steps of a quintic iteration bring singular values from (0, 1] to about 0.7 .. 1.2.
_QUINTIC, _STEPS = (3.4445, -4.7750, 2.0315), 5
# The classifier's few rows, depthwise kernels and the like are no matrices that act on a space of features.
_LEAST_SIDE = 16


@OPTIMIZERS.register_module()
class MuonAdamW(torch.optim.Optimizer):
    """Muon for linear maps and 1x1 convolutions, AdamW (Loshchilov & Hutter 2019) for everything else.

    Both kinds follow the schedule of `lr`; `matrix_lr / lr` is a constant. Processes share the orthogonalisations
    out and add their parts, so that it costs each a share; gradients must be the same on all of them, as DeepSpeed's
    stage 0 and DDP leave them. ZeRO 1 to 3 cut matrices apart: they refuse it.

    Args:
        params: Parameters or groups.
        lr: Of the AdamW part.
        matrix_lr: Of the matrices: the root mean square of an update's rows, times sqrt(max(1, rows / columns)).
        momentum: Of the matrices (Nesterov).
        betas: Of the AdamW part.
        eps: Of the AdamW part.
        weight_decay: Decoupled, of the AdamW part, in shares of `lr`; matrices decay by `matrix_lr` as much.

    Raises:
        UserError: A value out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        matrix_lr: float = 0.02,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        for name, value in (("lr", lr), ("matrix_lr", matrix_lr), ("eps", eps)):
            if not value > 0:
                raise UserError(f"MuonAdamW: {name}={value} must be above 0")
        for name, value in (("momentum", momentum), ("betas", betas[0]), ("betas", betas[1])):
            if not 0 <= value < 1:
                raise UserError(f"MuonAdamW: {name}={value} must lie between 0 and below 1")
        defaults = dict(
            lr=lr,
            matrix_factor=matrix_lr / lr,
            momentum=momentum,
            betas=tuple(betas),
            eps=eps,
            weight_decay=weight_decay,
        )
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step from the gradients at hand; parameters without one stay."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        matrices: list[tuple[nn.Parameter, dict[str, Any]]] = []
        for group in self.param_groups:
            others = []
            for p in group["params"]:
                if p.grad is None:
                    continue
                if is_matrix(p):
                    matrices.append((p, group))
                else:
                    others.append(p)
            self._adamw(others, group)
        self._orthogonal(matrices)
        return loss

    def _adamw(self, params: list[nn.Parameter], group: dict[str, Any]) -> None:
        if not params:
            return
        for p in params:
            if not self.state[p]:
                self.state[p] = dict(
                    step=torch.zeros((), dtype=torch.float32),
                    exp_avg=torch.zeros_like(p),
                    exp_avg_sq=torch.zeros_like(p),
                )
        states = [self.state[p] for p in params]
        adamw(
            list(params),
            [p.grad for p in params if p.grad is not None],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            foreach=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _orthogonal(self, matrices: list[tuple[nn.Parameter, dict[str, Any]]]) -> None:
        if not matrices:
            return
        rank, world = 0, 1
        if dist.is_available() and dist.is_initialized():
            rank, world = dist.get_rank(), dist.get_world_size()
        mine = set(_share(matrices, world)[rank])
        updates = matrices[0][0].new_zeros(sum(p.numel() for p, _ in matrices))
        start = 0
        for index, (p, group) in enumerate(matrices):
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(p)
            state["step"] += 1
            # Weighted sums of both, as AdamW's first moment: its scale is lost in the orthogonalisation.
            assert p.grad is not None
            state["exp_avg"].lerp_(p.grad, 1 - group["momentum"])
            if index in mine:
                ahead = p.grad.lerp(state["exp_avg"], group["momentum"])
                updates[start : start + p.numel()] = orthogonalise(ahead.flatten(1)).flatten()
            start += p.numel()
        if world > 1:
            dist.all_reduce(updates)
        for (p, group), update in zip(
            matrices, updates.split([p.numel() for p, _ in matrices]), strict=True
        ):
            rate = group["lr"] * group["matrix_factor"]
            rows, columns = p.flatten(1).shape
            p.mul_(1 - rate * group["weight_decay"])
            p.add_(update.view_as(p), alpha=-rate * max(1.0, rows / columns) ** 0.5)


def is_matrix(p: Tensor) -> bool:
    """Whether a parameter is a linear map [out, in] or a 1x1 convolution [out, in, 1, 1] of features."""
    return p.ndim >= 2 and p[0, 0].numel() == 1 and min(p.shape[:2]) >= _LEAST_SIDE


def orthogonalise(update: Tensor) -> Tensor:
    """Brings all singular values near 1 by Newton-Schulz iterations, in bf16 where the hardware computes in it.

    Args:
        update: [rows, columns], any floating dtype.

    Returns:
        [rows, columns] of the same dtype; zeros stay zeros.
    """
    a, b, c = _QUINTIC
    tall = update.shape[0] > update.shape[1]
    x = (update.T if tall else update).to(_precision(update.device))
    x = x / (x.norm() + 1e-7)
    for _ in range(_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(update.dtype)


def _precision(device: torch.device) -> torch.dtype:
    if device.type != "cpu":
        return torch.bfloat16
    fast = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return torch.bfloat16 if fast else torch.float32


def _share(matrices: list[tuple[nn.Parameter, dict[str, Any]]], world: int) -> list[list[int]]:
    """Which matrices each process takes: the costliest first, each to who has least."""
    costs = []
    for p, _ in matrices:
        low, high = sorted(p.shape[:2])
        costs.append(low * low * (2 * high + low))
    taken: list[list[int]] = [[] for _ in range(world)]
    loads = [0] * world
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        least = loads.index(min(loads))
        taken[least].append(index)
        loads[least] += costs[index]
    return taken
