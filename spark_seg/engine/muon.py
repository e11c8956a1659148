"""Muon for the hidden matrices and AdamW for everything else, as one optimizer.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/, with updates scaled to AdamW's size (Liu et al. 2025,
arXiv:2502.16982), so that learning rate and weight decay mean what they mean to AdamW.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from mmengine.registry import OPTIMIZERS
from torch import nn
from torch.optim.adamw import adamw

from spark_seg.errors import UserError

LEAST_SIDE = 16
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's, for the steepest start
LIKE_ADAMW = 0.2  # root mean square of AdamW's updates, as Liu et al. measured it

Shape = tuple[int, int]


def is_matrix(parameter: torch.Tensor) -> bool:
    """Whether Muon takes it: two dimensions or more, at least `LEAST_SIDE` rows and columns.

    A convolution's weight is a matrix of output channels by all else. Depthwise ones (9 columns) and a classifier of
    few classes are left to AdamW.
    """
    return parameter.ndim >= 2 and min(_shape(parameter)) >= LEAST_SIDE


def _grad(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None  # only those are asked for
    return parameter.grad


def _shape(parameter: torch.Tensor) -> Shape:
    return parameter.shape[0], parameter[0].numel()


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16, which suffices here (Jordan et al.), but float32 on CPUs that would only emulate it."""
    computes = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if device.type != "cpu" or computes() else torch.float32


def orthogonal(stack: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """About `U V^T` of each matrix `U S V^T`, by the quintic Newton-Schulz iteration.

    Args:
        stack: `[n, rows, columns]`.
        steps: Iterations.

    Returns:
        The same shape in `fast_dtype`; singular values near 1, less for those that were almost none.
    """
    a, b, c = COEFFICIENTS
    tall = stack.shape[1] > stack.shape[2]
    x = (stack.mT if tall else stack).float()
    norms = x.flatten(1).norm(dim=1).clamp(min=1e-7)
    x = (x / norms[:, None, None]).to(fast_dtype(stack.device))
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


@OPTIMIZERS.register_module()
class MuonAdamW(torch.optim.Optimizer):
    """Matrices (`is_matrix`) move by their orthogonalised Nesterov momentum, everything else by AdamW.

    A matrix of A x B moves by `lr * 0.2 * sqrt(max(A, B))` times the orthogonalised momentum. Processes share the
    matrices out among themselves and add up what each made, so that all move alike, bit for bit.

    Args:
        params: Parameters or groups of them. Whole ones: ZeRO above stage 0 cuts them and is refused.
        lr: Learning rate of both.
        weight_decay: Decoupled, of both.
        betas, eps: AdamW's.
        momentum: Muon's.
        ns_steps: Iterations of Newton and Schulz.

    Raises:
        UserError: A value out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        momentum: float = 0.95,
        ns_steps: int = 5,
    ) -> None:
        if not 0 <= momentum < 1:
            raise UserError(f"MuonAdamW: momentum={momentum} must lie from 0 to below 1")
        if not isinstance(ns_steps, int) or ns_steps < 1:
            raise UserError(f"MuonAdamW: ns_steps={ns_steps} must be a number of iterations")
        defaults = dict(
            lr=lr, weight_decay=weight_decay, betas=tuple(betas), eps=eps, momentum=momentum
        )
        super().__init__(params, defaults | {"ns_steps": ns_steps})

    @staticmethod
    def state_keys(parameter: torch.Tensor) -> tuple[str, ...]:
        """What is kept of a parameter, in tensors of its shape."""
        return ("exp_avg",) if is_matrix(parameter) else ("exp_avg", "exp_avg_sq")

    @staticmethod
    def counts_steps(parameter: torch.Tensor) -> bool:
        """Whether a step count is kept of a parameter."""
        return not is_matrix(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; parameters without a gradient stay."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            self._step_adamw(group, [p for p in moving if not is_matrix(p)])
            self._step_muon(group, [p for p in moving if is_matrix(p)])
        return loss

    def _step_adamw(self, group: dict[str, Any], params: list[nn.Parameter]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["step"] = torch.tensor(0.0)
                for key in self.state_keys(p):
                    self.state[p][key] = torch.zeros_like(p)
        if not params:
            return
        states = [self.state[p] for p in params]
        # torch's own choice on a CPU is a loop in Python; a GPU's fused kernel would want the step counts there
        fused = True if params[0].device.type == "cpu" else None
        adamw(
            list[torch.Tensor](params),
            [_grad(p) for p in params],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            fused=fused,
        )

    def _step_muon(self, group: dict[str, Any], params: list[nn.Parameter]) -> None:
        shapes: dict[Shape, list[nn.Parameter]] = {}
        for p in params:
            if not self.state[p]:
                self.state[p]["exp_avg"] = torch.zeros_like(p)
            shapes.setdefault(_shape(p), []).append(p)
        if not shapes:
            return
        averages = [self.state[p]["exp_avg"] for p in params]
        torch._foreach_lerp_(averages, [_grad(p) for p in params], 1 - group["momentum"])
        torch._foreach_mul_(list[torch.Tensor](params), 1 - group["lr"] * group["weight_decay"])
        for p, update in self._updates(shapes, group["momentum"], group["ns_steps"]):
            p.add_(update, alpha=-group["lr"] * LIKE_ADAMW * max(_shape(p)) ** 0.5)

    def _updates(
        self, shapes: dict[Shape, list[nn.Parameter]], momentum: float, steps: int
    ) -> Iterable[tuple[nn.Parameter, torch.Tensor]]:
        parallel = dist.is_available() and dist.is_initialized()
        rank, world = (dist.get_rank(), dist.get_world_size()) if parallel else (0, 1)
        owners = share_out({shape: len(members) for shape, members in shapes.items()}, world)
        total = sum(p.numel() for members in shapes.values() for p in members)
        first = next(iter(shapes.values()))[0]
        flat = torch.zeros(total, dtype=fast_dtype(first.device), device=first.device)
        start = 0
        for shape, members in shapes.items():
            size = shape[0] * shape[1] * len(members)
            if owners[shape] == rank:
                ahead = [_grad(p).lerp(self.state[p]["exp_avg"], momentum) for p in members]
                stack = torch.stack([x.reshape(shape) for x in ahead])
                flat[start : start + size] = orthogonal(stack, steps).flatten()
            start += size
        if world > 1:
            dist.all_reduce(flat)  # each number is of one process, and zero on the others: exact
        start = 0
        for p in (p for members in shapes.values() for p in members):
            yield p, flat[start : start + p.numel()].view(p.shape)
            start += p.numel()


def share_out(counts: dict[Shape, int], world: int) -> dict[Shape, int]:
    """Which process orthogonalises the matrices of a shape: the costliest first, to whom has least to do.

    Args:
        counts: Matrices of each shape.
        world: Processes.
    """
    cost = {shape: n * min(shape) ** 2 * max(shape) for shape, n in counts.items()}
    loads, owners = [0] * world, {}
    for shape in sorted(cost, key=lambda s: (-cost[s], s)):
        owners[shape] = loads.index(min(loads))
        loads[owners[shape]] += cost[shape]
    return owners
