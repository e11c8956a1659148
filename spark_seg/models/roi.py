"""Coarse to fine: a segmentor that finds the craft in the shrunken frame and then looks at the frame's own pixels.

The first pass segments the whole frame at a small size; where it sees the craft, the second pass segments a crop of the
frame at native resolution. Both are the same network with the same weights, whose names in a state dict are those of
the plain segmentor: any checkpoint of a variant works in either; or the first pass is another run's network
(`spark_seg.models.finder`). Windows are chosen by `spark_seg.windows`.

Shapes: B frames, C classes, H and W of a frame, n of the first pass' picture, s of a crop.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spark_seg import compat

compat.install()  # mmseg.models does not import with mmcv-lite otherwise

from mmengine.structures import PixelData  # noqa: E402
from mmseg.models.segmentors import EncoderDecoder  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402

from spark_seg.datasets.transforms.geometry import resize_image  # noqa: E402
from spark_seg.errors import UserError  # noqa: E402
from spark_seg.models.finder import Finder  # noqa: E402
from spark_seg.models.predict import labels_from_logits  # noqa: E402
from spark_seg.models.tta import Tta, labels_from_probabilities, mean_probabilities  # noqa: E402
from spark_seg.windows import (  # noqa: E402
    Place,
    Window,
    fallback_window,
    find_place,
    make_rule,
    place_window,
    whole_frame,
)

Forward = Callable[[Tensor], Tensor]
_AT_ONCE = 32 * 512 * 512  # pixels of a forward pass of crops


@MODELS.register_module()
class RoiEncoderDecoder(EncoderDecoder):
    """mmseg's `EncoderDecoder` in two passes, by one set of weights or two.

    In training a sample of `RandomRoi` and `PackRoiInputs` is two: the loss is `1 - mix` times that of the crops
    (`inputs`, `gt_sem_seg`) plus `mix` times that of the shrunken frames (`coarse` of the data samples). In
    prediction (`predict_frames`) `inputs` are shrunken frames and the data samples hold the frames themselves, as
    `ShrinkFrame` and `PackRoiInputs` make them. `forward(..., mode="tensor")` is the plain network.

    Args:
        size: The config's `image_size`: the largest crop's side.
        roi: Its group `roi`; see `spark_seg.windows.make_rule`.
        boxes: A JSON file of known boxes by sample id, `{"Soho/val/image_00001": [x0, y0, x1, y1]}` in the frame's
            pixels, ends exclusive, or null for none: to be used instead of what the first pass sees, which is computed
            all the same. For measurements: what a perfect first pass would give, or what crops of given sizes cost.
        finder: The folder of a finished run whose network predicts in place of this one in first passes, or None. It
            is neither trained nor saved with this one.
        **kwargs: As of `EncoderDecoder`.

    Attributes:
        rule: The `RoiRule`.
        tally: How often each kind of second pass came, since `told`.

    Raises:
        UserError: `roi`, the file of boxes or the finder make no sense.
    """

    def __init__(
        self,
        size: int,
        roi: Mapping[str, Any],
        boxes: str | None = None,
        finder: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rule = make_rule(size, roi)
        self.boxes = None if boxes is None else _read_boxes(boxes)
        self.finder = None if finder is None else Finder(finder, self)
        self.tally: Counter[str] = Counter()

    def loss(self, inputs: Tensor, data_samples: list[SegDataSample]) -> dict[str, Tensor]:
        """See the class: crops [B, 3, s, s] and their samples -> mmseg's dict of losses."""
        mix = self.rule.mix
        total: dict[str, Tensor] = {}
        if mix < 1:
            total = _weighted(super().loss(inputs, data_samples), 1 - mix)
        if mix > 0:
            frames = self.normalised([sample.coarse.image for sample in data_samples])
            samples = [_labelled(sample.coarse.labels) for sample in data_samples]
            for name, value in _weighted(super().loss(frames, samples), mix).items():
                total[name] = total[name] + value if name in total else value
        return total

    def normalised(self, images: Sequence[Tensor]) -> Tensor:
        """uint8 [3, h, w] each, of one size, BGR -> the network's input [N, 3, h, w] on the model's device."""
        return self.data_preprocessor({"inputs": list(images)}, False)["inputs"]

    def predict(
        self, inputs: Tensor, data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """mmseg's interface: the samples with `pred_sem_seg`, uint8 labels [1, H, W] at the frame's own size."""
        if not data_samples:
            raise ValueError("two passes need the frames: data_samples as PackRoiInputs packs them")
        found, _ = self.predict_frames(
            self._forward, inputs, data_samples, coarse_forward=self.finder
        )
        for sample, labels in zip(data_samples, found, strict=True):
            sample.pred_sem_seg = PixelData(data=labels[None])
        return data_samples

    def predict_frames(
        self,
        forward: Forward,
        coarse: Tensor,
        samples: Sequence[SegDataSample],
        tta: Tta | None = None,
        want_logits: bool = False,
        coarse_forward: Forward | None = None,
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        """Labels of whole frames by two passes.

        A crop's logits are resized once, bilinearly, to the window's own pixels, and the largest is the label, as for
        whole frames (`labels_from_logits`); the labels are put where the window lies. All else is background.

        Args:
            forward: The network as the run computes it: normalised pictures [N, 3, h, w] -> logits [N, C, h', w'].
            coarse: Normalised shrunken frames [B, 3, n, n].
            samples: Their data samples with `frame`. Each gets the metainfo `roi`: why, and the `Window`.
            tta: Test-time augmentation: both passes average over its views.
            want_logits: Also make logits.
            coarse_forward: `forward` for first passes, where that is the finder's. None: `forward`.

        Returns:
            For each frame uint8 labels [H, W]; and, if wanted, logits [C, H // 4, W // 4] at the centres of a grid:
            the second pass' in its window, the first pass' elsewhere (with `tta` logarithms of probabilities).
        """
        frames = [self._frame(sample) for sample in samples]
        sizes = [(frame.shape[1], frame.shape[2]) for frame in frames]
        logits = self._first_pass(coarse_forward or forward, coarse, tta)
        craft = 1 - logits.softmax(1)[:, 0]
        places = self.locate(craft.cpu().numpy(), sizes, samples)
        windows = [self._window(place, *size) for place, size in zip(places, sizes, strict=True)]
        labels = [torch.zeros(size, dtype=torch.uint8, device=coarse.device) for size in sizes]
        full = None
        if want_logits:
            full = [
                _sampled(one, whole_frame(*size, 1), size)
                for one, size in zip(logits, sizes, strict=True)
            ]
        for which in _batches(windows):
            crops = self.normalised([cut_planes(frames[i], windows[i]) for i in which])
            sides = [(windows[i].side, windows[i].side) for i in which]
            if tta is None:
                found: Any = forward(crops)
                parts = labels_from_logits(found, sides)
            else:
                probs = mean_probabilities(forward, crops, sides, tta)
                parts = [labels_from_probabilities(p) for p in probs]
                found = [_log(p) for p in probs]
            for i, part, one in zip(which, parts, found, strict=True):
                paste(labels[i], part, windows[i])
                if full is not None:
                    _sampled(one.float(), windows[i], sizes[i], full[i])
        for sample, place, window in zip(samples, places, windows, strict=True):
            sample.set_metainfo({"roi": (place.reason, window)})
            self.tally[f"{window.size} px" if place.box else place.reason] += 1
        return labels, full

    def locate(
        self, craft: np.ndarray, sizes: Sequence[tuple[int, int]], samples: Sequence[SegDataSample]
    ) -> list[Place]:
        """Where each frame's craft is: probabilities float32 [B, n', n'] of the first pass, sizes (H, W) -> places.

        Raises:
            UserError: `boxes` were given and lack a sample.
        """
        if self.boxes is None:
            return [
                find_place(one, *size, self.rule) for one, size in zip(craft, sizes, strict=True)
            ]
        places = []
        for sample in samples:
            name = str(sample.metainfo.get("sample_id"))
            if name not in self.boxes:
                raise UserError(f"boxes: none for {name!r}")
            box = self.boxes[name]
            places.append(Place(None, "nothing") if box is None else Place(box, "found"))
        return places

    def told(self) -> str:
        """A line about the second passes since the last call."""
        tally, self.tally = self.tally, Counter()
        crops = ", ".join(f"{tally[k]} of {k}" for k in sorted(tally) if k.endswith(" px"))
        wholes = {k: n for k, n in sorted(tally.items()) if not k.endswith(" px")}
        whys = "".join(f", {n} {why}" for why, n in wholes.items())
        return f"second pass: crops {crops or 'none'}; {sum(wholes.values())} whole frames{whys}"

    def _frame(self, sample: SegDataSample) -> Tensor:
        if "frame" not in sample:
            raise UserError(
                "the two passes need the frame itself: val_pipeline and test_pipeline must have ShrinkFrame and end in "
                "PackRoiInputs, as configs/segformer_b2_spark_roi.py"
            )
        return sample.frame.image

    def _first_pass(self, forward: Forward, coarse: Tensor, tta: Tta | None) -> Tensor:
        """Logits fp32 [B, C, n', n']; with `tta` logarithms of the mean probabilities, at [n, n]."""
        if tta is None:
            return forward(coarse).float()
        size = coarse.shape[2], coarse.shape[3]
        return torch.stack(
            [_log(p) for p in mean_probabilities(forward, coarse, [size] * len(coarse), tta)]
        ).float()

    def _window(self, place: Place, height: int, width: int) -> Window:
        if place.box is None:
            return fallback_window(height, width, self.rule.fallback)
        return place_window(place.box, height, width, self.rule)


def cut_planes(frame: Tensor, window: Window) -> Tensor:
    """A window of a frame uint8 [3, H, W] as uint8 [3, s, s], on its device; black beyond the frame.

    As `spark_seg.datasets.transforms.roi.cut`: pixels are copied, or averaged over areas where the window is shrunk
    (on a GPU by two matrix products, within a grey level of OpenCV's).
    """
    height, width = frame.shape[1:]
    part = frame[(slice(None), *window.inside(height, width))]
    pad = window.padding(height, width)
    if any(pad):
        part = F.pad(part, pad)
    if window.size == window.side:
        return part
    if frame.device.type == "cpu":
        planes = [resize_image(p, window.size, window.size) for p in part.numpy()]
        return torch.from_numpy(np.stack(planes))
    weights = area_weights(window.side, window.size, frame.device)
    return (weights @ part.float() @ weights.T).round_().clamp_(0, 255).to(torch.uint8)


def area_weights(old: int, new: int, device: torch.device | None = None) -> Tensor:
    """What each of `old` pixels in a row adds to each of `new` <= `old`: shares of areas, float32 [new, old]."""
    ends = torch.arange(new + 1, dtype=torch.float64, device=device) * (old / new)
    pixel = torch.arange(old, dtype=torch.float64, device=device)
    low = torch.maximum(ends[:-1, None], pixel)
    high = torch.minimum(ends[1:, None], pixel + 1)
    return ((high - low).clamp_min(0) * (new / old)).float()


def paste(labels: Tensor, part: Tensor, window: Window) -> None:
    """Puts a window's labels [side, side] into a frame's [H, W], in place; padding is left out."""
    rows, columns = window.inside(*labels.shape)
    labels[rows, columns] = part[
        rows.start - window.y : rows.stop - window.y,
        columns.start - window.x : columns.stop - window.x,
    ]


def _sampled(
    logits: Tensor, window: Window, size: tuple[int, int], grid: Tensor | None = None
) -> Tensor:
    """A window's logits [C, h, w] at a quarter of the frame's resolution, at the pixels that calibration compares with.

    Args:
        logits: Of the window.
        window: Where they lie.
        size: (H, W) of the frame.
        grid: [C, H // 4, W // 4] to fill the window's part of; None: a new one, which the window must cover.
    """
    rows, columns = (max(1, length // 4) for length in size)
    if grid is None:
        grid = logits.new_zeros(len(logits), rows, columns)
    places, kept = [], []
    for count, length, start in ((rows, size[0], window.y), (columns, size[1], window.x)):
        place = (torch.arange(count, device=logits.device) * 2 + 1) * length // (2 * count) - start
        inside = (place >= 0) & (place < window.side)
        places.append((2 * place[inside] + 1) / window.side - 1)
        kept.append(inside.nonzero().flatten())
    if 0 in (len(kept[0]), len(kept[1])):
        return grid
    y, x = torch.meshgrid(*places, indexing="ij")
    at = torch.stack([x, y], -1)[None].to(logits.dtype)
    # bilinear between pixel centres, borders repeated: what resizing to the window's pixels gives there
    found = F.grid_sample(logits[None], at, "bilinear", "border", align_corners=False)[0]
    grid[:, kept[0][:, None], kept[1]] = found
    return grid


def _batches(windows: Sequence[Window]) -> list[list[int]]:
    """Windows that go through the network together: of one size, in parts of at most so many pixels."""
    by_size: dict[int, list[int]] = {}
    for index, window in enumerate(windows):
        by_size.setdefault(window.size, []).append(index)
    parts = []
    for size, which in by_size.items():
        step = max(1, _AT_ONCE // size**2)
        parts += [which[start : start + step] for start in range(0, len(which), step)]
    return parts


def _log(probs: Tensor) -> Tensor:
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()


def _weighted(losses: Mapping[str, Tensor], weight: float) -> dict[str, Tensor]:
    return {name: value * weight for name, value in losses.items()}


def _labelled(labels: Tensor) -> SegDataSample:
    return SegDataSample(gt_sem_seg=PixelData(data=labels.long()))


def _read_boxes(path: str) -> dict[str, tuple[float, float, float, float] | None]:
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
        return {
            str(name): None
            if box is None
            else (box[0] + 0.0, box[1] + 0.0, box[2] + 0.0, box[3] + 0.0)
            for name, box in given.items()
        }
    except FileNotFoundError:
        raise UserError(f"boxes: there is no file {path}") from None
    except (OSError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise UserError(
            f"boxes: {path} is no JSON object of sample ids and boxes [x0, y0, x1, y1] ({error})"
        ) from error
