"""Two passes: labels exact against a plain transcription, pasted to the pixel, the same in batches as alone."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spark_seg.config import load_config
from spark_seg.errors import UserError
from spark_seg.models.tta import Tta
from spark_seg.windows import Window

ROI = {"crops": [0.5, 1.0], "coarse": 0.5, "least_margin": 4, "margin": 0.1}
SIZE = 128
# mean grey of the normalised classes: dark background, middle body, bright panel
GREYS = (20, 120, 220)


def build(**options: Any) -> Any:
    from mmseg.registry import MODELS

    given = {f"roi.{key}": value for key, value in {**ROI, **options}.items()}
    given |= {"model.backbone.embed_dims": 8, "model.backbone.num_layers": [1, 1, 1, 1]}
    given |= {"model.decode_head.in_channels": [8, 16, 40, 64], "model.decode_head.channels": 16}
    cfg = load_config(
        "segformer_b0_spark_roi.py", {"pretrained": None, "image_size": SIZE, **given}
    )
    torch.manual_seed(0)
    return MODELS.build(cfg.model).eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return build()


def oracle(x: Tensor) -> Tensor:
    """A network whose logits are known: of the mean grey of each 4 x 4 pixels, with a stride of 4."""
    grey = F.avg_pool2d(x, 4).mean(1, keepdim=True) * 57.3 + 114.5
    return torch.cat([-((grey - level) ** 2) / 200 for level in GREYS], 1)


def draw(height: int, width: int, *boxes: tuple[int, int, int, int]) -> np.ndarray:
    """A frame uint8 [3, H, W] with a craft in each box (x, y, w, h): a disc with a bright half."""
    rng = np.random.default_rng(1)
    img = rng.normal(20, 4, (height, width)).clip(0, 255)
    for x, y, w, h in boxes:
        shape = np.zeros((height, width), np.uint8)
        cv2.ellipse(shape, (x + w // 2, y + h // 2), (w // 2, h // 2), 0, 0, 360, 1, -1)
        img[shape > 0] = 120
        shape[:, : x + w // 2] = 0
        img[shape > 0] = 220
    return np.repeat(img.astype(np.uint8)[None], 3, 0)


def samples_of(model: Any, *frames: np.ndarray) -> tuple[Tensor, list[Any]]:
    from spark_seg.datasets.transforms.roi import PackRoiInputs, ShrinkFrame

    shrink = ShrinkFrame(SIZE, ROI)
    packed = []
    for number, planes in enumerate(frames):
        img = np.ascontiguousarray(planes.transpose(1, 2, 0))
        info = {"img": img, "ori_shape": img.shape[:2], "sample_id": f"frame_{number}"}
        packed.append(PackRoiInputs(("ori_shape", "sample_id")).transform(shrink.transform(info)))
    return model.normalised([p["inputs"] for p in packed]), [p["data_samples"] for p in packed]


def by_hand(model: Any, planes: np.ndarray, window: Window, forward: Any = oracle) -> np.ndarray:
    """One frame's labels, plainly: the window out of a sea of black, shrunk, resized back, cut, pasted."""
    _, height, width = planes.shape
    sea = np.zeros((height + 2000, width + 2000, 3), np.uint8)
    sea[1000:-1000, 1000:-1000] = planes.transpose(1, 2, 0)
    part = sea[1000 + window.y :, 1000 + window.x :][: window.side, : window.side]
    part = cv2.resize(part, (window.size, window.size), interpolation=cv2.INTER_AREA)
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    x = torch.from_numpy(((part[..., ::-1] - np.array(mean)) / std).astype(np.float32))
    with torch.no_grad():
        logits = forward(x.permute(2, 0, 1)[None].contiguous())
    full = F.interpolate(logits, (window.side,) * 2, mode="bilinear", align_corners=False)
    sea_labels = np.zeros(sea.shape[:2], np.uint8)
    y, x0 = 1000 + window.y, 1000 + window.x
    sea_labels[y : y + window.side, x0 : x0 + window.side] = full.argmax(1)[0].numpy()
    return sea_labels[1000:-1000, 1000:-1000]


