"""The dry run: what a training would be."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import OPTIONS, make_tree

from spark_seg.cli.train import main
from spark_seg.config import load_config
from spark_seg.engine.plan import Plan, make_plan, plan_lines
from spark_seg.errors import UserError

FULL = {"pretrained": None, "accelerate": False}


@pytest.fixture(autouse=True)
def _no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARK_DATA_ROOT", raising=False)


def plan(world_size: int = 1, config: str = "segformer_b0_spark", **options: Any) -> Plan:
    where = {k: options.pop(k) for k in ("gpus_per_node", "strategy") if k in options}
    cfg = load_config(config, {"image_size": 64, **FULL, **options})
    return make_plan(cfg, world_size, **where)


def test_schedule_of_the_full_set() -> None:
    """60 000 frames over 24 GPUs at 8: 2500 each, 312 whole batches, 4 left over on each."""
    found = plan(24)
    assert (found.nodes, found.effective_batch) == (3, 192)
    assert (found.frames, found.padded, found.dropped) == (60000, 0, 96)
    assert (found.steps_per_epoch, found.total_steps, found.warmup_steps) == (312, 31200, 1560)
    assert any("SPARK 2024's own numbers" in note for note in found.notes)
    assert found.precision == "bf16"


def test_padding_and_subsets(tmp_path: Path) -> None:
    found = plan(7, subset=0.001, leave_out="Soho", batch_size=2)  # 54 frames over 7: 8 each
    assert (found.frames, found.padded) == (54, 2)
    assert (found.steps_per_epoch, found.dropped) == (4, 0)
    assert plan(subset=50).frames == 50
    demo = {"data_root": str(tmp_path / "none"), "image_size": 384}
    assert plan(config="segformer_b0_spark_demo", subset=0.1, **demo).frames == 160
    assert plan(config="segformer_b0_spark_demo", leave_out=["Soho"], **demo).frames == 1440


def test_counts_are_those_of_a_training(tmp_path: Path) -> None:
    """Where the data is, the numbers are what the loader and the schedule of a run would have."""
    from mmengine.dataset import DefaultSampler
    from mmseg.registry import DATASETS

    root = make_tree(tmp_path / "tree", train=4)
    cfg = load_config("segformer_b0_spark", {**OPTIONS, **FULL, "data_root": str(root)})
    found = make_plan(cfg, 3)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    sampler = DefaultSampler(dataset)
    assert found.frames == len(dataset) == len(sampler) == 8
    # 8 over 3: 3 each, one seen twice; one batch of 2 each, one frame each left out
    assert (found.padded, found.steps_per_epoch, found.dropped) == (1, 1, 3)
    assert found.frames_from == str(root)
    assert not any("not here" in note for note in found.notes)


def test_accumulation_counts_optimizer_steps() -> None:
    cfg = load_config("segformer_b0_spark", {"image_size": 64, **FULL})
    cfg.strategy.gradient_accumulation_steps = 4
    found = make_plan(cfg, 8)
    assert (found.accumulation, found.effective_batch) == (4, 256)
    assert found.steps_per_epoch == 60000 // 8 // 8 // 4
    assert found.dropped == 60000 - found.steps_per_epoch * 256, "also batches that fill no step"
    assert any("no multiple" in note for note in found.notes)


@pytest.mark.parametrize(("variant", "millions"), [("b0", 3.716), ("b2", 24.724)])
def test_parameters_add_up(variant: str, millions: float) -> None:
    found = plan(config=f"segformer_{variant}_spark")
    assert sum(found.parameters.values()) / 1e6 == pytest.approx(millions, abs=5e-4)
    assert [name for name in found.parameters if name.startswith("backbone")] == [
        f"backbone stage {i}" for i in (1, 2, 3, 4)
    ]


def test_memory_follows_from_counts() -> None:
    found = plan(8, precision="fp32")
    count = sum(found.parameters.values())
    stages = found.stages
    assert [s.stage for s in stages] == [0, 1, 2, 3]
    assert stages[0].gradients == 4 * count
    assert stages[0].optimizer == 8 * count
    for stage in stages[1:]:
        assert stage.optimizer == pytest.approx(count, abs=8)  # 8 bytes over 8 GPUs
    assert stages[2].gradients == pytest.approx(count / 2, abs=8)
    assert stages[3].parameters == pytest.approx(count / 8, abs=1)
    assert stages[0].sent == pytest.approx(2 * 4 * count * 7 / 8, abs=8)
    assert (
        stages[1].sent == stages[2].sent == stages[0].sent
    )  # reduce and gather make an all-reduce
    assert stages[3].sent == pytest.approx(1.5 * stages[0].sent, abs=8)
    assert all(s.sent == 0 for s in plan(1).stages)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("AdamW", {}),
        ("AdamW", {"amsgrad": True}),
        ("SGD", {"momentum": 0.9}),
        ("RMSprop", {"centered": True}),
        ("Adagrad", {}),
        ("MuonAdamW", {}),
    ],
)
def test_weights_and_gradients_are_what_torch_allocates(kind: str, options: dict[str, Any]) -> None:
    """The sum for stage 0, held against a model and an optimizer after one step."""
    from mmseg.registry import MODELS

    from spark_seg.engine.muon import MuonAdamW

    given = {"optim_wrapper.optimizer": {"type": kind, "lr": 1e-3, **options}}
    cfg = load_config("segformer_b0_spark", {"image_size": 64, **FULL, **given})
    stages = make_plan(cfg).stages
    assert [s.stage for s in stages] == ([0] if kind == "MuonAdamW" else [0, 1, 2, 3])
    stage = stages[0]
    model = MODELS.build(cfg.model)
    make = MuonAdamW if kind == "MuonAdamW" else getattr(torch.optim, kind)
    optimizer = make(model.parameters(), lr=1e-3, **options)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    held = [*model.parameters(), *model.buffers()]
    assert sum(t.numel() * t.element_size() for t in held) == stage.weights
    moments = [t for s in optimizer.state.values() for t in s.values() if t.ndim]
    # AdamW's step counts are a number for each parameter, in none of the big buffers
    assert sum(t.numel() * 4 for t in moments) == stage.optimizer


def test_activations_follow_batch_and_precision() -> None:
    def activations(**options: Any) -> int:
        return plan(**options).stages[0].activations

    one = activations(batch_size=1, precision="fp32")
    assert activations(batch_size=2, precision="fp32") == pytest.approx(2 * one, rel=0.05)
    assert activations(batch_size=1, image_size=128, precision="fp32") == pytest.approx(
        4 * one, rel=0.05
    )
    large = activations(batch_size=1, image_size=256, precision="fp32")
    # autocast keeps a bf16 copy of each weight beside the smaller maps
    assert 0.4 * large < activations(batch_size=1, image_size=256, precision="bf16") < 0.9 * large
    assert activations(batch_size=1, freeze_backbone=True, precision="fp32") < 0.6 * one


def test_activations_are_those_of_the_windows() -> None:
    """A training of windows keeps what their size asks, not the frame's."""
    small = plan(image_size=64, batch_size=1).stages[0].activations
    assert plan(image_size=128, batch_size=1, crop_size=64).stages[0].activations == small


