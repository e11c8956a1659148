"""Two passes through the whole house: training, its validation, test and infer, under both strategies."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from spark_seg.cli.export import main as export_main
from spark_seg.config import load_config
from spark_seg.errors import UserError

CONFIG = "segformer_b0_spark_roi.py"
SMALL = {**{k.replace(".", "__"): v for k, v in tiny.SMALL_MODEL.items()}, "roi__least_margin": 4}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tree(tmp_path_factory.mktemp("data") / "tree", size=96)


def config(tree: Path, work_dir: Path, **options: Any) -> Any:
    return tiny.tiny_config(tree, work_dir, CONFIG, **{**SMALL, **options})


def trained(cfg: Any, strategy: str) -> tuple[Any, Path]:
    """The last validation's counts, and the checkpoint it was of."""
    from spark_seg.engine.build import training_runner

    runner = training_runner(cfg, strategy)
    runner.train()
    metric = runner.val_loop.evaluator.metrics[0]
    assert metric.counts is not None
    return metric.counts, Path(cfg.work_dir) / "checkpoints" / "last"


@pytest.mark.parametrize("strategy", ["deepspeed", "single"])
@pytest.mark.parametrize("batch", [1, 3])
def test_validation_in_training_equals_test(
    tree: Path, tmp_path: Path, strategy: str, batch: int, capfd: pytest.CaptureFixture[str]
) -> None:
    from spark_seg.evaluation.run import evaluate
    from spark_seg.evaluation.table import metrics_of

    cfg = config(tree, tmp_path, lr=5e-3, epochs=3, val_batch_size=batch)
    in_training, checkpoint = trained(copy.deepcopy(cfg), strategy)
    later = evaluate(cfg, checkpoint, strategy=strategy, resamples=0)
    assert np.array_equal(later.confusion, in_training.confusion)
    assert later.counts.ids.tolist() == in_training.ids.tolist()
    # a prediction's frozen weights round otherwise, which calibration alone sees
    wanted = metrics_of(in_training)
    assert {k: v for k, v in later.metrics.items() if "NLL" not in k and "ECE" not in k} == {
        k: wanted[k] for k in later.metrics if "NLL" not in k and "ECE" not in k
    }
    assert later.metrics == pytest.approx(wanted, abs=1e-6)
    assert "second pass: crops " in capfd.readouterr().err


def test_infer_writes_what_the_two_passes_say(tree: Path, tmp_path: Path) -> None:
    """The zip's labels are those of a plain loop over the test images; with tta too; interrupted runs know the rule."""
    import zipfile

    import torch
    from mmseg.registry import DATASETS, MODELS

    from spark_seg.models.tta import make_tta
    from spark_seg.submission.members import unpack
    from spark_seg.submission.run import infer

    cfg = config(tree, tmp_path / "run", accelerate=False)
    torch.manual_seed(1)
    model: Any = MODELS.build(cfg.model)
    model.init_weights()
    torch.nn.init.normal_(model.decode_head.conv_seg.weight, std=1.0)
    model.eval()
    weights = tmp_path / "weights.pth"
    torch.save(model.state_dict(), weights)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    for tta in (None, 2):
        cfg.tta = tta
        writer = infer(cfg, weights, tmp_path / f"out{tta}", strategy="single")
        with zipfile.ZipFile(writer.zip_path) as archive:
            names = archive.namelist()
            assert len(names) == len(dataset) == 3
            for name, item in zip(names, dataset, strict=True):
                data = model.data_preprocessor(
                    {"inputs": [item["inputs"]], "data_samples": [item["data_samples"]]}, False
                )
                with torch.no_grad():
                    (labels,), _ = model.predict_frames(
                        lambda x: model(x, mode="tensor"),
                        data["inputs"],
                        data["data_samples"],
                        make_tta(tta),
                    )
                written = unpack(archive.read(name), name)
                expected = np.stack([labels == 1, 0 * labels > 0, labels == 2], -1)
                assert np.array_equal(written, expected), name
                assert expected.any()


