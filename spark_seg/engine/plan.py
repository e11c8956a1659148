"""`train.py CONFIG --dry-run --world-size 24`: what a training would be, worked out on a laptop.

No process group, no GPU, and nothing of the run's folder is touched but `plan/` in it. Counts and schedule come
from the code that trains; memory of weights, gradients and optimizer follows from parameter counts and dtypes as
DeepSpeed 0.19 lays them out; activations are an estimate (`spark_seg.engine.activations`) and labelled so.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_seg.atomic import make_folder, write_bytes
from spark_seg.errors import UserError, UserFileNotFoundError

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import nn

_GB = 1e9
_FP32 = 4


@dataclass(frozen=True)
class StagePlan:
    """What one ZeRO stage costs each GPU.

    Attributes:
        stage: 0 to 3.
        parameters: Parameters that the GPU keeps (stage 3: its part).
        weights, gradients, optimizer, buckets, activations: Bytes. `weights` includes ZeRO's fp32 copy of the GPU's
            part; `buckets` are DeepSpeed's communication buffers; `activations` is an estimate.
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

    @property
    def total(self) -> int:
        """Bytes per GPU."""
        return self.weights + self.gradients + self.optimizer + self.buckets + self.activations


@dataclass(frozen=True)
class Plan:
    """A training, worked out.

    Attributes:
        world_size, nodes: Processes (one for each GPU) and nodes.
        batch_per_gpu, accumulation, effective_batch: Images of a forward pass on one GPU, passes per optimizer step,
            images per optimizer step.
        frames, frames_from: Training frames and where the number comes from.
        steps_per_epoch, total_steps, warmup_steps: Optimizer steps.
        padded: Frames that are seen twice in an epoch, so that all processes have as many.
        dropped: Frames that an epoch leaves out, as they fill no batch.
        precision: `bf16` or `fp32`.
        parameters: Of each of the backbone's stages and of the head.
        zero_stage: The config's.
        stages: Costs of stages 0 to 3.
        notes: What the reader should know.
    """

    world_size: int
    nodes: int
    batch_per_gpu: int
    accumulation: int
    effective_batch: int
    frames: int
    frames_from: str
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    padded: int
    dropped: int
    precision: str
    parameters: dict[str, int]
    zero_stage: int
    stages: tuple[StagePlan, ...]
    notes: tuple[str, ...]


