"""How a training would scale over GPUs, on paper: `python -m spark_seg.engine.scaling` prints docs/scaling.md's tables.

A step is what its slowest part takes: the GPU with the communication that it cannot hide, the cores that decode, or
the storage that all GPUs share.

- Bytes that each GPU sends come from `memory.stage_plans`, which counts parameters as ZeRO lays them out; a ring of N
  sends `(N - 1) / N` of them (Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms, 2009).
- Gradients travel while the backward pass, two thirds of the computation, goes on; what ZeRO sends after the step, the
  updated weights, or before a layer's forward, nothing hides here. That is pessimistic.
- Rings that leave a node are as fast as the node's network cards together, or as NVLink where that is slower.
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spark_seg.engine.memory import StagePlan

GPUS = (1, 2, 4, 8, 16, 32, 64)
BACKWARD = 2 / 3
"""Share of a step's computation that is the backward pass."""

FIRST_PROJECT = {1: 72.8, 2: 142.0, 4: 268.0, 8: 477.0, 16: 817.0}
"""Images per second that the first project published for its tiny UNet, by GPUs."""


@dataclass(frozen=True)
class Link:
    """A way between GPUs.

    Attributes:
        name: For people.
        bandwidth: Bytes per second and direction of one GPU, or of a node's cards together.
        latency: Seconds of one hop.
    """

    name: str
    bandwidth: float
    latency: float


NVLINK = Link("NVLink 4, 450 GB/s per GPU", 450e9, 3e-6)
NDR = Link("InfiniBand NDR, 400 Gb/s per GPU", 8 * 50e9, 8e-6)
HDR = Link("InfiniBand HDR, one 200 Gb/s card per node", 25e9, 8e-6)


@dataclass(frozen=True)
class Cluster:
    """Nodes of GPUs.

    Attributes:
        inside: Between GPUs of a node.
        between: Between nodes; its bandwidth is the node's.
        gpus: In a node.
        cores: For each GPU, that decode.
        storage: Bytes per second that all GPUs together read from shared storage.
    """

    inside: Link = NVLINK
    between: Link = NDR
    gpus: int = 8
    cores: int = 8
    storage: float = 10e9

    def ring(self, sent: float, world: int, messages: int = 1) -> float:
        """Seconds of ring collectives in which each of `world` GPUs sends so many bytes in so many messages."""
        if world == 1:
            return 0.0
        leaves = world > self.gpus
        bandwidth = min(self.inside.bandwidth, self.between.bandwidth if leaves else float("inf"))
        latency = self.between.latency if leaves else self.inside.latency
        return sent / bandwidth + messages * (world - 1) * latency


@dataclass(frozen=True)
class Load:
    """What one optimizer step asks for.

    Attributes:
        reduced: Bytes that reducing all gradients costs a GPU of an endless ring: hidden behind the backward pass.
        gathered: Likewise of what nothing hides: weights.
        batch: Images for each GPU.
        rate: Images per second that one GPU computes alone.
        decode: Seconds of one core for an image.
        read: Bytes of an image's files.
        messages: Collectives of a step.
    """

    reduced: float
    gathered: float
    batch: int
    rate: float
    decode: float
    read: float
    messages: int = 4


@dataclass(frozen=True)
class Step:
    """A predicted step.

    Attributes:
        world: GPUs.
        compute, exposed, loading, storage: Seconds of the GPU, of communication that is not hidden, of the decoding
            cores, of the shared storage.
        batch: Images for each GPU.
    """

    world: int
    compute: float
    exposed: float
    loading: float
    storage: float
    batch: int

    @property
    def seconds(self) -> float:
        """The step's."""
        return max(self.compute + self.exposed, self.loading, self.storage)

    @property
    def images_per_s(self) -> float:
        """Of all GPUs."""
        return self.world * self.batch / self.seconds

    @property
    def efficiency(self) -> float:
        """Share of `world` times what one GPU computes."""
        return self.compute / self.seconds

    @property
    def limit(self) -> str:
        """What the step waits for."""
        parts = {
            "GPU": self.compute + self.exposed,
            "cores": self.loading,
            "storage": self.storage,
        }
        return max(parts, key=lambda name: parts[name])


def predict(load: Load, world: int, cluster: Cluster) -> Step:
    """A step of `world` GPUs."""
    share = (world - 1) / world
    compute = load.batch / load.rate
    reducing = cluster.ring(load.reduced * share, world, load.messages)
    gathering = cluster.ring(load.gathered * share, world, load.messages) if load.gathered else 0.0
    return Step(
        world=world,
        compute=compute,
        exposed=max(0.0, reducing - BACKWARD * compute) + gathering,
        loading=load.batch * load.decode / cluster.cores,
        storage=world * load.batch * load.read / cluster.storage,
        batch=load.batch,
    )


