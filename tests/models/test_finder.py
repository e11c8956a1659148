"""Two sets of weights: another run's network makes the first pass."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from spark_seg.errors import UserError

SMALL = {k.replace(".", "__"): v for k, v in tiny.SMALL_MODEL.items()}
MEAN, STD = [36.0, 40.0, 44.0], [30.0, 32.0, 34.0]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tree(tmp_path_factory.mktemp("data") / "tree", size=96)


def run_folder(path: Path, tree: Path, **options: Any) -> Any:
    """What a finished run leaves, with random weights that tell classes apart; its network."""
    from mmseg.registry import MODELS

    from spark_seg.engine.checkpoints import save_safetensors

    cfg = tiny.tiny_config(tree, path, **{**SMALL, **options})
    torch.manual_seed(5)
    network: Any = MODELS.build(cfg.model)
    network.init_weights()
    torch.nn.init.normal_(network.decode_head.conv_seg.weight, std=1.0)
    (path / "checkpoints").mkdir(parents=True)
    save_safetensors(network.state_dict(), path / "checkpoints" / "best.safetensors")
    cfg.dump(str(path / "config.py"))
    return network.eval()


def segmentor(tree: Path, work: Path, **options: Any) -> Any:
    from mmseg.registry import MODELS

    cfg = two_passes(tree, work, **options)
    torch.manual_seed(1)
    model: Any = MODELS.build(cfg.model)
    model.init_weights()
    torch.nn.init.normal_(model.decode_head.conv_seg.weight, std=1.0)
    return model.eval()


def two_passes(tree: Path, work: Path, **options: Any) -> Any:
    given = {**SMALL, "roi__least_margin": 4, **options}
    return tiny.tiny_config(tree, work, "segformer_b0_spark_roi.py", **given)


def test_it_computes_what_the_run_did(tree: Path, tmp_path: Path) -> None:
    """Pictures normalised for the segmentor reach the finder as its own training had them."""
    own = {"model__data_preprocessor__mean": MEAN, "model__data_preprocessor__std": STD}
    network = run_folder(tmp_path / "finder", tree, **own)
    model = segmentor(tree, tmp_path, model__finder=str(tmp_path / "finder"))
    pictures = [torch.randint(0, 256, (3, 48, 48), dtype=torch.uint8) for _ in range(2)]
    with torch.no_grad():
        wanted = network(network.data_preprocessor({"inputs": pictures}, False)["inputs"])
        found = model.finder(model.normalised(pictures))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            again = segmentor(tree, tmp_path, model__finder=str(tmp_path / "finder"))
            close = again.finder(again.normalised(pictures)).float()
    torch.testing.assert_close(close, wanted, rtol=0.1, atol=0.1 * float(wanted.abs().max()))


def test_neither_trained_nor_saved(tree: Path, tmp_path: Path) -> None:
    """Its weights are no part of the segmentor, and a training with it begins with the same weights as one without."""
    run_folder(tmp_path / "finder", tree)
    alone = segmentor(tree, tmp_path)
    model = segmentor(tree, tmp_path, model__finder=str(tmp_path / "finder"))
    assert list(model.state_dict()) == list(alone.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(alone.parameters(), model.parameters(), strict=True)
    )
    copied = copy.deepcopy(model)
    x = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(copied.finder(x), model.finder(x))


def test_validation_equals_test_and_infer_knows_it(tree: Path, tmp_path: Path) -> None:
    """Through training, test and the identity of an interrupted infer; its places decide, not the network's."""
    from spark_seg.engine.build import training_runner
    from spark_seg.evaluation.run import evaluate
    from spark_seg.submission.run import model_options

    run_folder(tmp_path / "finder", tree)
    cfg = two_passes(
        tree, tmp_path / "run", model__finder=str(tmp_path / "finder"), epochs=1, roi__mix=0.0
    )
    runner = training_runner(copy.deepcopy(cfg), "single")
    runner.train()
    counts = runner.val_loop.evaluator.metrics[0].counts
    checkpoint = Path(cfg.work_dir) / "checkpoints" / "last"
    later = evaluate(copy.deepcopy(cfg), checkpoint, strategy="single", resamples=0)
    assert np.array_equal(later.confusion, counts.confusion)
    engine = evaluate(copy.deepcopy(cfg), checkpoint, strategy="deepspeed", resamples=0)
    assert np.array_equal(engine.confusion, counts.confusion)

    alone = two_passes(tree, tmp_path / "run", epochs=1)
    plain = evaluate(alone, checkpoint, strategy="single", resamples=0)
    assert not np.array_equal(plain.confusion, counts.confusion)

    texts = [json.dumps(model_options(c, {}), default=str, sort_keys=True) for c in (cfg, alone)]
    assert texts[0] != texts[1]
    before = texts[0]
    weights = tmp_path / "finder" / "checkpoints" / "best.safetensors"
    from spark_seg.engine.checkpoints import load_state_dict, save_safetensors

    save_safetensors({k: v * 2 for k, v in load_state_dict(weights).items()}, weights)
    assert json.dumps(model_options(cfg, {}), default=str, sort_keys=True) != before