FRAMES = {
    "small": (draw(512, 512, (196, 260, 26, 24)), "found", 64),
    "middle": (draw(512, 512, (30, 300, 80, 60)), "found", 128),
    "at a corner": (draw(512, 512, (470, 470, 60, 60)), "found", 64),
    "large, shrunk": (draw(512, 512, (60, 90, 300, 250)), "found", 128),
    "wide frame": (draw(240, 400, (100, 90, 60, 50)), "found", 128),
    "tall frame": (draw(500, 330, (100, 390, 40, 44)), "found", 128),
    "frame smaller than the crop": (draw(100, 90, (20, 20, 50, 40)), "found", 64),
    "frame smaller than the least crop": (draw(50, 40, (10, 10, 24, 24)), "found", 64),
    "nothing": (draw(512, 512), "nothing", 128),
    "two places": (draw(512, 512, (40, 40, 60, 60), (400, 400, 60, 60)), "two places", 128),
    "two places in a small frame": (
        draw(100, 90, (2, 2, 16, 16), (66, 70, 20, 20)),
        "two places",
        128,
    ),
    "wide, nothing": (draw(200, 600), "nothing", 128),
}


@pytest.mark.parametrize("name", FRAMES)
def test_labels_are_the_oracles_pixel_for_pixel(model: Any, name: str) -> None:
    planes, reason, size = FRAMES[name]
    coarse, samples = samples_of(model, planes)
    (labels,), logits = model.predict_frames(oracle, coarse, samples)
    why, window = samples[0].metainfo["roi"]
    assert (why, window.size) == (reason, size)
    assert labels.dtype == torch.uint8
    assert logits is None
    assert np.array_equal(labels.numpy(), by_hand(model, planes, window))
    if reason == "found":
        assert len(labels.unique()) == 3
    if reason == "nothing":
        assert not labels.any()


def test_pasted_to_the_pixel(model: Any) -> None:
    """Away from the window's border labels are those of the whole frame at native resolution: no shift anywhere."""
    planes = draw(512, 512, (200, 260, 50, 30))
    coarse, samples = samples_of(model, planes)
    (labels,), _ = model.predict_frames(oracle, coarse, samples)
    _, window = samples[0].metainfo["roi"]
    assert (window.x % 4, window.y % 4) == (0, 0), "else the network's stride falls on other pixels"
    whole = by_hand(model, planes, Window(0, 0, 512, 512))
    assert np.array_equal(labels.numpy(), whole)
    assert (whole > 0).sum() > 500


def test_batch_equals_one_by_one(model: Any) -> None:
    """Of all sizes together, through the network itself beside the oracle."""
    frames = [planes for planes, *_ in FRAMES.values()]
    for forward in (oracle, lambda x: model(x, mode="tensor")):
        with torch.no_grad():
            coarse, samples = samples_of(model, *frames)
            together, _ = model.predict_frames(forward, coarse, samples)
            for planes, labels, sample in zip(frames, together, samples, strict=True):
                one, (alone,) = samples_of(model, planes)
                found, _ = model.predict_frames(forward, one, [alone])
                assert sample.metainfo["roi"] == alone.metainfo["roi"]
                # kernels for batches may round the network's logits otherwise; the oracle has none
                same = (found[0] == labels).float().mean()
                assert same == 1 if forward is oracle else same > 0.9999


