"""A training's choices: each one value, worked into the parts; a slip is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from spark_seg.config import load_config
from spark_seg.errors import UserError


def load(**options: Any) -> Any:
    return load_config("segformer_b2_spark", options)


def test_none_leaves_the_config_as_it_was() -> None:
    names = (
        "head loss class_weights schedule optimizer layer_decay head_lr drop_path patience multi_scale sampling tta"
    ).split()
    cfg = load()
    assert all(cfg[name] is None for name in names)
    assert cfg.model.decode_head.type == "SegformerHead"
    assert cfg.model.decode_head.loss_decode == dict(
        type="CrossEntropyDiceLoss", ce_weight=0.5, dice_weight=0.5
    )
    assert cfg.optim_wrapper.optimizer.type == "AdamW"
    assert cfg.param_scheduler[0].type == "WarmupCosineLR"
    assert cfg.train_dataloader.sampler.type == "ResumableSampler"


def test_losses() -> None:
    decode = load(loss="focal").model.decode_head.loss_decode
    assert decode == dict(type="SoftmaxFocalLoss")
    decode = load(loss="ce_dice+0.5*boundary+2*ce").model.decode_head.loss_decode
    assert decode.type == "LossSum"
    boundary, dice = dict(type="DistanceBoundaryLoss", loss_weight=0.5), decode.losses[0]
    assert decode.losses[1] == boundary
    assert (dice.ce_weight, dice.dice_weight) == (0.5, 0.5)
    assert (decode.losses[2].ce_weight, decode.losses[2].dice_weight) == (2, 0)
    decode = load(loss=dict(type="OhemLoss", threshold=0.6)).model.decode_head.loss_decode
    assert decode == dict(type="OhemLoss", threshold=0.6)
    decode = load(loss=["ce", dict(type="TverskyRegionLoss")]).model.decode_head.loss_decode
    assert [part.type for part in decode.losses] == ["CrossEntropyDiceLoss", "TverskyRegionLoss"]


def test_class_weights() -> None:
    decode = load(class_weights=[1, 2, 3]).model.decode_head.loss_decode
    assert decode.class_weight == [1, 2, 3]
    decode = load(
        loss="focal+boundary", class_weights="median_frequency"
    ).model.decode_head.loss_decode
    assert decode.losses[0].class_weight == "computed"
    assert "class_weight" not in decode.losses[1]


def test_optimizer_and_schedule() -> None:
    cfg = load(optimizer="SGD", schedule="poly", lr=0.01)
    assert cfg.optim_wrapper.optimizer == dict(type="SGD", lr=0.01, weight_decay=0.01, momentum=0.9)
    assert cfg.param_scheduler[0].type == "WarmupPolyLR"
    assert cfg.param_scheduler[0].warmup_epochs == cfg.warmup_epochs
    cfg = load(optimizer=dict(type="Adam", eps=1e-6), schedule=dict(type="step", gamma=0.5))
    assert cfg.optim_wrapper.optimizer.eps == 1e-6
    assert tuple(cfg.optim_wrapper.optimizer.betas) == tuple(cfg.betas)
    assert (cfg.param_scheduler[0].type, cfg.param_scheduler[0].gamma) == ("WarmupStepLR", 0.5)


def test_a_group_may_hold_what_stands_beside_it() -> None:
    """A rate of its own, a short name with options, a name in place of a group and the other way round."""
    cfg = load(
        optimizer=dict(type="SGD", lr=0.02, weight_decay=0.1), loss=dict(type="focal", gamma=3)
    )
    assert cfg.optim_wrapper.optimizer == dict(type="SGD", lr=0.02, weight_decay=0.1, momentum=0.9)
    assert cfg.model.decode_head.loss_decode == dict(type="SoftmaxFocalLoss", gamma=3)
    demo = load_config("segformer_b0_spark_demo", {"optimizer": "AdamW"})
    assert demo.optim_wrapper.optimizer.type == "AdamW"
    assert "ns_steps" not in demo.optim_wrapper.optimizer
    cfg = load(**{"drop_path": 0.2, "model.backbone.drop_path_rate": 0.2, "mosaic": 0.3})
    assert cfg.model.backbone.drop_path_rate == 0.2
    cfg = load(head=dict(type="mmseg", channels=128))  # as a checkpoint's message has it
    assert (cfg.model.decode_head.type, cfg.model.decode_head.channels) == ("SegformerHead", 128)


def test_a_choice_may_add_to_a_group_that_was_given() -> None:
    """Only what it undoes is told."""
    assert [h.type for h in load(custom_hooks=[], patience=5).custom_hooks] == ["PatienceHook"]
    loss = dict(type="CrossEntropyDiceLoss", ce_weight=1.0, dice_weight=0.0)
    cfg = load(**{"model.decode_head.loss_decode": loss, "class_weights": [1, 2, 3]})
    assert cfg.model.decode_head.loss_decode.class_weight == [1, 2, 3]
    cfg = load(
        **{"optim_wrapper.paramwise_cfg": dict(norm_decay_mult=0.0), "layer_decay": 0.8},
    )
    assert cfg.optim_wrapper.paramwise_cfg.layer_decay == 0.8
    with pytest.raises(UserError, match="has no effect beside loss='ce'"):
        load(**{"model.decode_head.loss_decode": loss | dict(dice_weight=1.0), "loss": "ce"})


def test_scales_are_at_most_the_windows() -> None:
    """Also where the window is the pipeline's own."""
    with pytest.raises(UserError, match="multi_scale: 384 is above crop_size=96"):
        load_config("segformer_b0_spark_demo", {"multi_scale": [96, 384]})
    assert load_config("segformer_b0_spark_demo", {"multi_scale": [64, 96]}).multi_scale == [64, 96]


