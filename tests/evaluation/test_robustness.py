"""The validation set under faults: the same forward pass, each frame decoded once, and what is told of it."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from spark_seg.corruptions import corrupt
from spark_seg.errors import UserError
from spark_seg.evaluation.bootstrap import interval, intervals
from spark_seg.evaluation.challenge import ChallengeRule
from spark_seg.evaluation.faults import (
    CLEAN,
    FaultCounts,
    resampled,
    summary,
    table_lines,
    write,
)
from spark_seg.evaluation.table import as_counts


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A config over six val frames, and a model that guesses all three classes."""
    from mmseg.registry import MODELS

    from spark_seg.engine.checkpoints import save_safetensors

    folder = tmp_path_factory.mktemp("faults")
    tree = tiny.make_tree(folder / "tree", size=72)
    cfg = tiny.tiny_config(tree, folder / "run", val_batch_size=2)
    torch.manual_seed(3)
    model = MODELS.build(cfg.model)
    model.init_weights()
    torch.nn.init.normal_(model.decode_head.conv_seg.weight, std=1.0)
    save_safetensors(model.state_dict(), folder / "model.safetensors")
    return cfg, folder / "model.safetensors"


def run(setting: tuple[Any, Path], workers: int = 0, **options: Any) -> FaultCounts:
    from spark_seg.evaluation.robustness import measure

    cfg, checkpoint = setting
    cfg = cfg.copy()
    cfg.val_dataloader.num_workers = workers
    given = {"kinds": ["noise", "glare"], "severities": [1, 5], **options}
    return measure(cfg, checkpoint, strategy="single", **given)


def test_without_a_fault_it_is_the_evaluation(setting: tuple[Any, Path]) -> None:
    from spark_seg.evaluation.run import evaluate

    # Batches of one in both, as sums in a batch may differ in the last bit.
    cfg = setting[0].copy()
    cfg.val_dataloader.batch_size = 1
    found = run((cfg, setting[1]))
    plain = evaluate(cfg, setting[1], strategy="single", resamples=0)
    assert found.kinds.tolist() == [CLEAN, "noise", "noise", "glare", "glare"]
    assert found.severities.tolist() == [0, 1, 5, 1, 5]
    assert found.ids.tolist() == plain.counts.ids.tolist()
    np.testing.assert_array_equal(found.confusion[0], plain.confusion)
    for fault in found.confusion[1:]:
        assert (fault != found.confusion[0]).any()


