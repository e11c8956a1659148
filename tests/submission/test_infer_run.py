"""A whole inference: what its resumption depends on, and another segmentor in the model's place."""

import itertools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F

from spark_seg.errors import UserError
from spark_seg.submission.run import ahead, infer


class Bright:
    """A network of one rule: bright is body, blue is panel; logits at a quarter of the size."""

    identity = "bright"
    streams = 1

    def __call__(self, inputs: Any) -> torch.Tensor:
        batch = torch.stack(list(inputs)).float()
        small = F.avg_pool2d(batch, 4)
        bright, blue = small.mean(1), small[:, 0] - small[:, 2]
        return torch.stack([torch.full_like(bright, 100), bright, blue * 3], 1)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: Any) -> Path:
    return tiny.make_tree(tmp_path_factory.mktemp("tree"), train=1, val=1, test=5)


def read(path: Path) -> dict[str, np.ndarray]:
    import io
    import zipfile

    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        return {name: np.load(io.BytesIO(archive.read(name)))["data"] for name in names}


@pytest.mark.parametrize("batch", [1, 2])
def test_a_segmentor_takes_the_models_place(tree: Path, tmp_path: Path, batch: int) -> None:
    cfg = tiny.tiny_config(tree, tmp_path / "run", val_batch_size=batch)
    writer = infer(cfg, None, tmp_path / "out", segmentor=Bright())
    assert writer.report is not None
    assert writer.report.ok
    found = read(writer.zip_path)
    assert [a.shape for a in found.values()] == [(96, 128, 3), *[(96, 96, 3)] * 4]
    from mmseg.registry import DATASETS

    for item, array in zip(
        DATASETS.build(cfg.test_dataloader.dataset), found.values(), strict=True
    ):
        logits = Bright()([item["inputs"]])
        size = item["data_samples"].ori_shape
        labels = F.interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1)[0]
        np.testing.assert_array_equal(array[..., 0], labels == 1)
        np.testing.assert_array_equal(array[..., 2], labels == 2)
        assert array[..., 0].any()
        assert array[..., 2].any()


class Meets(Bright):
    """Lets no batch go before another one is in here with it; those that came later are done first."""

    streams = 2

    def __init__(self) -> None:
        self.gate = threading.Barrier(2)
        self.begun = itertools.count()

    def __call__(self, inputs: Any) -> torch.Tensor:
        number = next(self.begun)
        self.gate.wait(30)
        time.sleep(0.02 * (number % 2 == 0))
        return super().__call__(inputs)


def test_batches_that_are_predicted_at_a_time_keep_their_names(tmp_path: Path) -> None:
    tree = tiny.make_tree(tmp_path / "tree", train=1, val=1, test=6)
    cfg = tiny.tiny_config(tree, tmp_path / "run")
    one = infer(cfg, None, tmp_path / "one", segmentor=Bright()).zip_path.read_bytes()
    assert infer(cfg, None, tmp_path / "two", segmentor=Meets()).zip_path.read_bytes() == one


def test_what_is_asked_for_ahead_comes_in_order_and_ends_with_the_first_error() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 5:
            raise UserError("five")
        time.sleep(0.001 * (item % 3))
        return item * item

    with ThreadPoolExecutor(3) as pool:
        assert list(ahead(pool, work, range(5), 4)) == [0, 1, 4, 9, 16]
        begun.clear()
        found: list[int] = []
        with pytest.raises(UserError, match="five"):
            found.extend(ahead(pool, work, range(100), 4))
    assert len(begun) <= 12


class Stops(Bright):
    """Breaks off after some images."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, inputs: Any) -> torch.Tensor:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return super().__call__(inputs)


def interrupted(cfg: Any, out: Path, after: int = 3) -> None:
    with pytest.raises(KeyboardInterrupt):
        infer(cfg, None, out, segmentor=Stops(after))
    assert json.loads((out / "submission_state.json").read_text())["key"]
    assert not list(out.rglob("*.tmp"))


def test_interrupted_goes_on_and_comes_to_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    cfg = tiny.tiny_config(tree, tmp_path / "run")
    whole = infer(cfg, None, tmp_path / "one", segmentor=Bright()).zip_path.read_bytes()
    interrupted(cfg, tmp_path / "two")
    second = infer(cfg, None, tmp_path / "two", segmentor=Stops(2))  # no more than what is left
    assert second.resumed == 3
    assert second.zip_path.read_bytes() == whole


def test_a_mistake_leaves_what_an_interrupted_run_left(
    tree: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Weights of another model, or the wrong way of starting: told before anything is cleared away."""
    from spark_seg.engine import launch
    from spark_seg.engine.checkpoints import save_safetensors

    cfg = tiny.tiny_config(tree, tmp_path / "run")
    out, weights = tmp_path / "out", tmp_path / "other.safetensors"
    interrupted(cfg, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert len(before) == 1 + 3
    save_safetensors({"backbone.weight": torch.ones(2)}, weights)
    with pytest.raises(UserError, match=r"other\.safetensors"):
        infer(cfg, weights, out, strategy="single")
    two = launch.ProcessEnvironment(rank=0, world_size=2)
    monkeypatch.setattr(launch, "this_process", lambda: two)
    with pytest.raises(UserError, match="in one process and 2 were started"):
        infer(cfg, weights, out, strategy="single")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


class Other(Bright):
    identity = "other"


@pytest.mark.parametrize("change", [{"val_batch_size": 2}, {"image_size": 96}, Other()])
def test_what_changes_the_result_starts_afresh(
    tree: Path, tmp_path: Path, capsys: Any, change: Any
) -> None:
    interrupted(tiny.tiny_config(tree, tmp_path / "run"), tmp_path / "out")
    given = {} if isinstance(change, Bright) else change
    segmentor = change if isinstance(change, Bright) else Bright()
    cfg = tiny.tiny_config(tree, tmp_path / "run", **given)
    capsys.readouterr()
    assert infer(cfg, None, tmp_path / "out", segmentor=segmentor).resumed == 0
    assert "starting afresh" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"), [("accelerate", False), ("precision", "bf16"), ("allow_tf32", True)]
)
def test_the_models_own_options_count(tree: Path, tmp_path: Path, key: str, value: Any) -> None:
    from spark_seg.submission.run import model_options

    weights = {"w": torch.ones(2)}
    cfg = tiny.tiny_config(tree, tmp_path / "run")
    other = tiny.tiny_config(tree, tmp_path / "run", **{key: value})
    assert model_options(cfg, weights) == model_options(cfg, weights)
    assert model_options(cfg, weights) != model_options(other, weights)


def test_a_segmentor_runs_in_one_process(tree: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from spark_seg.engine.launch import ProcessEnvironment

    two = ProcessEnvironment(rank=0, world_size=2)
    monkeypatch.setattr("spark_seg.submission.run.this_process", lambda: two)
    with pytest.raises(UserError, match="in one process"):
        infer(tiny.tiny_config(tree, tmp_path / "run"), None, tmp_path, segmentor=Bright())
