"""What a training costs each GPU in memory and communication, for each ZeRO stage, worked out from parameter counts.

Weights, gradients, optimizer and buffers as DeepSpeed 0.19 lays them out; activations are an estimate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from spark_seg.engine.combinations import ELEMENTWISE

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import nn

_FP32 = 4


@dataclass(frozen=True)
class StagePlan:
    """What one ZeRO stage costs each GPU.

    Attributes:
        stage: 0 to 3.
        parameters: Parameters that the GPU keeps (stage 3: its part).
        weights, gradients, optimizer, buckets, activations: Bytes. `weights` includes ZeRO's fp32 copy of the GPU's
            part; `buckets` are DeepSpeed's communication buffers; `activations` is an estimate.
        ema: Bytes of the averaged weights, where there are any.
        host: Bytes that offloading keeps in the CPU's memory for each GPU instead.
        sent: Bytes that each GPU sends per optimizer step, with ring algorithms.
    """

    stage: int
    parameters: int
    weights: int
    gradients: int
    optimizer: int
    buckets: int
    activations: int
    sent: int
    ema: int = 0
    host: int = 0

    @property
    def total(self) -> int:
        """Bytes per GPU."""
        states = self.weights + self.gradients + self.optimizer + self.ema
        return states + self.buckets + self.activations


def _optimizer_bytes(optimizer: Mapping[str, Any], learning: "Sequence[nn.Parameter]") -> int:
    """Bytes of an optimizer's state, of its config and what it trains; of optimizers not named here as of Adam."""
    kind, given = optimizer["type"], optimizer.get
    if kind == "MuonAdamW":
        from spark_seg.engine.muon import MuonAdamW

        return _FP32 * sum(len(MuonAdamW.state_keys(p)) * p.numel() for p in learning)
    copies = {
        "SGD": bool(given("momentum")),
        "RMSprop": 1 + bool(given("momentum")) + bool(given("centered")),
        "Adagrad": 1,
        "ASGD": 1,
    }.get(kind, 2 + bool(given("amsgrad")))
    return _FP32 * copies * sum(p.numel() for p in learning)


def stage_plans(
    cfg: "Config", world: int, precision: str, strategy: str
) -> tuple["nn.Module", tuple[StagePlan, ...]]:
    """The costs of ZeRO's stages 0 to 3 (of 0 alone where ZeRO is not for it), and the model as it would train.

    Args:
        cfg: As from `spark_seg.config.load_config`.
        world: Processes.
        precision: `fp32`, `bf16` or `fp16`.
        strategy: `deepspeed` or `single`.
    """
    from mmseg.registry import MODELS

    from spark_seg.engine.activations import saved_bytes

    model = MODELS.build(cfg.model).train()
    if cfg.get("accelerate"):
        from spark_seg.models.fast_segformer import accelerate

        accelerate(model)
    if cfg.get("freeze_backbone"):
        from spark_seg.models.freeze import freeze_backbone

        freeze_backbone(model)
    half = precision in ("bf16", "fp16")
    activations = saved_bytes(model, cfg, bf16=half)
    optimizer = cfg.optim_wrapper.optimizer
    sizes = _Sizes.of(model, half, optimizer, activations)
    zero = cfg.strategy.get("zero_optimization", {})
    bucket = int(zero.get("reduce_bucket_size", 500_000_000))
    doubled = 2 if zero.get("overlap_comm") else 1
    plans = [sizes.stage(stage, world, bucket, doubled) for stage in range(4)]
    if cfg.get("ema_decay") is not None:
        averaged = _FP32 * sum(p.numel() for p in model.parameters())
        plans = [replace(p, ema=averaged if p.stage < 3 else -(-averaged // world)) for p in plans]
    plans = [_offloaded(p, -(-sizes.trained // world), cfg.get("offload")) for p in plans]
    whole = strategy == "single" or optimizer.type not in ELEMENTWISE  # ZeRO is refused
    return model, tuple(plans[:1] if whole else plans)


def _offloaded(plan: StagePlan, part: int, offload: str | None) -> StagePlan:
    """What offloading moves: fp32 copy, gradients and moments of the part; under stage 3 also the part itself."""
    if offload is None or plan.stage == 0:
        return plan
    parameters = part if plan.stage == 3 and offload == "optimizer+parameters" else 0
    return replace(
        plan,
        weights=plan.weights - part - parameters,
        gradients=plan.gradients - part,
        optimizer=0,
        host=plan.optimizer + 2 * part + parameters,
    )


@dataclass(frozen=True)
class _Sizes:
    """What the costs of a stage follow from; bytes except `count`."""

    trained: int  # of fp32 weights that learn
    other: int  # of frozen weights and buffers
    wire: int  # of all gradients as ZeRO reduces them
    widths: tuple[int, ...]  # of the dtypes in which it does
    moments: int
    activations: int
    count: int

    @classmethod
    def of(
        cls, model: "nn.Module", bf16: bool, optimizer: Mapping[str, Any], activations: int
    ) -> "_Sizes":
        from torch import nn

        # DeepSpeed reduces the gradients of exactly these classes in the autocast dtype
        # (`deepspeed/runtime/torch_autocast.py`), everything else in fp32.
        low = {nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d}
        width = {
            id(p): 2 if bf16 and type(module) in low else _FP32
            for module in model.modules()
            for p in module.parameters(recurse=False)
            if p.requires_grad
        }
        learning = [p for p in model.parameters() if p.requires_grad]
        count = sum(p.numel() for p in learning)
        frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
        buffers = sum(b.numel() * b.element_size() for b in model.buffers())
        return cls(
            trained=_FP32 * count,
            other=_FP32 * frozen + buffers,
            wire=sum(p.numel() * width[id(p)] for p in learning),
            widths=tuple(sorted({width[id(p)] for p in learning})),
            moments=_optimizer_bytes(optimizer, learning),
            activations=activations,
            count=count,
        )

    def stage(self, stage: int, world: int, bucket: int, doubled: int) -> StagePlan:
        """The costs of one ZeRO stage; `bucket` in elements."""
        part = -(-self.trained // world)
        ring = (world - 1) / world
        if stage == 0:
            return StagePlan(
                stage=0,
                parameters=self.count,
                weights=self.trained + self.other,
                gradients=self.trained,
                optimizer=self.moments,
                buckets=min(self.trained, _FP32 * bucket) if world > 1 else 0,
                activations=self.activations,
                sent=round(2 * self.trained * ring),
            )
        gathered = self.trained + self.other
        # One for each dtype; stages 1 and 2 fill fp32 ones, two by turns with overlap_comm.
        widths = len(self.widths) * _FP32 * doubled if stage < 3 else sum(self.widths)
        buckets = bucket * widths
        # Reduced to their owners in `wire`'s dtypes; the updated weights come back in fp32, under stage 3 once for
        # the forward and once for the backward pass.
        back = self.trained * (2 if stage == 3 else 1)
        return StagePlan(
            stage=stage,
            parameters=self.count if stage < 3 else -(-self.count // world),
            # Stage 3 gathers a layer before it is used; with DeepSpeed's reuse distance of 1e9 parameters a model of
            # this size stays gathered until its backward pass: its peak has the whole beside the parts.
            weights=gathered + part * (2 if stage == 3 else 1),
            gradients=self.trained + part if stage == 1 else part,
            optimizer=-(-self.moments // world),
            buckets=buckets,
            activations=self.activations,
            sent=round((self.wire + back) * ring),
        )
