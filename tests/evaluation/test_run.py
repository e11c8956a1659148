"""The whole way: a checkpoint's evaluation, its files, and the same numbers from its zip."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from spark_seg.errors import UserError
from spark_seg.evaluation.compare import load_counts
from spark_seg.evaluation.store import ImageCounts
from spark_seg.evaluation.table import metrics_of
from spark_seg.submission.score import score_zip


def weights(cfg: Any, path: Path) -> Path:
    """A model that guesses, all three classes."""
    from mmseg.registry import MODELS

    import spark_seg.register  # noqa: F401
    from spark_seg.engine.checkpoints import save_safetensors

    torch.manual_seed(3)
    model = MODELS.build(cfg.model)
    model.init_weights()
    torch.nn.init.normal_(model.decode_head.conv_seg.weight, std=1.0)
    save_safetensors(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tree of one satellite's val frames evaluated, and the zip of the same frames."""
    from spark_seg.evaluation.run import evaluate
    from spark_seg.submission.run import infer

    folder = tmp_path_factory.mktemp("whole")
    tree = tiny.make_tree(folder / "tree", size=72)
    (tree / "backgrounds.csv").write_text("id,background\nCheops/val/image_00001,earth\n")
    cfg = tiny.tiny_config(
        tree,
        folder / "run",
        val_dataloader__dataset__leave_out="XMM Newton",
        val_evaluator__bins=10,
        test_images=str(tree / "images" / "Cheops" / "val"),
    )
    checkpoint = weights(cfg, folder / "model.safetensors")
    found = evaluate(cfg, checkpoint, out=folder / "out", strategy="single", resamples=30)
    writer = infer(cfg, checkpoint, folder / "zip", strategy="single")
    return {"found": found, "folder": folder, "tree": tree, "zip": writer.zip_path, "cfg": cfg}


def test_the_zip_has_the_counts_of_the_evaluation(done: dict[str, Any]) -> None:
    evaluated = done["found"].counts
    zipped = score_zip(
        done["zip"], done["tree"] / "mask" / "Cheops" / "val", options=evaluated.options
    )
    assert [f"Cheops/val/{name}" for name in zipped.ids] == evaluated.ids.tolist()
    assert len(zipped) == 3
    for name in ("confusion", "sizes", "boxes", *(n for n in ImageCounts.names() if "bound" in n)):
        np.testing.assert_array_equal(getattr(zipped, name), getattr(evaluated, name))
    shared = metrics_of(zipped)
    assert shared.items() <= done["found"].metrics.items()
    assert set(done["found"].metrics) - set(shared) == {
        f"{kind}{region}" for kind in ("ECE", "NLL") for region in ("", "/foreground", "/predicted")
    }


def test_calibration_is_counted_at_the_logits_own_resolution(done: dict[str, Any]) -> None:
    counts = done["found"].counts
    assert counts.calibrated
    assert counts.calibration.shape == (3, 3, 10, 3)
    assert (counts.calibration[:, 0, :, 0].sum(1) == 16 * 16).all()


def test_files(done: dict[str, Any]) -> None:
    found, out = done["found"], done["folder"] / "out"
    names = {"counts.npz", "metrics.json", "intervals.json", "groups.json", "table.txt"}
    assert {path.name for path in out.iterdir()} == names
    assert json.loads((out / "metrics.json").read_text()) == found.metrics
    counts = load_counts(out)
    assert metrics_of(counts) == found.metrics
    assert counts.backgrounds.tolist() == ["", "earth", ""]
    spans = json.loads((out / "intervals.json").read_text())
    assert spans["spark/score"] == list(found.intervals["spark/score"])
    groups = json.loads((out / "groups.json").read_text())
    assert [one["label"] for one in groups["satellite"]] == ["Cheops"]
    assert [one["images"] for one in groups["background"]] == [1]
    assert (out / "table.txt").read_text().splitlines() == found.table
    assert any(line.startswith("Cheops") for line in found.table)


def test_another_metric_is_refused(done: dict[str, Any]) -> None:
    from spark_seg.evaluation.run import metric_options

    with pytest.raises(UserError, match="val_evaluator"):
        metric_options({"val_evaluator": {"type": "IoUMetric"}})
    assert metric_options(done["cfg"]) == {"bins": 10}
