"""Where the time of a way goes: `benchmark.py model --profile` and `train --profile`.

The profiled calls run in the benchmark's own process after the race, with the profiler's cost in them: shares mean more
than milliseconds. On a GPU the kernels' own time counts, on the CPU that of torch's operators without those they call.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_CALLS, _WARM = 5, 3
_SHOWN = 12  # lines of a way
PROFILED = ("stock", "ours", "ours_graphs", "openvino")


def torch_times(call: Callable[[], Any], cuda: bool) -> dict[str, float]:
    """Milliseconds of one call by operator (GPU: kernel)."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    for _ in range(_WARM):
        call()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=kinds) as found:
        for _ in range(_CALLS):
            call()
        if cuda:
            torch.cuda.synchronize()
    times: Counter[str] = Counter()
    for event in found.key_averages():
        on_device = event.device_type != torch.autograd.DeviceType.CPU
        # an operator's device time is that of its kernels, which are events of their own
        if on_device == cuda and not event.key.startswith("ProfilerStep"):
            spent = event.self_device_time_total if cuda else event.self_cpu_time_total
            times[event.key] += spent / 1e3 / _CALLS
    return dict(times)


def openvino_times(variant: str, size: int, batch: int, precision: str) -> dict[str, float]:
    """Milliseconds of one call by type of layer, of our network through OpenVINO on as many threads as torch has."""
    import openvino
    import torch

    from spark_seg.benchmark import contestants
    from spark_seg.export.graph import Graph, to_openvino

    network = to_openvino(Graph(contestants.stock_model(variant).eval(), normalise=False), size)
    network.reshape([batch, 3, size, size])
    options = {
        "PERF_COUNT": "YES",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }
    request = openvino.Core().compile_model(network, "CPU", options).create_infer_request()
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).numpy()
    times: Counter[str] = Counter()
    for turn in range(_WARM + _CALLS):
        request.infer([images])
        for layer in request.get_profiling_info() if turn >= _WARM else ():
            times[layer.node_type] += layer.real_time.total_seconds() * 1e3 / _CALLS
    return dict(times)


def lines(title: str, times: Mapping[str, float]) -> list[str]:
    """A table of the largest shares, the rest in one line."""
    total = sum(times.values())
    if total <= 0:
        return [f"{title}: nothing was recorded"]
    ordered = sorted(times.items(), key=lambda item: -item[1])
    shown, rest = ordered[:_SHOWN], ordered[_SHOWN:]
    found = [f"{title}: {total:.1f} ms", "| what | share | ms |", "|---|---|---|"]
    found += [f"| {name} | {100 * ms / total:.0f} % | {ms:.2f} |" for name, ms in shown]
    left = sum(ms for _, ms in rest)
    return [*found, f"| {len(rest)} others | {100 * left / total:.0f} % | {left:.2f} |", ""]


def show(
    about: Mapping[str, Any],
    ways: Iterable[str],
    make: Callable[..., Callable[[], Any]],
    device: str,
) -> None:
    """Prints the profiles of those of `PROFILED` that took part in a race, each made anew by `make`.

    Args:
        about: `case`, `variant`, `size`, `batch` of the race.
        ways: Who took part.
        make: The benchmark's.
        device: `cpu` or `cuda`.
    """
    variant, case, size, batch = (about[key] for key in ("variant", "case", "size", "batch"))
    for way in ways:
        if way not in PROFILED or (way == "openvino" and case.endswith("int8")):
            print(
                f"{case} {variant} {size}, batch {batch}, {way}: no profile of this way", flush=True
            )
            continue
        if way == "openvino":
            times = openvino_times(variant, size, batch, case.removeprefix("infer_"))
        else:
            call = make(way, variant, case, size, batch, device)
            times = torch_times(call, device == "cuda")
        title = f"{case} {variant} {size}, batch {batch}, {way}"
        print("\n".join(lines(title, times)), flush=True)
