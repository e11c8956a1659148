"""The choices of a training, in trainings: early stopping, several sizes, losses, sampling, norms' eps, averaging."""

import json
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from spark_seg.datasets.layout import list_frames
from spark_seg.engine.hooks.early_stopping import PatienceHook
from spark_seg.engine.hooks.multi_scale import BatchResize, MultiScaleHook
from spark_seg.errors import UserError
from spark_seg.labels import read_mask
from spark_seg.submission.members import unpack


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tree(tmp_path_factory.mktemp("data") / "tree", train=2, val=1, size=64)


# ---------------------------------------------------------------- early stopping


def run_of() -> Any:
    loop = SimpleNamespace(stop_training=False)
    return SimpleNamespace(train_loop=loop, logger=SimpleNamespace(info=lambda line: None), epoch=3)


def play(hook: PatienceHook, scores: list[float]) -> list[bool]:
    runner, stopped = run_of(), []
    for score in scores:
        hook.after_val_epoch(runner, {"spark/score": score})
        stopped.append(runner.train_loop.stop_training)
    return stopped


def test_patience_counts_validations_without_improvement() -> None:
    assert play(PatienceHook(2), [0.1, 0.2, 0.2, 0.3, 0.1, 0.3]) == [False] * 5 + [True]
    assert play(PatienceHook(1), [0.1, 0.1]) == [False, True]
    assert play(PatienceHook(2, min_delta=0.05), [0.1, 0.14, 0.16, 0.2, 0.2]) == [False] * 4 + [
        True
    ]


def test_patience_is_kept_in_checkpoints() -> None:
    whole, first, second = PatienceHook(3), PatienceHook(3), PatienceHook(3)
    scores = [0.3, 0.2, 0.1, 0.1]
    assert play(whole, scores)[-1]
    play(first, scores[:2])
    state = json.loads(json.dumps(first.state(None)))
    second.take_up(run_of(), state)
    assert play(second, scores[2:]) == [False, True]
    done, runner = PatienceHook(3), run_of()
    done.take_up(runner, whole.state(None))
    assert runner.train_loop.stop_training, "a training that had ended does not begin again"
    fresh = PatienceHook(3)
    fresh.take_up(run_of(), {})
    assert (fresh.best, fresh.waited) == (None, 0)


def test_patience_refuses() -> None:
    for given in (0, 1.5, True):
        with pytest.raises(UserError, match="whole number from 1"):
            PatienceHook(given)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="did you mean 'mIoU'"):
        PatienceHook(metric="mIou").after_val_epoch(run_of(), {"mIoU": 1.0})


# ---------------------------------------------------------------- several sizes


def test_sizes_depend_on_seed_and_step_alone() -> None:
    def sides(hook: MultiScaleHook, steps: range, batches: int = 2, seed: int = 0) -> list[int]:
        found = []
        hook._seed = seed
        for step in steps:
            hook.before_train_iter(SimpleNamespace(iter=step), 0)
            found += [hook.draw() for _ in range(batches)]
        return found

    sizes = [64, 96, 128]
    whole = sides(MultiScaleHook(sizes), range(40))
    assert set(whole) == set(sizes)
    assert whole[::2] == whole[1::2], "all micro batches of a step"
    assert whole[20:] == sides(MultiScaleHook(sizes), range(10, 40)), "taken up at step 10"
    assert whole != sides(MultiScaleHook(sizes), range(40), seed=1)
    each = sides(MultiScaleHook(sizes, per="batch"), range(40))
    assert each[::2] != each[1::2]


def test_a_batch_is_resized_with_its_masks() -> None:
    inputs = torch.rand(2, 3, 64, 128)
    masks = torch.randint(0, 3, (2, 1, 64, 128))
    masks[0, 0, :32, :48] = 255
    samples = [
        SimpleNamespace(gt_sem_seg=SimpleNamespace(data=m), set_metainfo=lambda meta: None)
        for m in masks
    ]
    out, got = BatchResize(lambda: 64)(inputs, samples)
    assert out.shape == (2, 3, 32, 64)
    for sample, mask in zip(got, masks, strict=True):
        assert sample.gt_sem_seg.data.dtype == torch.int64
        assert torch.equal(sample.gt_sem_seg.data, mask[:, 1::2, 1::2])
    torch.testing.assert_close(out.mean(), inputs.mean(), atol=1e-2, rtol=0)
    same, _ = BatchResize(lambda: 128)(inputs, samples)
    assert same is inputs


# ---------------------------------------------------------------- in a training


def train(tree: Path, folder: Path, resume: bool = False, **options: Any) -> Any:
    from spark_seg.engine.train import train as run

    return run(tiny.tiny_config(tree, folder, **options), strategy="single", resume=resume)


