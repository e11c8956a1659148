"""Packing and preprocessing: stock mmseg's batch, in less time."""

import pytest
import torch
from mmengine.dataset import pseudo_collate

import spark_seg.register  # noqa: F401
from spark_seg.datasets.transforms.packing import PackSparkInputs

NORM = {
    "mean": [123.675, 116.28, 103.53],
    "std": [58.395, 57.12, 57.375],
    "pad_val": 0,
    "seg_pad_val": 255,
}


def sample(height=20, width=24, seed=0, labels=True):
    generator = torch.Generator().manual_seed(seed)
    img = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    made = {"img": img.numpy(), "img_path": f"{seed}.jpg", "ori_shape": (40, 48)}
    if labels:
        made["gt_seg_map"] = torch.randint(0, 3, (height, width), dtype=torch.uint8).numpy()
    return made


def batches(samples, options, training):
    from mmseg.datasets.transforms import PackSegInputs
    from mmseg.registry import MODELS

    keys = ("img_path", "ori_shape")
    for pack, kind in (
        (PackSegInputs, "SegDataPreProcessor"),
        (PackSparkInputs, "SparkDataPreProcessor"),
    ):
        packed = pseudo_collate([pack(meta_keys=keys)(dict(s)) for s in samples])
        yield MODELS.build({"type": kind, **NORM, **options})(packed, training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"bgr_to_rgb": True, "size_divisor": 1},
        {"size_divisor": 4},
        {"bgr_to_rgb": True, "size": (20, 24)},
        {"bgr_to_rgb": True, "size_divisor": 32},  # pads: the parent's way
        {"size": (32, 32), "test_cfg": {"size_divisor": 16}},
    ],
)
def test_the_batch_is_stocks(options, training):
    samples = [sample(seed=k) for k in range(3)]
    stock, ours = batches(samples, options, training)
    assert ours["inputs"].dtype == torch.float32
    assert ours["inputs"].is_contiguous()
    assert torch.equal(ours["inputs"], stock["inputs"])
    for a, b in zip(ours["data_samples"], stock["data_samples"], strict=True):
        # stock's are int64; only a loss needs that
        assert a.gt_sem_seg.data.dtype == (torch.int64 if training else torch.uint8)
        assert torch.equal(a.gt_sem_seg.data.long(), b.gt_sem_seg.data)
        assert a.metainfo == b.metainfo


def test_pictures_of_several_sizes_are_padded_as_stocks():
    samples = [sample(20, 24), sample(16, 30, 1)]
    stock, ours = batches(samples, {"size_divisor": 1}, True)
    assert torch.equal(ours["inputs"], stock["inputs"])
    assert [s.pad_shape for s in ours["data_samples"]] == [
        s.pad_shape for s in stock["data_samples"]
    ]


def test_samples_without_labels():
    stock, ours = batches([sample(labels=False)], {"bgr_to_rgb": True, "size_divisor": 1}, False)
    assert torch.equal(ours["inputs"], stock["inputs"])
    assert "gt_sem_seg" not in ours["data_samples"][0]


def test_labels_stay_in_8_bits_until_the_batch():
    packed = PackSparkInputs()(sample())
    assert packed["inputs"].dtype == packed["data_samples"].gt_sem_seg.data.dtype == torch.uint8
    assert packed["inputs"].is_contiguous()
    assert packed["data_samples"].gt_sem_seg.data.shape == (1, 20, 24)
    assert packed["data_samples"].img_path == "0.jpg"


def test_the_state_dict_is_stocks():
    from mmseg.registry import MODELS

    kinds = ("SegDataPreProcessor", "SparkDataPreProcessor")
    assert not [MODELS.build({"type": k, **NORM}).state_dict() for k in kinds][1]