def test_head_and_the_rest() -> None:
    cfg = load(
        head="paper", drop_path=0.3, patience=4, multi_scale=[256, 512], sampling=["small", "panel"]
    )
    assert (cfg.model.decode_head.type, cfg.model.decode_head.channels) == (
        "PaperSegformerHead",
        768,
    )
    assert cfg.model.backbone.drop_path_rate == 0.3
    hooks = {hook.type: hook for hook in cfg.custom_hooks}
    assert (hooks["PatienceHook"].patience, hooks["PatienceHook"].metric) == (4, cfg.save_best)
    assert hooks["MultiScaleHook"].sizes == [256, 512]
    assert cfg.train_dataloader.sampler.by == ["small", "panel"]
    cfg = load_config("segformer_b0_spark", {"head": "paper"})
    assert cfg.model.decode_head.channels == 256


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(loss="focl"), "loss: no 'focl'.*did you mean 'focal'"),
        (dict(loss="ce+lovas"), "did you mean 'lovasz'"),
        (dict(loss="ce+1e*dice"), "no number"),
        (dict(loss=3), "give a name"),
        (dict(loss=dict(type="OhemLoss", treshold=1)), "did you mean 'threshold'"),
        (dict(class_weights=[1, 2]), "2 values, but num_classes is 3"),
        (dict(class_weights="median_freq"), "did you mean 'median_frequency'"),
        (dict(class_weights=[1, 2, 3], loss="dice"), "takes none"),
        (dict(schedule="cosin"), "did you mean 'cosine'"),
        (dict(schedule=dict(type="poly", pover=1)), "did you mean 'power'"),
        (dict(optimizer="AdamV"), "did you mean 'Adam' or 'AdamW'"),
        (dict(optimizer=dict(type="SGD", betas=[0.9, 0.9])), "takes no argument 'betas'"),
        (dict(head="papr"), "did you mean 'paper'"),
        (dict(layer_decay=1.5), "layer_decay must be"),
        (dict(head_lr=0), "head_lr must be"),
        (dict(drop_path=1), "drop_path must be"),
        (dict(patience=0), "patience must be"),
        (dict(multi_scale=[400]), "multiples of 32"),
        (dict(multi_scale=[512, 1024]), "above image_size=512"),
        (dict(sampling="smal"), "did you mean 'small'"),
        (dict(tta=3), "views=3"),
        (dict(patiance=3), "did you mean 'patience'"),
        (dict(loss=dict(gamma=2)), "give its type"),
        (dict(loss=dict(type="focal", gama=3)), "did you mean 'gamma'"),
        (dict(loss=dict(type="SoftmaxFocalLoss", alpha="x")), "loss: "),
        (dict(loss="-1*ce"), "loss: "),
        (dict(class_weights=dict(type="median_frequency", cap="5")), "class_weights"),
        (dict(multi_scale=dict(sizes=512)), "multi_scale"),
        (dict(sampling=dict(by=3)), "sampling: no 3"),
        (dict(sampling=dict(by="small", share="3%")), "share='3%' must be a number"),
        (dict(patience=dict(patience=3, min_delta="x")), "patience"),
        (dict(schedule=dict(type="step", milestones=0.5)), "schedule: "),
        (dict(schedule=dict(type="poly", by_epoch=False)), "schedule"),
        (dict(loss=dict(type="FocalLoss", use_sigmoid=False)), "loss: "),
        (dict(schedule=dict(type="poly", power=0)), "power=0 must be above 0"),
        (
            {"optimizer": "SGD", "optim_wrapper.optimizer.weight_decay": 0.3},
            r"optim_wrapper.optimizer.weight_decay=0.3 has no effect beside optimizer='SGD', which sets it",
        ),
        (
            {"drop_path": 0.2, "model.backbone.drop_path_rate": 0.5},
            r"has no effect beside drop_path=0\.2",
        ),
        (
            {"head": "paper", "model.decode_head.type": "SegformerHead"},
            "has no effect beside head='paper'",
        ),
    ],
)  # fmt: skip
def test_a_slip_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load(**options)
    assert "\n" not in str(caught.value)