def make_plan(
    cfg: "Config", world_size: int = 1, gpus_per_node: int = 8, strategy: str = "deepspeed"
) -> Plan:
    """Works a config out for a number of processes.

    Args:
        cfg: As from `spark_seg.config.load_config`.
        world_size: Processes, one for each GPU.
        gpus_per_node: GPUs of a node.
        strategy: `deepspeed` or `single`.

    Raises:
        UserError: It cannot work, with the reason.
    """
    nodes = _nodes(world_size, gpus_per_node, strategy)
    notes: list[str] = []
    frames, frames_from = _frames(cfg, notes)
    loader = cfg.train_dataloader
    batch = int(loader.batch_size)
    accumulation = int(cfg.strategy.get("gradient_accumulation_steps", 1) or 1)
    rounds_up = loader.sampler.get("round_up", True)
    per_rank = -(-frames // world_size) if rounds_up else frames // world_size
    batches = per_rank // batch if loader.get("drop_last") else -(-per_rank // batch)
    if batches == 0:
        raise UserError(
            f"batch_size={batch} is more than the {per_rank} frames that each of {world_size} process(es) has of "
            f"{frames}: make it smaller, or start fewer processes"
        )
    steps = batches // accumulation
    if steps == 0:
        raise UserError(
            f"gradient accumulation over {accumulation} batches is more than the {batches} of an epoch"
        )
    if batches % accumulation:
        notes.append(
            f"{batches} batches an epoch are no multiple of the {accumulation} that make a step"
        )
    total, warmup = _schedule(cfg, steps)
    precision = cfg.get("precision", "auto")
    if precision == "auto":
        precision = "bf16"
        notes.append("precision auto: bf16 is assumed, as on GPUs since Ampere")
    model, stages = _stages(cfg, world_size, precision, strategy)
    return Plan(
        world_size=world_size,
        nodes=nodes,
        batch_per_gpu=batch,
        accumulation=accumulation,
        effective_batch=batch * accumulation * world_size,
        frames=frames,
        frames_from=frames_from,
        steps_per_epoch=steps,
        total_steps=total,
        warmup_steps=warmup,
        padded=max(0, per_rank * world_size - frames),
        dropped=(per_rank % batch) * world_size if loader.get("drop_last") else 0,
        precision=precision,
        parameters=_parts(model),
        zero_stage=int(cfg.strategy.get("zero_optimization", {}).get("stage", 0)),
        stages=stages,
        notes=tuple(notes),
    )


def _nodes(world_size: int, gpus_per_node: int, strategy: str) -> int:
    if world_size < 1:
        raise UserError(f"--world-size must be 1 or more, not {world_size}")
    if gpus_per_node < 1:
        raise UserError(f"--gpus-per-node must be 1 or more, not {gpus_per_node}")
    if strategy == "single" and world_size > 1:
        raise UserError(
            f"--strategy single runs in one process, not in {world_size}: leave it out for DeepSpeed"
        )
    if world_size > gpus_per_node and world_size % gpus_per_node:
        raise UserError(
            f"{world_size} processes do not fill nodes of {gpus_per_node} GPUs: take a multiple of "
            f"{gpus_per_node}, or say --gpus-per-node"
        )
    return -(-world_size // gpus_per_node)


def _frames(cfg: "Config", notes: list[str]) -> tuple[int, str]:
    from mmseg.registry import DATASETS

    from spark_seg.datasets.facts import FRAMES
    from spark_seg.datasets.layout import SATELLITES

    try:
        dataset = DATASETS.build({**cfg.train_dataloader.dataset, "lazy_init": True})
        return len(dataset.list_frames()), str(dataset.data_root)
    except UserFileNotFoundError as error:
        if cfg.get("demo_data"):
            notes.append("the demo data is not rendered yet")
            return int(cfg.demo_data["images"]), "the demo data's config"
        left_out = cfg.get("leave_out") or ()
        left_out = {left_out} if isinstance(left_out, str) else set(left_out)
        frames = FRAMES["train"] * len(set(SATELLITES) - left_out)
        subset = cfg.get("subset")
        if isinstance(subset, float):
            frames = round(frames * subset)
        elif isinstance(subset, int) and not isinstance(subset, bool):
            frames = min(frames, subset)
        elif subset is not None:
            raise UserError(f"the data is needed for subset={subset!r}: {error}") from error
        notes.append(f"the data is not here ({error}): SPARK 2024's own numbers are taken")
        return frames, "SPARK 2024's published numbers"


def _schedule(cfg: "Config", steps: int) -> tuple[int, int]:
    import torch

    from spark_seg.engine import optim

    epochs = int(cfg.train_cfg.max_epochs)
    for entry in cfg.get("param_scheduler") or ():
        schedule = getattr(optim, str(entry.type), None)
        if isinstance(schedule, type) and issubclass(schedule, optim.WarmupLR):
            keys = ("warmup_epochs", "warmup_lr", "min_lr")
            optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=float(cfg.lr))
            made = schedule(optimizer, epochs, steps, **{k: entry[k] for k in keys if k in entry})
            return epochs * steps, made.warmup
    return epochs * steps, 0


def _parts(model: "nn.Module") -> dict[str, int]:
    """Parameters of each of the backbone's stages, of the head, of anything else."""

    def count(module: Any) -> int:
        return sum(p.numel() for p in module.parameters())

    parts = {
        f"backbone stage {i + 1}": count(stage)
        for i, stage in enumerate(getattr(model.backbone, "layers", ()))
    }
    if rest := count(model.backbone) - sum(parts.values()):
        parts["backbone, rest"] = rest
    parts["decode head"] = count(model.decode_head)
    if rest := count(model) - sum(parts.values()):
        parts["rest"] = rest
    return parts


def _optimizer_bytes(cfg: "Config") -> int:
    """Bytes of state per trained parameter."""
    optimizer = cfg.optim_wrapper.optimizer
    if optimizer.type == "SGD":
        return _FP32 if optimizer.get("momentum") else 0
    return 2 * _FP32  # both moments of Adam's family


def _stages(
    cfg: "Config", world: int, precision: str, strategy: str
) -> tuple["nn.Module", tuple[StagePlan, ...]]:
    from mmseg.registry import MODELS

    from spark_seg.engine.activations import saved_bytes

    model = MODELS.build(cfg.model).train()
    if cfg.get("accelerate"):
        from spark_seg.models.fast_segformer import accelerate

        accelerate(model)
    if cfg.get("freeze_backbone"):
        from spark_seg.models.freeze import freeze_backbone

        freeze_backbone(model)
    activations = saved_bytes(model, cfg, bf16=precision == "bf16")
    sizes = _Sizes.of(model, precision == "bf16", _optimizer_bytes(cfg), activations)
    zero = cfg.strategy.get("zero_optimization", {})
    bucket = int(zero.get("reduce_bucket_size", 500_000_000))
    doubled = 2 if zero.get("overlap_comm") else 1
    plans = [sizes.stage(stage, world, bucket, doubled) for stage in range(4)]
    return model, tuple(plans[:1] if strategy == "single" else plans)


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
    def of(cls, model: "nn.Module", bf16: bool, per_param: int, activations: int) -> "_Sizes":
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
            moments=per_param * count,
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


def plan_lines(plan: Plan) -> list[str]:
    """The plan for people."""
    p = plan
    accumulated = f" x {p.accumulation} accumulated" if p.accumulation > 1 else ""
    lines = [
        f"processes        {p.world_size} on {p.nodes} node(s)",
        f"effective batch  {p.effective_batch} ({p.batch_per_gpu} per GPU{accumulated} x {p.world_size})",
        f"training frames  {p.frames} ({p.frames_from})",
        f"                 {p.padded} padded and {p.dropped} dropped per epoch",
        f"steps per epoch  {p.steps_per_epoch}",
        f"steps in all     {p.total_steps}, {p.warmup_steps} of them warm-up",
        f"precision        {p.precision}",
        "parameters",
    ]
    lines += [f"  {name:18} {count / 1e6:8.3f} M" for name, count in p.parameters.items()]
    lines += [
        f"  {'in all':18} {sum(p.parameters.values()) / 1e6:8.3f} M",
        "memory per GPU in GB (activations are an estimate, not compared with a GPU)",
        "  ZeRO  kept, M  weights  gradients  optimizer  buckets  ~activations  ~total  sent per step",
    ]
    for s in p.stages:
        mark = "*" if s.stage == p.zero_stage and len(p.stages) > 1 else " "
        lines.append(
            f"  {s.stage}{mark}   {s.parameters / 1e6:8.3f} {s.weights / _GB:8.3f}  {s.gradients / _GB:9.3f}"
            f"  {s.optimizer / _GB:9.3f}  {s.buckets / _GB:7.3f}  {s.activations / _GB:12.3f}  "
            f"{s.total / _GB:6.2f}  {s.sent / _GB:9.3f} GB"
        )
    if len(p.stages) > 1:
        lines.append("  * the config's zero_stage")
    lines += [f"note: {note}" for note in p.notes]
    return lines


def dry_run(cfg: "Config", world_size: int, gpus_per_node: int, strategy: str) -> Plan:
    """Prints the plan and leaves it beside the merged config in `<work dir>/plan/`."""
    from spark_seg.config import unresolved_text

    plan = make_plan(cfg, world_size, gpus_per_node, strategy)
    folder = make_folder(Path(cfg.work_dir) / "plan")
    write_bytes(folder / "config.py", unresolved_text(cfg).encode())
    record = dataclasses.asdict(plan)
    for entry, stage in zip(record["stages"], plan.stages, strict=True):
        entry["total"] = stage.total
    write_bytes(folder / "plan.json", (json.dumps(record, indent=1) + "\n").encode())
    print(f"merged config    {folder / 'config.py'}")
    print("\n".join(plan_lines(plan)))
    print(f"as JSON          {folder / 'plan.json'}")
    return plan