def split_sent(plan: "StagePlan", weights: int, world: int) -> tuple[float, float]:
    """`(reduced, gathered)` bytes of an endless ring, from a stage's plan for `world` processes.

    Args:
        plan: Of stage 0 to 3.
        weights: Bytes of the trained weights in fp32.
        world: The processes that the plan is for, at least 2.
    """
    whole = plan.sent * world / (world - 1)
    gathered = {0: 0, 1: weights, 2: weights, 3: 2 * weights}[plan.stage]
    return whole - gathered, float(gathered)


def shared_cost(measured: Mapping[int, float]) -> tuple[float, float]:
    """Fits `N / throughput = own + (N - 1) shared` to throughputs by GPUs: least squares of relative errors.

    Returns:
        Seconds of an image on a GPU of its own, and those of something that all GPUs take in turns.
    """
    import numpy as np

    world = np.array(list(measured), float)
    spent = world / np.array(list(measured.values()))
    terms = np.stack([np.ones_like(world), world - 1], 1) / spent[:, None]
    own, shared = np.linalg.lstsq(terms, np.ones_like(world), rcond=None)[0]
    return float(own), float(shared)


def storage_limit(rate: float, read: float, bandwidth: float) -> float:
    """GPUs of so many images per second that a storage feeds."""
    return bandwidth / (rate * read)


def loads(variant: str, rate: float, decode: float, read: float) -> dict[int, Load]:
    """What a step of a variant's config asks for, by ZeRO stage, in bf16."""
    import spark_seg.register  # noqa: F401
    from spark_seg.config import load_config
    from spark_seg.engine.memory import stage_plans

    cfg = load_config(f"segformer_{variant}_spark.py", {"pretrained": None}, [])
    model, plans = stage_plans(cfg, 2, "bf16", "deepspeed")
    weights = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    batch = int(cfg.train_dataloader.batch_size)
    return {
        plan.stage: Load(*split_sent(plan, weights, 2), batch, rate, decode, read) for plan in plans
    }


@dataclass(frozen=True)
class Rate:
    """Images per second of one GPU.

    Attributes:
        value: The rate.
        batch: Images of a step; None: the config's.
        measured: Whether it was; else it is assumed.
    """

    value: float
    batch: int | None = None
    measured: bool = False

    def __str__(self) -> str:
        return f"{self.value:.0f}, measured" if self.measured else f"{self.value:.0f}, assumed"


# Measured: the recorded step of docs/benchmarks.md, "One GPU", 16 images in the GPU's memory, DeepSpeed and data left
# out. Assumed: 1 000 img/s of b2 is the aim, 2 400 what the bytes moved allow on an H200; b5 by its operations.
RATES = {
    "b2": (Rate(502.0, 16, True), Rate(1000.0), Rate(2400.0)),
    "b5": (Rate(340.0), Rate(800.0)),
}
LABELS = 5e3
"""Bytes of a frame's cached labels."""


@dataclass(frozen=True)
class Input:
    """What a frame of 1024 px asks of cores and storage on its way to a batch of 512 px, labels cached.

    Attributes:
        name: For people.
        picture: Bytes of its picture.
        decode: Seconds of one core, normalisation left to the GPU.
    """

    name: str
    picture: float
    decode: float

    @property
    def read(self) -> float:
        """Bytes of picture and labels."""
        return self.picture + LABELS


# Measured, docs/benchmarks.md, "Input pipeline", the table without normalisation (means of its two runs); what SPARK
# 2024's frames have at 1024 px is not known. The real frames were cut to half size at 63 kB (docs/data.md).
SMALL = Input("163 kB", 163e3, 3.6e-3)
REAL = Input("383 kB", 383e3, 6.3e-3)
HALF = Input("half-size JPEG", 63e3, 2.45e-3)
INPUTS = (SMALL, REAL, HALF)
SIZES = {  # bytes of a frame
    "rendered JPEG": SMALL.picture,
    "real JPEG": REAL.picture,
    "original mask": 24e3,
    "labels cached": LABELS,
    "half-size JPEG": HALF.picture,
    "half-size raw": 786e3,
}


def sent_table(loads_of: Mapping[str, Mapping[int, Load]]) -> list[dict[str, object]]:
    """Megabytes that a GPU of an endless ring sends in a step, and milliseconds at each link's speed."""
    rows: list[dict[str, object]] = []
    for variant, stages in loads_of.items():
        for stage, load in stages.items():
            sent = load.reduced + load.gathered
            row: dict[str, object] = {"variant": variant, "ZeRO": stage}
            row |= {"gradients, MB": f"{load.reduced / 1e6:.0f}"}
            row |= {"weights, MB": f"{load.gathered / 1e6:.0f}"}
            for link in (NVLINK, NDR, HDR):
                row[f"ms: {link.name}"] = (
                    f"{1e3 * sent / min(link.bandwidth, NVLINK.bandwidth):.1f}"
                )
            rows.append(row)
    return rows


