"""From logits to labels: one resize, at the picture's own size."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F

from spark_seg.models.predict import labels_from_logits

SIZES = [(64, 64), (61, 97), (16, 24), (5, 3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_labels_are_those_of_interpolate_and_argmax(dtype: torch.dtype) -> None:
    logits = torch.randn(len(SIZES), 3, 16, 24, generator=torch.Generator().manual_seed(0)).to(
        dtype
    )
    found = labels_from_logits(logits, SIZES)
    for image, size, labels in zip(logits, SIZES, found, strict=True):
        if dtype is torch.bfloat16:
            image = image.float()
        full = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)
        assert labels.dtype == torch.uint8
        assert labels.shape == size
        assert torch.equal(labels.long(), full.argmax(1)[0])
        assert len(labels.unique()) == 3


def test_lowest_class_wins_a_tie() -> None:
    (labels,) = labels_from_logits(torch.zeros(1, 3, 4, 4), [(8, 8)])
    assert not labels.any()


def test_as_many_sizes_as_images() -> None:
    with pytest.raises(ValueError):
        labels_from_logits(torch.zeros(2, 3, 4, 4), [(8, 8)])


class Keep:
    """A metric that keeps what the loop hands it."""

    def __new__(cls) -> Any:
        from mmengine.evaluator import BaseMetric

        class Kept(BaseMetric):
            def process(self, data_batch: Any, data_samples: Any) -> None:
                self.results += [dict(sample) for sample in data_samples]

            def compute_metrics(self, results: list) -> dict:
                self.kept = results
                return {"n": len(results)}

        return Kept()


@pytest.mark.parametrize("strategy", ["deepspeed", "single"])
def test_loop_resizes_the_heads_logits_once(strategy: str, tmp_path: Path) -> None:
    """Labels of the whole loop equal those from the model's own logits by one interpolation to the file's size."""
    from mmseg.registry import DATASETS, MODELS

    from spark_seg.engine.build import prediction_runner

    tree = tiny.make_tree(tmp_path / "tree", size=72)
    cfg = tiny.tiny_config(tree, tmp_path / "run")
    torch.manual_seed(3)
    model = MODELS.build(cfg.model)
    model.init_weights()
    torch.nn.init.normal_(model.decode_head.conv_seg.weight, std=1.0)
    metric = Keep()
    prediction_runner(
        cfg, model.state_dict(), "memory", cfg.val_dataloader, metric, strategy
    ).test()
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    assert len(metric.kept) == len(dataset) == 6
    model.eval()
    seen = set()
    for sample, item in zip(metric.kept, dataset, strict=True):
        own = item["data_samples"].metainfo["ori_shape"]
        labels = sample["pred_sem_seg"]["data"]
        assert labels.shape == (1, *own)
        assert labels.shape == sample["gt_sem_seg"]["data"].shape
        batch = model.data_preprocessor(
            {"inputs": [item["inputs"]], "data_samples": [item["data_samples"]]}, False
        )
        with torch.no_grad():
            logits = model(batch["inputs"], batch["data_samples"], mode="tensor")
        assert logits.shape[-2:] == (16, 16)
        full = F.interpolate(logits, size=own, mode="bilinear", align_corners=False)
        assert torch.equal(labels.long(), full.argmax(1))
        seen.add(tuple(own))
    assert seen == {(72, 72), (72, 96)}, "square and non-square pictures"