def test_crops_go_through_the_network_in_batches_of_one_size(model: Any) -> None:
    shapes: list[tuple[int, ...]] = []

    def watched(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return oracle(x)

    names = ("small", "middle", "at a corner", "nothing", "tall frame")
    coarse, samples = samples_of(model, *(FRAMES[name][0] for name in names))
    model.predict_frames(watched, coarse, samples)
    assert shapes == [(5, 3, 64, 64), (2, 3, 64, 64), (3, 3, 128, 128)]


def test_an_unsure_first_pass_looks_at_the_whole_frame(model: Any) -> None:
    def faint(x: Tensor) -> Tensor:
        logits = oracle(x)
        if x.shape[2] == 64:  # probabilities of craft are 0.27 in the sky, 0.45 on the craft
            logits = logits.clamp_min(-0.5)
            logits[:, 0] += 1.17
        return logits

    coarse, samples = samples_of(model, FRAMES["middle"][0])
    (labels,), _ = model.predict_frames(faint, coarse, samples)
    reason, window = samples[0].metainfo["roi"]
    assert (reason, window) == ("unsure", Window(0, 0, 512, 128))
    assert np.array_equal(labels.numpy(), by_hand(model, FRAMES["middle"][0], window))


def test_fallback_of_another_size() -> None:
    model = build(fallback=2.0)
    planes = FRAMES["two places"][0]
    coarse, samples = samples_of(model, planes)
    (labels,), _ = model.predict_frames(oracle, coarse, samples)
    assert samples[0].metainfo["roi"] == ("two places", Window(0, 0, 512, 256))
    assert np.array_equal(labels.numpy(), by_hand(model, planes, Window(0, 0, 512, 256)))
    assert set(np.unique(labels.numpy()[:150, :150])) == {0, 1, 2}
    assert set(np.unique(labels.numpy()[350:, 350:])) == {0, 1, 2}


def test_a_broken_network_finds_nothing(model: Any) -> None:
    coarse, samples = samples_of(model, FRAMES["middle"][0])
    (labels,), _ = model.predict_frames(lambda x: oracle(x) * torch.nan, coarse, samples)
    assert samples[0].metainfo["roi"][0] == "nothing"
    assert labels.shape == (512, 512)


@pytest.mark.parametrize("name", ["small", "large, shrunk", "tall frame", "nothing"])
def test_augmented_both_passes(model: Any, name: str) -> None:
    """The oracle sees a mirrored picture as the mirrored one: views agree, and their mean is one view's."""
    planes, reason, _ = FRAMES[name]
    counts: list[int] = []

    def watched(x: Tensor) -> Tensor:
        counts.append(len(x))
        return oracle(x)

    coarse, samples = samples_of(model, planes)
    (labels,), logits = model.predict_frames(watched, coarse, samples, Tta(8), want_logits=True)
    assert counts == [8, 8], "both passes average over the views"
    assert samples[0].metainfo["roi"][0] == reason
    window = samples[0].metainfo["roi"][1]
    same = labels.numpy() == by_hand(model, planes, window)
    assert same.mean() > 0.9995, "up to ties of rounding"
    assert logits is not None
    total = logits[0].exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-4, atol=1e-4)


def test_logits_for_calibration_are_the_labels_own(model: Any) -> None:
    """At the pixels that calibration compares with the truth the largest logit is the label (in the window)."""
    from spark_seg.evaluation.calibration import sample_truth

    for planes, *_ in FRAMES.values():
        coarse, samples = samples_of(model, planes)
        (labels,), logits = model.predict_frames(oracle, coarse, samples, want_logits=True)
        assert logits is not None
        (grid,) = logits
        height, width = labels.shape
        assert grid.shape == (3, height // 4, width // 4)
        inside = torch.zeros(height, width, dtype=torch.bool)
        inside[samples[0].metainfo["roi"][1].inside(height, width)] = True
        size = grid.shape[1], grid.shape[2]
        kept = sample_truth(inside, size)
        agree = grid.argmax(0)[kept] == sample_truth(labels, size)[kept]
        assert agree.float().mean() > 0.999, "up to rounding"


def test_known_boxes(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"frame_0": [100, 100, 130, 120], "frame_1": None}))
    model = build()
    model.boxes = type(model)(SIZE, ROI, boxes=str(path), **plain(model)).boxes
    planes = FRAMES["middle"][0]
    coarse, samples = samples_of(model, planes, planes)
    model.predict_frames(oracle, coarse, samples)
    assert [s.metainfo["roi"] for s in samples] == [
        ("found", Window(83, 78, 64, 64)),
        ("nothing", Window(0, 0, 512, 128)),
    ]
    coarse, samples = samples_of(model, planes, planes, planes)
    with pytest.raises(UserError, match="boxes: none for 'frame_2'"):
        model.predict_frames(oracle, coarse, samples)


def plain(model: Any) -> dict[str, Any]:
    cfg = load_config("segformer_b0_spark.py", {"pretrained": None}).model
    return {key: value for key, value in cfg.items() if key != "type"}


@pytest.mark.parametrize("text", ["[1]", "nonsense", '{"a": [1, 2, 3]}', '{"a": ["x", 1, 2, 3]}'])
def test_bad_boxes_in_one_line(text: str, tmp_path: Path, model: Any) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(text)
    with pytest.raises(UserError, match="is no JSON object of sample ids"):
        type(model)(SIZE, ROI, boxes=str(path), **plain(model))
    with pytest.raises(UserError, match="there is no file"):
        type(model)(SIZE, ROI, boxes=str(tmp_path / "none.json"), **plain(model))


