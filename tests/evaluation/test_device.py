"""What a GPU counts is fetched once a batch: told by the operators, on meta tensors, which need no GPU.

A meta tensor has shape and dtype but no value: whatever asks for one, or mixes it with a tensor of the host, would make
the host wait for the GPU.
"""

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from hard_masks import blobs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spark_seg.evaluation import calibration, device, frame, metric
from spark_seg.evaluation.device import fetch, scattered, tally
from spark_seg.evaluation.frame import CountOptions, count_frame, count_frame_on_device, from_device
from spark_seg.evaluation.metric import SparkMetric

# Operators in which CUDA makes the host wait although all tensors are on the device.
WAITING = {
    "aten::_local_scalar_dense",
    "aten::bincount",
    "aten::equal",
    "aten::is_nonzero",
    "aten::item",
    "aten::masked_select",
    "aten::nonzero",
    "aten::_unique2",
    "aten::unique_dim",
}


class Watch(TorchDispatchMode):
    """Lists the operators that make the host wait for the device, or that mix it with the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name, kwargs or {}
        self.seen += 1
        try:
            result = func(*args, **kwargs)
        except (NotImplementedError, RuntimeError):
            self.found.append(name)  # it wants a value
            raise
        leaves = tree_leaves((args, kwargs, result))
        tensors = [leaf for leaf in leaves if torch.is_tensor(leaf)]
        masks = name in ("aten::index", "aten::index_put", "aten::index_put_") and any(
            leaf.dtype == torch.bool for leaf in tree_leaves(args[1]) if torch.is_tensor(leaf)
        )
        if name in WAITING or masks or any(tensor.device.type == "cpu" for tensor in tensors):
            self.found.append(name)
        return result


def batch(count: int, size: tuple[int, int], grid: tuple[int, int]) -> tuple[Any, list[Any]]:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for index in range(count):
        sample = SegDataSample(metainfo={"sample_id": f"image_{index}", "satellite": "Soho"})
        sample.pred_sem_seg = PixelData(data=torch.zeros(1, *size, dtype=torch.uint8))
        sample.gt_sem_seg = PixelData(data=torch.zeros(1, *size, dtype=torch.int64))
        samples.append(sample)
    return torch.zeros(count, 3, *grid), samples


@pytest.mark.parametrize("details", [True, False])
@pytest.mark.parametrize("grid", [(5, 6), (7, 11)])
def test_a_gpu_is_waited_for_once_a_batch(monkeypatch, details, grid):
    """From logits and labels on the device to counts on the host: one copy, however many images."""
    copies: list[list[int]] = []

    def one_copy(vectors: list[torch.Tensor]) -> list[np.ndarray]:
        if vectors:
            copies.append([vector.numel() for vector in vectors])
            assert {vector.device.type for vector in vectors} == {"meta"}
            torch.cat(vectors)  # the real one does this before it copies
        return [np.zeros(vector.numel(), np.int64) for vector in vectors]

    monkeypatch.setattr(metric, "fetch", one_copy)
    made = SparkMetric(details=details)
    with torch.device("meta"):
        logits, samples = batch(3, (20, 30), grid)
        with Watch() as watch:
            made.observe_logits(logits, samples)
            made.process(None, [sample.to_dict() for sample in samples])
    assert watch.found == []
    assert watch.seen > 100  # the counting went through the watch
    assert len(copies) == 1
    assert len(copies[0]) == 2 * 3  # of each image the counts and the calibration
    assert len(made.results) == 3


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.cpu(),
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: torch.where(x > 0, torch.tensor(3), x),
        lambda x: torch.tensor([2, 3]).to(x.device),
        lambda x: torch.bincount(x.reshape(-1), minlength=4),
        lambda x: x[x > 0],
        lambda x: (x == 1).nonzero(),
    ],
)
def test_the_watch_sees_what_waits(waits):
    x = torch.zeros(4, 5, dtype=torch.int64, device="meta")
    watch = Watch()
    with watch, suppress(NotImplementedError, RuntimeError):
        waits(x)
    assert watch.found


def test_tallies_are_numpys():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 7, (50, 23))
    weights = rng.integers(0, 1 << 40, values.shape)
    given, heavy = torch.from_numpy(values), torch.from_numpy(weights)
    count = np.bincount(values.ravel(), minlength=9)
    total = [int(weights[values == k].sum()) for k in range(9)]
    for way in (tally, scattered):
        for dtype in (torch.uint8, torch.int32, torch.int64):
            found = way(given.to(dtype), 9)
            assert found.dtype == torch.int64
            np.testing.assert_array_equal(found.numpy(), count)
        assert way(given, 9, heavy).tolist() == total
        assert way(given, 9, heavy.double()).tolist() == total
        assert way(given[:0], 9).tolist() == [0] * 9


def test_the_devices_tally_gives_the_same_counts(monkeypatch):
    """The way that only a GPU goes, taken with tensors of the CPU."""
    pred, truth = blobs(np.random.default_rng(3), ignored=True)
    options = CountOptions(boundary_px=(1, 3), band_share=0.05)
    logits = torch.randn(3, 7, 9, generator=torch.Generator().manual_seed(0))
    labels = torch.from_numpy(truth)
    wanted = [part.numpy() for part in calibration.calibration_counts(logits, labels)]
    for module in (device, frame):
        monkeypatch.setattr(module, "tally", scattered)
    for found, expected in zip(calibration.calibration_counts(logits, labels), wanted, strict=True):
        np.testing.assert_array_equal(found.numpy(), expected)
    vector = count_frame_on_device(torch.from_numpy(pred), labels, options)
    found = from_device(vector.numpy(), options)
    expected = count_frame(pred, truth, options)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    alone = count_frame_on_device(torch.from_numpy(pred), labels, options, details=False)
    np.testing.assert_array_equal(from_device(alone.numpy())["confusion"], expected["confusion"])


def test_vectors_of_any_length_come_in_one_copy():
    vectors = [torch.arange(k) for k in (3, 0, 5, 1)]
    for found, vector in zip(fetch(vectors), vectors, strict=True):
        assert found.tolist() == vector.tolist()
    assert fetch([]) == []
