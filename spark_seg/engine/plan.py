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
from spark_seg.engine.combinations import require_possible, zero_stage
from spark_seg.engine.memory import StagePlan, stage_plans
from spark_seg.errors import UserError, UserFileNotFoundError

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import nn

_GB = 1e9


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
        precision: `bf16`, `fp16` or `fp32`.
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
    from spark_seg.models.pretrained import look_at

    nodes = _nodes(world_size, gpus_per_node)
    require_possible(cfg, strategy, world_size)
    notes: list[str] = []
    weights = look_at(cfg.get("pretrained"), cfg.get("variant", "b0"))
    if weights is not None:
        notes.append(weights)
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
    model, stages = stage_plans(cfg, world_size, precision, strategy)
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
        dropped=max(0, per_rank - steps * accumulation * batch) * world_size,
        precision=precision,
        parameters=_parts(model),
        zero_stage=zero_stage(cfg, world_size),
        stages=stages,
        notes=tuple(notes),
    )


def _nodes(world_size: int, gpus_per_node: int) -> int:
    if world_size < 1:
        raise UserError(f"--world-size must be 1 or more, not {world_size}")
    if gpus_per_node < 1:
        raise UserError(f"--gpus-per-node must be 1 or more, not {gpus_per_node}")
    if world_size > gpus_per_node and world_size % gpus_per_node:
        raise UserError(
            f"{world_size} processes do not fill nodes of {gpus_per_node} GPUs: take a multiple of "
            f"{gpus_per_node}, or say --gpus-per-node"
        )
    return -(-world_size // gpus_per_node)


def _frames(cfg: "Config", notes: list[str]) -> tuple[int, str]:
    from mmseg.registry import DATASETS

    from spark_seg.datasets.facts import FRAMES
    from spark_seg.datasets.layout import SATELLITES, Frame, find_root
    from spark_seg.datasets.spark import take_subset, without

    try:
        dataset = DATASETS.build({**cfg.train_dataloader.dataset, "lazy_init": True})
        return len(dataset.list_frames()), str(find_root(dataset.data_root))
    except UserFileNotFoundError as error:
        subset = cfg.get("subset")
        if not isinstance(subset, int | float | None):
            raise UserError(f"the data is needed for subset={subset!r}: {error}") from error
        total, told = FRAMES["train"] * len(SATELLITES), "SPARK 2024's published numbers"
        if cfg.get("demo_data"):
            total, told = int(cfg.demo_data["images"]), "the demo data's config"
            notes.append("the demo data is not rendered yet")
        else:
            notes.append(f"the data is not here ({error}): SPARK 2024's own numbers are taken")
        # the satellites take turns, as in both
        frames = [
            Frame(f"{k:08d}", SATELLITES[k % len(SATELLITES)], "train", "", "")
            for k in range(total)
        ]
        return len(take_subset(without(frames, cfg.get("leave_out")), subset)), told


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
    for s in p.stages:
        if s.stage == p.zero_stage and s.ema:
            lines.append(f"  {s.ema / _GB:.3f} GB of its total are averaged weights (ema_decay)")
        if s.stage == p.zero_stage and s.host:
            lines.append(f"  {s.host / _GB:.3f} GB for each GPU are in the CPU's memory (offload)")
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