def test_activations_equal_what_a_real_pass_saves() -> None:
    """The pass without content sees the storages that a computed one keeps."""
    from mmseg.registry import MODELS

    from spark_seg.engine.activations import saved_bytes

    cfg = load_config("segformer_b0_spark", {"image_size": 64, "batch_size": 2, **FULL})
    model = MODELS.build(cfg.model).train()
    loss_maps = 6 * 4 * 2 * 3 * 64 * 64
    before = {k: v.clone() for k, v in model.state_dict().items()}
    estimate = saved_bytes(model, cfg, bf16=False) - loss_maps
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(torch.rand(2, 3, 64, 64))
    assert estimate == pytest.approx(sum(s.nbytes() for s in kept.values()), rel=0.05)


@pytest.mark.parametrize(
    ("world_size", "options", "told"),
    [
        (0, {}, "--world-size must be 1 or more, not 0"),
        (1, {"gpus_per_node": 0}, "--gpus-per-node must be 1 or more"),
        (2, {"strategy": "single"}, "--strategy single runs in one process, not in 2"),
        (20, {}, "20 processes do not fill nodes of 8 GPUs"),
        (8, {"subset": 40}, "batch_size=8 is more than the 5 frames that each of 8"),
        (1, {"subset": "ids.txt"}, "the data is needed for subset='ids.txt'"),
        (1, {"subset": 2.0}, "a share lies above 0"),
        (1, {"subset": 100_000}, "has 60000 frames"),
        (1, {"leave_out": "soho"}, "unknown satellite 'soho'; did you mean 'Soho'"),
    ],
)
def test_refused_with_the_reason(world_size: int, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        plan(world_size, **options)
    assert "\n" not in str(caught.value)


def test_averaged_weights_and_offloading_are_counted() -> None:
    bare, averaged = plan(8), plan(8, ema_decay=0.999)
    weights = 4 * sum(bare.parameters.values())
    for one, other in zip(bare.stages, averaged.stages, strict=True):
        assert other.ema == pytest.approx(weights / (8 if one.stage == 3 else 1), abs=8)
        assert other.total == one.total + other.ema
    moved = plan(8, offload="optimizer", zero_stage=2)
    for one, other in zip(bare.stages, moved.stages, strict=True):
        assert other.total + other.host == one.total, "moved, not lost"
        assert (other.host > 0) == (one.stage > 0)
        if one.stage:  # fp32 copy, gradients, two moments of an eighth
            assert other.host == pytest.approx(4 * weights / 8, abs=32)
    whole = plan(8, offload="optimizer+parameters", zero_stage=3)
    assert whole.stages[3].host == pytest.approx(5 * weights / 8, abs=32)
    lines = plan_lines(plan(8, offload="optimizer", zero_stage=2, ema_decay=0.999))
    assert any("averaged weights (ema_decay)" in line for line in lines)
    assert any("in the CPU's memory (offload)" in line for line in lines)


def test_activation_checkpointing_is_counted() -> None:
    kept = plan(precision="fp32", image_size=128).stages[0].activations
    again = plan(precision="fp32", image_size=128, activation_checkpointing=True).stages[0]
    assert again.activations < 0.6 * kept


def test_single_has_no_stages() -> None:
    assert [s.stage for s in plan(strategy="single").stages] == [0]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints, leaves config and JSON in plan/, and touches nothing else; the merged config can be trained."""
    work = tmp_path / "run"
    (work / "checkpoints").mkdir(parents=True)
    (work / "checkpoints" / "kept").touch()
    args = ["segformer_b2_spark", "--work-dir", str(work), "--cfg-options", "image_size=64"]
    environment, group = dict(os.environ), torch.distributed.is_initialized()
    assert main([*args, "--dry-run", "--world-size", "16", "--gpus-per-node", "4"]) == 0
    out = capsys.readouterr().out
    assert "processes        16 on 4 node(s)" in out
    assert "effective batch  128 (8 per GPU x 16)" in out
    assert "estimate" in out
    assert "  1* " in out
    record = json.loads((work / "plan/plan.json").read_text())
    assert record["world_size"] == 16
    assert len(record["stages"]) == 4
    assert load_config(str(work / "plan/config.py")).image_size == 64
    assert sorted(p.name for p in work.iterdir()) == ["checkpoints", "plan"]
    assert (work / "checkpoints" / "kept").is_file()
    assert torch.distributed.is_initialized() == group, "none was started"
    assert os.environ.get("MASTER_PORT") == environment.get("MASTER_PORT")


def test_demo_data_is_not_rendered_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["segformer_b0_spark_demo", "--dry-run"])
    images = load_config("segformer_b0_spark_demo").demo_data.images
    assert f"training frames  {images} (the demo data's config)" in capsys.readouterr().out
    assert not (tmp_path / "data").exists()


def test_its_options_go_with_it() -> None:
    with pytest.raises(UserError, match="--world-size goes with --dry-run"):
        main(["segformer_b0_spark", "--world-size", "2"])


def test_lines_are_short() -> None:
    lines = plan_lines(plan(24, config="segformer_b5_spark"))
    assert max(len(line) for line in lines if not line.startswith("note")) < 110