def test_what_it_tells(model: Any) -> None:
    model.told()
    names = ("small", "middle", "at a corner", "nothing", "two places")
    coarse, samples = samples_of(model, *(FRAMES[name][0] for name in names))
    model.predict_frames(oracle, coarse, samples)
    assert model.told() == (
        "second pass: crops 1 of 128 px, 2 of 64 px; 2 whole frames, 1 nothing, 1 two places"
    )
    assert model.told() == "second pass: crops none; 0 whole frames"


def test_shrinking_on_a_device_is_opencvs() -> None:
    """The matrix products that stand in for OpenCV on a GPU, computed on the CPU."""
    from spark_seg.models.roi import area_weights

    image = np.random.default_rng(0).integers(0, 256, (300, 300), np.uint8)
    for new in (299, 192, 150, 64):
        weights = area_weights(300, new)
        torch.testing.assert_close(weights.sum(1), torch.ones(new))
        mine = (weights @ torch.from_numpy(image).float() @ weights.T).round().numpy()
        theirs = cv2.resize(image, (new, new), interpolation=cv2.INTER_AREA).astype(float)
        assert np.abs(mine - theirs).max() <= 1


def test_plain_weights_fit(model: Any) -> None:
    """One set of weights: names and shapes are the plain segmentor's, and one pass computes what that computes."""
    from mmengine.config import ConfigDict
    from mmseg.models.segmentors import EncoderDecoder

    cfg = ConfigDict(plain(model))
    cfg.backbone.update(embed_dims=8, num_layers=[1, 1, 1, 1])
    cfg.decode_head.update(in_channels=[8, 16, 40, 64], channels=16)
    other = EncoderDecoder(**cfg).eval()
    assert list(other.state_dict()) == list(model.state_dict())
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(other(x), model(x, mode="tensor"))


def test_the_loss_is_the_mix_of_both() -> None:
    """Loss and gradients equal the plain segmentor's on crops and on frames, weighted."""
    from mmengine.structures import PixelData
    from mmseg.models.segmentors import EncoderDecoder
    from mmseg.structures import SegDataSample

    generator = torch.Generator().manual_seed(0)
    crops = torch.randn(2, 3, 128, 128, generator=generator)
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8)

    def labels(side: int) -> Tensor:
        return torch.randint(0, 3, (1, side, side), generator=generator)

    samples, frames = [], []
    for image in images:
        sample = SegDataSample(gt_sem_seg=PixelData(data=labels(128)))
        sample.coarse = PixelData(image=image, labels=labels(64).to(torch.uint8))
        frames.append(SegDataSample(gt_sem_seg=PixelData(data=sample.coarse.labels.long())))
        samples.append(sample)
    for mix in (0.0, 0.25, 1.0):
        model = build(mix=mix)  # in eval mode: no dropout's draws
        losses = model.loss(crops, samples)
        wanted: dict[str, Any] = {}
        plainly = [
            (1 - mix, EncoderDecoder.loss(model, crops, samples)),
            (mix, EncoderDecoder.loss(model, model.normalised(list(images)), frames)),
        ]
        for weight, part in plainly:
            for name, value in part.items():
                wanted[name] = wanted.get(name, 0) + weight * value
        assert set(losses) == set(wanted)
        for name, value in losses.items():
            torch.testing.assert_close(value, wanted[name])
        assert losses["decode.loss_ce"].requires_grad


def test_without_frames_it_says_what_is_missing(model: Any) -> None:
    from mmseg.structures import SegDataSample

    with pytest.raises(UserError, match="must have ShrinkFrame and end in PackRoiInputs"):
        model.predict_frames(oracle, torch.zeros(1, 3, 64, 64), [SegDataSample()])
    with pytest.raises(ValueError, match="two passes need the frames"):
        model.predict(torch.zeros(1, 3, 64, 64))
    coarse, samples = samples_of(model, FRAMES["small"][0])
    with torch.no_grad():
        (sample,) = model(coarse, samples, mode="predict")
    assert sample.pred_sem_seg.data.shape == (1, 512, 512)