def test_everything_at_once(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's weights and head, a sum of losses with computed weights, two sizes, weighted sampling, SGD."""
    from mmseg.registry import MODELS

    from spark_seg.engine.checkpoints import load_state_dict, save_safetensors
    from spark_seg.models.convert import from_mmseg, norms_of

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = MODELS.build(tiny.tiny_config(tree, tmp_path, head="paper").model)
    hf = tmp_path / "hf"
    hf.mkdir()
    save_safetensors(from_mmseg(source.state_dict(), "huggingface"), hf / "model.safetensors")
    (hf / "config.json").write_text('{"model_type": "segformer"}')
    seen: list[tuple[int, ...]] = []
    forward = BatchResize.forward

    def watched(self: Any, inputs: Any, samples: Any = None) -> Any:
        out = forward(self, inputs, samples)
        seen.append((*out[0].shape[2:], *samples[0].gt_sem_seg.data.shape[1:]))
        return out

    monkeypatch.setattr(BatchResize, "forward", watched)
    runner = train(
        tree, tmp_path / "run", pretrained=str(hf), head="paper", loss="ce_dice+0.5*boundary+lovasz",
        class_weights="median_frequency", multi_scale=[32, 64], sampling=["satellite", "small"],
        schedule="poly", optimizer="SGD", lr=0.01, layer_decay=0.9, head_lr=2, drop_path=0.0, epochs=6, val_every=6,
    )  # fmt: skip
    assert {s[:2] for s in seen} == {(32, 32), (64, 64)}
    assert all(s[:2] == s[2:] for s in seen)
    model = runner.strategy.module
    assert norms_of(model) == "huggingface"
    assert [part.loss_name for part in model.decode_head.loss_decode] == [
        "loss_ce", "loss_dice", "loss_boundary", "loss_lovasz",
    ]  # fmt: skip
    assert model.decode_head.loss_decode[0].class_weight is not None
    assert len({g["lr"] for g in runner.strategy.optim_wrapper.optimizer.param_groups}) > 5
    # the eps goes along into every file, and from it into a model that is built anew
    for name in ("best.safetensors", "best.pth"):
        weights = load_state_dict(tmp_path / "run" / "checkpoints" / name)
        assert weights.norms == "huggingface"
    from spark_seg.engine.checkpoints import apply_state_dict

    fresh = MODELS.build(tiny.tiny_config(tree, tmp_path, head="paper").model)
    assert norms_of(fresh) == "mmseg"
    apply_state_dict(fresh, weights, "best.pth")
    assert norms_of(fresh) == "huggingface"


def test_patience_ends_a_training_and_a_resumed_one(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spark_seg.evaluation.metric import SparkMetric

    compute = SparkMetric.compute_metrics
    monkeypatch.setattr(
        SparkMetric, "compute_metrics", lambda self, r: compute(self, r) | {"spark/score": 0.1}
    )
    runner = train(tree, tmp_path / "run", epochs=9, patience=2)
    assert runner.epoch == 3
    assert (tmp_path / "run" / "checkpoints" / "best.json").is_file()
    state = json.loads((tmp_path / "run" / "checkpoints" / "last" / "state.json").read_text())
    assert state["epoch"] == 3
    assert state["early_stopping"]["waited"] == 1, "`last` is written before the validation"
    again = train(tree, tmp_path / "run", resume=True, epochs=9, patience=2)
    assert again.epoch == 3


def test_tta_in_test_and_infer(tree: Path, tmp_path: Path) -> None:
    """The evaluation's and the submission's labels are those of the mean over views; None changes nothing."""
    from mmseg.registry import MODELS

    from spark_seg.engine.checkpoints import save_safetensors
    from spark_seg.evaluation.run import evaluate
    from spark_seg.submission.run import infer

    torch.manual_seed(0)
    cfg = tiny.tiny_config(tree, tmp_path)
    model = MODELS.build(cfg.model).eval()
    torch.nn.init.normal_(model.decode_head.conv_seg.weight, std=3.0)
    weights = tmp_path / "w.safetensors"
    save_safetensors(model.state_dict(), weights)
    images, truths = tmp_path / "stream-1-test", []
    images.mkdir()
    for k, frame in enumerate(list_frames(tree, "val")):  # the same frames for both
        shutil.copy(frame.image, images / f"test_{k:05d}_img.jpg")
        truths.append(read_mask(str(frame.mask)))
    found = {}
    for name, tta in (("none", None), ("tta", {"views": 8, "scales": [0.5, 1.0]})):
        cfg = tiny.tiny_config(tree, tmp_path, tta=tta, test_images=str(images))
        result = evaluate(cfg, weights, out=tmp_path / name, overlays=0, strategy="single")
        writer = infer(cfg, weights, out=tmp_path / f"{name}_zip", strategy="single")
        found[name] = (result.counts.confusion, writer.zip_path.read_bytes())
        with zipfile.ZipFile(writer.zip_path) as archive:
            arrays = [unpack(archive.read(member), member) for member in sorted(archive.namelist())]
        answered = [array[..., 0] + 2 * array[..., 2].astype(np.uint8) for array in arrays]
        counted = np.zeros((3, 3), np.int64)
        for truth, labels in zip(truths, answered, strict=True):
            np.add.at(counted, (truth.ravel(), labels.ravel()), 1)
        np.testing.assert_array_equal(counted, result.counts.confusion.sum(0), "as test so infer")
    plain = tiny.tiny_config(tree, tmp_path)
    plain.pop("tta")
    result = evaluate(plain, weights, out=tmp_path / "without", overlays=0, strategy="single")
    assert (result.counts.confusion == found["none"][0]).all()
    assert (found["tta"][0] != found["none"][0]).any()
    assert found["tta"][1] != found["none"][1]