def efficiency_table(
    loads_of: Mapping[str, Mapping[int, Load]], stage: int, cluster: Cluster
) -> list[dict[str, object]]:
    """Predicted images per second and efficiency by GPUs, from communication and computation alone."""
    rows: list[dict[str, object]] = []
    free = Cluster(cluster.inside, cluster.between, cluster.gpus, 10**6, float("inf"))
    for variant, stages in loads_of.items():
        for rate in RATES[variant]:
            load = _at(stages[stage], rate)
            row: dict[str, object] = {"variant": variant, "img/s of one GPU": str(rate)}
            row["batch"] = load.batch
            for world in GPUS:
                step = predict(load, world, free)
                row[f"{world}"] = f"{step.images_per_s:.0f} ({step.efficiency:.0%})"
            rows.append(row)
    return rows


def feeding_table() -> list[dict[str, object]]:
    """Cores for each GPU, and how many GPUs a storage feeds, at each rate, for each of `INPUTS`."""
    rows: list[dict[str, object]] = []
    for variant, rates in RATES.items():
        for rate in rates:
            row: dict[str, object] = {"variant": variant, "img/s of one GPU": str(rate)}
            row["cores per GPU"] = _slashes(f"{rate.value * i.decode:.1f}" for i in INPUTS)
            row["MB/s per GPU"] = _slashes(f"{rate.value * i.read / 1e6:.0f}" for i in INPUTS)
            for name, bandwidth in (("1 GB/s", 1e9), ("10 GB/s", 10e9)):
                # whole GPUs: 2.6 of them are two that never wait
                row[f"GPUs that shared storage of {name} feeds"] = _slashes(
                    str(int(storage_limit(rate.value, i.read, bandwidth))) for i in INPUTS
                )
            rows.append(row)
    return rows


def _slashes(values: Iterable[str]) -> str:
    return " / ".join(values)


def large_table(frames: float = 10e6) -> list[dict[str, object]]:
    """What a data set of so many frames takes."""
    rows: list[dict[str, object]] = [
        {
            "of 10 million frames": f"{name}, {size / 1e3:.0f} kB each",
            "": f"{frames * size / 1e12:.2f} TB",
        }
        for name, size in SIZES.items()
    ]
    for rate in RATES["b2"][:2]:
        for world in (8, 64):
            hours = frames / (rate.value * world) / 3600
            rows.append(
                {
                    "of 10 million frames": f"an epoch on {world} GPUs of {rate.value:.0f} img/s, nothing waited for",
                    "": f"{hours:.2f} h",
                }
            )
    return rows


def history_table() -> list[dict[str, object]]:
    """The first project's published throughput beside the fitted law."""
    own, shared = shared_cost(FIRST_PROJECT)
    rows: list[dict[str, object]] = []
    for world, rate in FIRST_PROJECT.items():
        law = world / (own + (world - 1) * shared)
        share = rate / world / FIRST_PROJECT[1]
        rows.append(
            {
                "GPUs": world,
                "published img/s": f"{rate:.1f}",
                "efficiency": f"{share:.0%}",
                "law": f"{law:.1f}",
                "off": f"{law / rate - 1:+.1%}",
            }
        )
    return rows


def _at(load: Load, rate: Rate) -> Load:
    return replace(load, rate=rate.value, batch=rate.batch or load.batch)


def tables(variants: Iterable[str] = ("b2", "b5")) -> dict[str, list[dict[str, object]]]:
    """All tables of docs/scaling.md by their names."""
    loads_of = {v: loads(v, RATES[v][0].value, SMALL.decode, SMALL.read) for v in variants}
    return {
        "sent": sent_table(loads_of),
        "nvlink and ndr, ZeRO 1": efficiency_table(loads_of, 1, Cluster()),
        "nvlink and hdr, ZeRO 1": efficiency_table(loads_of, 1, Cluster(between=HDR)),
        "nvlink and hdr, ZeRO 3": efficiency_table(loads_of, 3, Cluster(between=HDR)),
        "feeding": feeding_table(),
        "ten million": large_table(),
        "first project": history_table(),
    }


def main() -> int:
    """Prints every table in Markdown."""
    from spark_seg.benchmark.timing import markdown

    for name, rows in tables().items():
        print(f"<!-- {name} -->")
        print("\n".join(markdown(rows)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