def test_class_weights_come_from_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spark_seg.datasets import mask_counts
    from spark_seg.models.losses_weights import class_weights
    from spark_seg.recipe import from_data

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(mask_counts, "_known", {})
    tree = tiny.make_tree(tmp_path / "tree", train=2, val=1, size=64)
    cfg = tiny.tiny_config(tree, tmp_path, loss="ce", class_weights="effective_number")
    from_data(cfg)
    (counts,) = mask_counts._known.values()
    assert counts.shape == (4, 3)
    found = cfg.model.decode_head.loss_decode.class_weight
    assert found == class_weights(counts, "effective_number")
    assert found[0] < found[1]
    assert np.isfinite(found).all()


def test_counting_takes_the_cache_and_may_skip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks come from the label cache; one that cannot be read ends the training unless such are skipped."""
    from spark_seg.datasets import mask_counts
    from spark_seg.recipe import from_data

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(mask_counts, "_known", {})
    tree = tiny.make_tree(tmp_path / "tree", train=2, val=1, size=64)
    options: dict[str, Any] = dict(loss="ce", class_weights="effective_number")
    from_data(tiny.tiny_config(tree, tmp_path, cache="labels", **options))
    ((key, whole),) = mask_counts._known.items()
    assert mask_counts._file(key).is_file()
    mask_counts._known.clear()
    mask_counts._file(key).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(mask_counts, "read_mask", None)  # nothing is decoded
        from_data(tiny.tiny_config(tree, tmp_path, cache="labels", **options))
    np.testing.assert_array_equal(mask_counts._known.pop(key), whole)
    mask_counts._file(key).unlink()

    bad = sorted((tree / "mask").glob("*/train/*"))[1]
    bad.write_bytes(bad.read_bytes()[:20])
    with pytest.raises(UserError, match=bad.name):
        from_data(tiny.tiny_config(tree, tmp_path, cache=None, **options))
    from_data(tiny.tiny_config(tree, tmp_path, cache=None, skip_bad_files=True, **options))
    ((key, counts),) = mask_counts._known.items()
    assert not counts[1].any()
    np.testing.assert_array_equal(np.delete(counts, 1, 0), np.delete(whole, 1, 0))
    assert not mask_counts._file(key).exists(), "looked at again when it is mended"
