"""What cannot be combined, with the reasons, in one place.

Asked when a training is built, before a former run is moved or anything is written, and by `--dry-run`.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spark_seg.errors import UserError

if TYPE_CHECKING:
    from mmengine.config import Config

# Optimizers of torch that treat each number alone, so that ZeRO may cut parameters anywhere, and keep nothing but
# numbers of the parameters' own (NAdam and ASGD keep others). DeepSpeed itself vouches for Adam and AdamW only and
# wants to be told of the others (`zero_allow_untested_optimizer`).
ELEMENTWISE = frozenset(
    (
        *(
            "Adam",
            "AdamW",
            "SGD",
            "RMSprop",
            "Adagrad",
            "Adadelta",
            "Adamax",
            "RAdam",
        ),
        *("Rprop", "DeepSpeedCPUAdam", "FusedAdam"),
    )
)
_LARGE = ("b4", "b5")
_ADAM = ("Adam", "AdamW", "DeepSpeedCPUAdam")


@dataclass(frozen=True)
class Setting:
    """What a training asks for and where it would run.

    Attributes:
        strategy: `deepspeed` or `single`.
        stage: The ZeRO stage; 0 for `single`.
        world_size: Processes.
        precision: `auto`, `fp32`, `bf16` or `fp16`.
        allow_tf32: True, False or None.
        offload: None, `optimizer` or `optimizer+parameters`.
        optimizer: Its type and arguments.
        activation_checkpointing, freeze_backbone, cuda_graphs, compile, accumulate, multi_scale: As in the config.
        cuda: Whether there is a GPU; None where the training would run elsewhere (a dry run).
        bf16: Whether that GPU computes in bf16.
        trackers: What stands in the way of W&B and MLflow here.
    """

    strategy: str
    stage: int
    world_size: int
    precision: str
    allow_tf32: bool | None
    offload: str | None
    optimizer: dict[str, Any]
    activation_checkpointing: bool
    freeze_backbone: bool
    cuda_graphs: bool
    compile: bool
    accumulate: int
    multi_scale: bool
    cuda: bool | None
    bf16: bool
    trackers: tuple[str, ...]

    @classmethod
    def of(cls, cfg: "Config", strategy: str, world_size: int, cuda: bool | None) -> "Setting":
        """The setting of a loaded config."""
        import torch

        from spark_seg.engine.trackers import check_trackers

        here = [] if cuda is None else check_trackers(cfg.get("wandb"), cfg.get("mlflow"))
        return cls(
            strategy=strategy,
            stage=zero_stage(cfg, world_size) if strategy == "deepspeed" else 0,
            world_size=world_size,
            precision=cfg.get("precision", "auto"),
            allow_tf32=cfg.get("allow_tf32"),
            offload=cfg.get("offload"),
            optimizer=dict(cfg.optim_wrapper.optimizer),
            activation_checkpointing=bool(cfg.get("activation_checkpointing")),
            freeze_backbone=bool(cfg.get("freeze_backbone")),
            cuda_graphs=bool(cfg.get("cuda_graphs")),
            compile=bool(cfg.get("compile")),
            accumulate=int(cfg.get("accumulate") or 1),
            multi_scale=bool(cfg.get("multi_scale")),
            cuda=cuda,
            bf16=bool(cuda) and torch.cuda.is_bf16_supported(),
            trackers=tuple(line for _, line in here),
        )


def zero_stage(cfg: "Config", world_size: int) -> int:
    """The ZeRO stage of a config under DeepSpeed.

    `auto` is 1 where several processes share the optimizer, or the CPU keeps it (2 for b4 and b5, whose gradients are
    worth cutting too), and 0 in a single process, where nothing is partitioned: stages 1 and 2 copy each parameter's
    gradient there and change nothing (fp32) or round it on its way (bf16, fp16).

    Args:
        cfg: A loaded config.
        world_size: Processes.
    """
    zero = cfg.strategy.get("zero_optimization") or {}
    stage = zero.get("stage", 0)
    if stage == "auto":
        offload = cfg.get("offload") or zero.get("offload_optimizer") or zero.get("offload_param")
        several = 2 if cfg.get("variant") in _LARGE else 1
        return several if world_size > 1 or offload else 0
    return int(stage)


def _type(s: Setting) -> str:
    return str(s.optimizer.get("type"))


def missing_for_offload() -> str | None:
    """What keeps DeepSpeed from compiling its Adam for the CPU; None where nothing does."""
    if shutil.which("c++") is None and shutil.which("g++") is None:
        return "no C++ compiler is on the PATH (Debian: apt-get install g++)"
    if shutil.which("ninja") is None:
        try:
            import ninja  # noqa: F401
        except ImportError:
            return "ninja is missing (pip install ninja)"
    return None


@dataclass(frozen=True)
class Refusal:
    """A combination that is refused.

    Attributes:
        name: For tests and docs.
        applies: Whether a setting is one of these.
        reason: One line: what, why, what to do instead.
    """

    name: str
    applies: Callable[[Setting], bool]
    reason: Callable[[Setting], str]


REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        "single-many",
        lambda s: s.strategy == "single" and s.world_size > 1,
        lambda s: f"--strategy single runs in one process, not in {s.world_size}: leave it out for DeepSpeed",
    ),
    Refusal(
        "fp16-cpu",
        lambda s: s.precision == "fp16" and s.cuda is False,
        lambda s: "precision='fp16' is for GPUs: a CPU computes fp16 in fp32 and more slowly; use 'bf16' or 'fp32'",
    ),
    Refusal(
        "bf16-old-gpu",
        lambda s: s.precision == "bf16" and s.cuda is True and not s.bf16,
        lambda s: "precision='bf16': this GPU does not compute in bf16 (Ampere and later do); use 'fp16' or 'fp32'",
    ),
    Refusal(
        "tf32-cpu",
        lambda s: s.allow_tf32 is True and s.cuda is False,
        lambda s: "allow_tf32=True is for GPUs, and torch sees none here: leave it out",
    ),
    Refusal(
        "tf32-low-precision",
        lambda s: s.allow_tf32 is True and s.precision in ("bf16", "fp16"),
        lambda s: f"allow_tf32=True with precision={s.precision!r}: the network computes in {s.precision}, not in "
        "fp32; use precision='fp32', or leave it out",
    ),
    Refusal(
        "offload-single",
        lambda s: s.offload is not None and s.strategy == "single",
        lambda s: f"offload={s.offload!r} is DeepSpeed's: leave out --strategy single, or offload=None",
    ),
    Refusal(
        "offload-stage-0",
        lambda s: s.offload is not None and s.strategy != "single" and s.stage == 0,
        lambda s: f"offload={s.offload!r} with zero_stage=0: nothing is partitioned that could be kept in the CPU's "
        "memory; use zero_stage 1, 2 or 3",
    ),
    Refusal(
        "offload-parameters",
        lambda s: s.offload == "optimizer+parameters" and s.stage in (1, 2),
        lambda s: f"offload='optimizer+parameters' with zero_stage={s.stage}: every GPU keeps all parameters below "
        "stage 3; use zero_stage=3, or offload='optimizer'",
    ),
    Refusal(
        "offload-optimizer",
        lambda s: s.offload is not None and _type(s) not in _ADAM,
        lambda s: f"offload={s.offload!r} with {_type(s)}: DeepSpeed has Adam and AdamW for the CPU; use one of these, "
        "or offload=None",
    ),
    Refusal(
        "offload-amsgrad",
        lambda s: s.offload is not None and bool(s.optimizer.get("amsgrad")),
        lambda s: f"offload={s.offload!r} with amsgrad: DeepSpeed's Adam for the CPU has none; use amsgrad=False",
    ),
    Refusal(
        "offload-build",
        lambda s: s.offload is not None and s.cuda is not None and missing_for_offload() is not None,
        lambda s: f"offload={s.offload!r} needs DeepSpeed's compiled Adam, which cannot be built here: "
        f"{missing_for_offload()}",
    ),
    Refusal(
        "lbfgs",
        lambda s: _type(s) == "LBFGS",
        lambda s: "LBFGS computes a step's loss several times, which no training here does; use AdamW",
    ),
    Refusal(
        "zero-optimizer",
        lambda s: s.stage > 0 and _type(s) != "LBFGS" and _type(s) not in ELEMENTWISE,
        lambda s: f"{_type(s)} with zero_stage={s.stage}: ZeRO cuts parameters into parts, and this optimizer looks "
        "at whole ones, keeps more than a number for each, or may; use zero_stage=0, or AdamW",
    ),
    Refusal(
        "checkpointing-frozen",
        lambda s: s.activation_checkpointing and s.freeze_backbone,
        lambda s: "activation_checkpointing with freeze_backbone: a frozen backbone keeps no activations, nothing "
        "would be saved; set one of them to False",
    ),
    Refusal(
        "graphs-cpu",
        lambda s: s.cuda_graphs and s.cuda is False,
        lambda s: "cuda_graphs=True is for GPUs, and torch sees none here: leave it out",
    ),
    Refusal(
        "graphs-many",
        lambda s: s.cuda_graphs and s.world_size > 1,
        lambda s: f"cuda_graphs=True with {s.world_size} processes: what the norms tell each other cannot be recorded "
        "safely; leave it out",
    ),
    Refusal(
        "graphs-accumulate",
        lambda s: s.cuda_graphs and s.accumulate > 1,
        lambda s: f"cuda_graphs=True with accumulate={s.accumulate}: a replay overwrites the gradients of the one "
        "before; use a larger batch_size with accumulate=1, or cuda_graphs=False",
    ),
    Refusal(
        "graphs-stage-3",
        lambda s: s.cuda_graphs and s.stage == 3,
        lambda s: "cuda_graphs=True with zero_stage=3: parameters move in every step, a recording needs them in one "
        "place; use zero_stage 0 to 2, or cuda_graphs=False",
    ),
    Refusal(
        "graphs-checkpointing",
        lambda s: s.cuda_graphs and s.activation_checkpointing,
        lambda s: "cuda_graphs=True with activation_checkpointing: a recording keeps its memory anyway; "
        "turn one of them off",
    ),
    Refusal(
        "graphs-compile",
        lambda s: s.cuda_graphs and s.compile,
        lambda s: "cuda_graphs=True with compile: a recording of compiled blocks was never tried; turn one of them off",
    ),
    Refusal(
        "graphs-multi-scale",
        lambda s: s.cuda_graphs and s.multi_scale,
        lambda s: "cuda_graphs=True with multi_scale: every size would be recorded and keep its memory; "
        "turn one of them off",
    ),
    Refusal(
        "trackers",
        lambda s: bool(s.trackers),
        lambda s: s.trackers[0],
    ),
)  # fmt: skip


def require_possible(
    cfg: "Config", strategy: str, world_size: int, cuda: bool | None = None
) -> None:
    """Refuses what cannot work.

    Args:
        cfg: As from `spark_seg.config.load_config`.
        strategy: `deepspeed` or `single`.
        world_size: Processes.
        cuda: Whether the training has a GPU; None where it would run elsewhere, so that this machine says nothing.

    Raises:
        UserError: It cannot, with the reason.
    """
    setting = Setting.of(cfg, strategy, world_size, cuda)
    for refusal in REFUSALS:
        if refusal.applies(setting):
            raise UserError(refusal.reason(setting))