def test_each_frame_is_decoded_once_and_threads_change_nothing(
    setting: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from spark_seg.datasets.transforms import loading

    opened: Counter[str] = Counter()
    real_image, real_mask = loading.read_image, loading.read_mask

    def image(path: str) -> np.ndarray:
        opened[path] += 1
        return real_image(path)

    def mask(path: str) -> np.ndarray:
        opened[path] += 1
        return real_mask(path)

    monkeypatch.setattr(loading, "read_image", image)
    monkeypatch.setattr(loading, "read_mask", mask)
    alone = run(setting)
    assert len(opened) == 12
    assert set(opened.values()) == {1}
    threaded = run(setting, workers=3)
    np.testing.assert_array_equal(alone.confusion, threaded.confusion)


def test_a_variant_is_the_fault_of_the_frame_at_its_own_size(setting: tuple[Any, Path]) -> None:
    from mmseg.registry import DATASETS

    from spark_seg.datasets.io import read_image
    from spark_seg.datasets.transforms.geometry import resize_image
    from spark_seg.evaluation.robustness import Variants

    dataset = DATASETS.build(setting[0].val_dataloader.dataset)
    found = list(Variants(dataset, [(CLEAN, 0), ("jpeg", 4)], threads=2, ahead=3))
    assert [(v.frame, v.fault) for v in found] == [(f, k) for f in range(6) for k in range(2)]
    info = dataset.get_data_info(2)
    image = corrupt(read_image(info["img_path"]), "jpeg", 4, info["sample_id"])
    expected = resize_image(image, 64, 64).transpose(2, 0, 1)
    np.testing.assert_array_equal(found[5].sample["inputs"].numpy(), expected)
    assert found[5].truth.shape == image.shape[:2]


def test_a_part_of_the_images_is_spread_evenly(setting: tuple[Any, Path]) -> None:
    found = run(setting, images=2, kinds=["bit_depth"], severities=[3])
    assert found.total == 6
    assert found.confusion.shape == (2, 2, 3, 3)
    satellites = {name.split("/")[0] for name in found.ids.tolist()}
    assert satellites == {"Cheops", "XMM Newton"}


def test_a_damaged_frame_is_told_and_threads_end(setting: tuple[Any, Path], tmp_path: Path) -> None:
    cfg = setting[0].copy()
    tree = tiny.copy_tree(Path(cfg.data_root), tmp_path / "tree")
    bad = tree / "images" / "XMM Newton" / "val" / "image_00001_img.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    cfg.val_dataloader.dataset.data_root = str(tree)
    with pytest.raises(UserError, match=r"image_00001_img\.jpg: the file is truncated"):
        run((cfg, setting[1]), workers=2)


def test_another_pipeline_is_told(setting: tuple[Any, Path]) -> None:
    cfg = setting[0].copy()
    cfg.val_dataloader.dataset.pipeline = cfg.val_dataloader.dataset.pipeline[1:]
    with pytest.raises(UserError, match="LoadSparkImage"):
        run((cfg, setting[1]))


def counts(hits: list[list[int]]) -> FaultCounts:
    """Faults clean, noise 1, noise 5, jpeg 1, jpeg 5; two images of 100 px of body with so many found, no panel."""
    stack = np.zeros((len(hits), len(hits[0]), 3, 3), np.int64)
    for fault, row in enumerate(hits):
        for image, hit in enumerate(row):
            stack[fault, image] = [[900, 0, 0], [100 - hit, hit, 0], [0, 0, 0]]
    kinds = np.array([CLEAN, "noise", "noise", "jpeg", "jpeg"][: len(hits)])
    severities = np.array([0, 1, 5, 1, 5][: len(hits)])
    return FaultCounts(np.array(["a", "b"]), kinds, severities, stack, 9)


def test_summary() -> None:
    # Credits: 95 and more earn all ten thresholds, 70 five, 49 none; the panel counts nowhere and gives 0.
    found = summary(counts([[100, 96], [100, 72], [70, 49], [95, 95], [49, 0]]))
    assert found["clean"]["spark/score"] == pytest.approx(0.5)
    noise, jpeg = found["kinds"]["noise"], found["kinds"]["jpeg"]
    assert noise["severities"]["1"]["spark/score"] == pytest.approx(0.5 * 0.75)
    assert noise["severities"]["5"]["spark/score"] == pytest.approx(0.5 * 0.25)
    assert noise["mean"] == pytest.approx(0.25)
    assert noise["worst"] == pytest.approx(0.125)
    assert noise["relative"] == pytest.approx(0.5)
    assert noise["relative_worst"] == pytest.approx(0.25)
    assert jpeg["mean"] == pytest.approx(0.25)
    assert found["mean"] == pytest.approx(0.25)
    assert found["relative"] == pytest.approx(0.5)
    assert found["worst"] == {
        "kind": "jpeg",
        "severity": 5,
        "score": 0.0,
        "relative": 0.0,
        "tied": 1,
    }
    assert (found["images"], found["of"], found["severities"]) == (2, 9, [1, 5])
    text = "\n".join(table_lines(found))
    assert "on 2 of 9 images; clean 50.00" in text
    assert "mean of all  25.00, 50.0 % of clean" in text
    assert "worst        0.00, 0.0 % of clean: JPEG, severity 5" in text


def test_intervals_are_those_of_the_evaluation() -> None:
    rng = np.random.default_rng(0)
    stack = rng.integers(0, 50, (5, 12, 3, 3)) + 80 * np.eye(3, dtype=np.int64)
    stack[:, ::3, 2] = 0  # no panel there
    kinds = np.array([CLEAN, "noise", "noise", "jpeg", "jpeg"])
    made = FaultCounts(np.arange(12).astype(str), kinds, np.array([0, 1, 5, 1, 5]), stack, 12)
    rule = ChallengeRule((0.4, 0.6), panel_share=0.1)
    found = summary(made, rule, resamples=200)
    drawn = resampled(made, rule, 200)
    assert drawn.shape == (5, 200)
    for fault in range(5):
        low, high = intervals(as_counts(stack[fault]), rule, 200)["spark/score"]
        np.testing.assert_allclose(interval(drawn[fault]), (low, high), rtol=0, atol=1e-12)
    assert found["clean_interval"] == list(interval(drawn[0]))
    assert found["kinds"]["jpeg"]["interval"] == pytest.approx(interval(drawn[3:].mean(0)))
    assert found["interval"] == pytest.approx(interval(drawn[1:].mean(0)))
    assert found["interval"][0] < found["mean"] < found["interval"][1]
    text = "\n".join(table_lines(found))
    assert f"95 % {100 * found['interval'][0]:.2f} to {100 * found['interval'][1]:.2f}" in text
    bare = summary(made, rule, resamples=0)
    assert "interval" not in bare
    assert "interval" not in bare["kinds"]["noise"]
    assert "jpeg" in bare["kinds"]
    assert table_lines(bare)


def test_one_counted_panel_that_is_perfect_has_no_uncertainty() -> None:
    stack = np.tile(np.diag([900, 100, 0]), (3, 6, 1, 1))
    stack[:, 0, 2, 2] = 50
    kinds = np.array([CLEAN, "noise", "jpeg"])
    made = FaultCounts(np.arange(6).astype(str), kinds, np.array([0, 1, 1]), stack, 6)
    found = summary(made, resamples=200)
    assert found["clean_interval"] == found["interval"] == [1, 1]
    assert found["kinds"]["jpeg"]["interval"] == [1, 1]
    stack[:, 0, 2, 2] = 0  # no panel anywhere: half the body
    assert summary(made, resamples=200)["interval"] == [0.5, 0.5]


def test_summary_follows_the_rule_and_a_clean_score_of_zero_has_no_relative() -> None:
    found = counts([[60, 60], [60, 0]])
    assert summary(found, ChallengeRule((0.6,)))["clean"]["spark/score"] == 0.5
    lost = summary(found, ChallengeRule((0.7,)))
    assert lost["clean"]["spark/score"] == 0
    assert lost["relative"] is None
    assert lost["worst"]["relative"] is None
    text = "\n".join(table_lines(lost))
    assert "- of clean" not in text
    assert "mean of all  0.00; 95 % 0.00 to 0.00" in text
    assert text.splitlines()[-1].startswith("worst        0.00: ")
    assert text.endswith(", severity 1")


def test_the_worst_of_equals_is_the_severest_and_many_are_counted() -> None:
    two = summary(counts([[100, 100], [70, 70], [70, 70], [95, 95], [95, 95]]))
    assert (two["worst"]["kind"], two["worst"]["severity"]) == ("noise", 5)
    assert two["worst"]["tied"] == 2
    assert ", severity 5" in table_lines(two)[-1]
    many = summary(counts([[100, 100], [0, 0], [0, 0], [95, 95], [0, 0]]))
    assert many["worst"]["severity"] == 5
    assert table_lines(many)[-1] == "worst        0.00, 0.0 % of clean: under 3 faults"


def test_files(tmp_path: Path) -> None:
    made = counts([[100, 96], [100, 72], [70, 49], [95, 95], [49, 0]])
    found = write(tmp_path / "new", made)
    assert json.loads((tmp_path / "new" / "robustness.json").read_text()) == found
    assert (tmp_path / "new" / "robustness.png").read_bytes().startswith(b"\x89PNG")
    again = FaultCounts.load(tmp_path / "new" / "robustness.npz")
    np.testing.assert_array_equal(again.confusion, made.confusion)
    assert (again.kinds.tolist(), again.total) == (made.kinds.tolist(), 9)
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    for name in ("bad.npz", "none.npz"):
        with pytest.raises(UserError, match=name):
            FaultCounts.load(tmp_path / name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--severities", "1"], "goes with --corruptions"),
        (["--corruption-images", "5"], "goes with --corruptions"),
        (["--corruptions", "nois"], "did you mean 'noise'"),
        (["--corruptions", "--severities", "6"], "invalid choice"),
        (["--corruptions", "--corruption-images", "some"], "or 'all'"),
        (["--corruptions", "--corruption-images", "0"], "give a number"),
        (["--report-images", "3"], "goes with --report"),
        (["--report", "--report-images", "-1"], "from 0 up"),
    ],
)
def test_options_are_checked_before_anything_is_loaded(options: list[str], message: str) -> None:
    from spark_seg.cli.test import main

    with pytest.raises(UserError, match=message):
        main(["no_such_config", *options])