def test_resuming_knows_the_rule(tree: Path, tmp_path: Path) -> None:
    """What an interrupted inference is known by holds all of `roi`."""
    from spark_seg.submission.run import model_options

    one = model_options(config(tree, tmp_path), {})
    other = model_options(config(tree, tmp_path, roi__margin=0.2), {})
    texts = [json.dumps(o, default=str, sort_keys=True) for o in (one, other)]
    assert texts[0] != texts[1]
    assert texts[0] == texts[1].replace('"margin": 0.2', '"margin": 0.15')
    boxes, digests = tmp_path / "boxes.json", set()
    for text in ("{}", '{"a": null}'):
        boxes.write_text(text)
        digests.add(model_options(config(tree, tmp_path, model__boxes=str(boxes)), {})["boxes"])
    assert len(digests) == 2, "boxes that were edited are others"


def test_a_plain_checkpoint_serves(tree: Path, tmp_path: Path) -> None:
    """Trained on whole frames, evaluated in two passes, and the other way round."""
    from spark_seg.evaluation.run import evaluate

    small = {k.replace(".", "__"): v for k, v in tiny.SMALL_MODEL.items()}
    plain = tiny.tiny_config(tree, tmp_path / "plain", epochs=1, **small)
    _, checkpoint = trained(copy.deepcopy(plain), "single")
    roi = config(tree, tmp_path / "roi", epochs=1)
    assert len(evaluate(roi, checkpoint, strategy="single", resamples=0).counts) == 6
    assert len(evaluate(plain, checkpoint, strategy="single", resamples=0).counts) == 6


def test_export_is_refused_in_one_line(tree: Path, tmp_path: Path) -> None:
    from spark_seg.export.run import load_segmentor

    cfg = config(tree, tmp_path)
    with pytest.raises(UserError, match=r"no single graph .* segformer_b0_spark.py"):
        load_segmentor(cfg, tmp_path / "any.pth", "onnxruntime", "fp32")
    weights = tmp_path / "any.pth"
    weights.touch()
    options = tiny.command_options(tree)
    with pytest.raises(UserError, match="no single graph") as caught:
        export_main(
            [
                CONFIG,
                str(weights),
                "--out",
                str(tmp_path / "out"),
                "--work-dir",
                str(tmp_path),
                *options,
            ]
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (CONFIG, {"roi.margn": 0.1}, "roi takes no 'margn'; did you mean 'margin'"),
        (CONFIG, {"roi.mix": 2}, "roi.mix=2: give a number from 0 to 1"),
        (CONFIG, {"roi.coarse": 0}, "roi.coarse=0"),
        (CONFIG, {"roi.crops": [0.5]}, "the largest of them 1.0"),
        (CONFIG, {"compile": True}, "compile with roi"),
        ("segformer_b0_spark.py", {"roi": {"mix": 0.5}}, "start from segformer_b2_spark_roi.py"),
    ],
)
def test_bad_values_in_one_line(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(name, options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pipeline_without_frames_is_told(tree: Path, tmp_path: Path) -> None:
    from spark_seg.evaluation.run import evaluate

    cfg = config(tree, tmp_path, epochs=1)
    _, checkpoint = trained(copy.deepcopy(cfg), "single")
    cfg.val_dataloader.dataset.pipeline[-1] = dict(type="PackSegInputs")
    with pytest.raises(UserError, match="must have ShrinkFrame and end in PackRoiInputs"):
        evaluate(cfg, checkpoint, strategy="single", resamples=0)


def test_multi_scale_sets_the_crops_size(tree: Path, tmp_path: Path) -> None:
    cfg = config(tree, tmp_path, epochs=1, multi_scale=[32, 64])
    counts, _ = trained(cfg, "single")
    assert len(counts) == 6