def test_views_are_the_finders_too(tree: Path, tmp_path: Path) -> None:
    """With `tta` the first pass averages the finder's views, not the network's."""
    from spark_seg.models.tta import make_tta

    run_folder(tmp_path / "finder", tree)
    model = segmentor(tree, tmp_path, model__finder=str(tmp_path / "finder"))
    asked: list[int] = []

    def finder(x: torch.Tensor) -> torch.Tensor:
        asked.append(len(x))
        return model.finder(x)

    coarse = torch.randn(2, 3, 32, 32)
    tta = make_tta(4)
    with torch.no_grad():
        plain = model._first_pass(finder, coarse, None)
        several = model._first_pass(finder, coarse, tta)
        own = model._first_pass(model._forward, coarse, tta)
    assert sum(asked) == 2 + 4 * 2
    assert several.shape[1] == plain.shape[1] == 3
    assert not torch.allclose(several, own, atol=0.1)


def test_without_normalisation(tree: Path, tmp_path: Path) -> None:
    bare = {"model__data_preprocessor__mean": None, "model__data_preprocessor__std": None}
    run_folder(tmp_path / "finder", tree, **bare)
    model = segmentor(tree, tmp_path, model__finder=str(tmp_path / "finder"), **bare)
    with torch.no_grad():
        assert model.finder(torch.randn(1, 3, 32, 32)).shape == (1, 3, 8, 8)
    with pytest.raises(
        UserError, match="a preprocessor with mean and std False, the segmentor True"
    ):
        segmentor(tree, tmp_path, model__finder=str(tmp_path / "finder"))
    with pytest.raises(UserError, match="finder=5: give the folder"):
        segmentor(tree, tmp_path, model__finder=5)


def test_what_cannot_be_a_finder_in_one_line(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"finder: .*nowhere.config\.py is not there"):
        segmentor(tree, tmp_path, model__finder=str(tmp_path / "nowhere"))
    run_folder(tmp_path / "two", tree, model__decode_head__num_classes=2)
    with pytest.raises(UserError, match=r"finder: .* has classes 2, the segmentor 3"):
        segmentor(tree, tmp_path, model__finder=str(tmp_path / "two"))
    run_folder(tmp_path / "bgr", tree, model__data_preprocessor__bgr_to_rgb=False)
    with pytest.raises(UserError, match="bgr_to_rgb False, the segmentor True"):
        segmentor(tree, tmp_path, model__finder=str(tmp_path / "bgr"))
    run_folder(tmp_path / "torn", tree)
    (tmp_path / "torn" / "checkpoints" / "best.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"best\.safetensors"):
        segmentor(tree, tmp_path, model__finder=str(tmp_path / "torn"))
