"""The images that a report shows: chosen from the counts, predicted once more, kept small as JPEG."""

import copy
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from spark_seg.atomic import write_bytes
from spark_seg.errors import UserError
from spark_seg.evaluation.identity import identity_in
from spark_seg.evaluation.npz import DAMAGED, open_npz, reason
from spark_seg.visual import ERROR_COLOURS, error_overlay, overlay

if TYPE_CHECKING:
    import torch
    from mmengine.config import Config

PICTURES_FILE = "pictures.npz"
TILES = ("frame", "image", "truth", "prediction", "errors")
SETS = ("worst", "median", "spread")
SIDE = 300  # pixels of a tile's longer side
_QUALITY = 82
_MARGIN = 0.15  # about the craft, of its box's longer side


@dataclass(frozen=True)
class Picture:
    """One image as five JPEG tiles.

    Attributes:
        id: The sample's.
        sets: Why it was kept; some of `SETS`.
        window: What the last four tiles show of the frame: x0, y0, x1, y1, exclusive.
        size: The frame's height and width.
        tiles: JPEG files in the order of `TILES`.
    """

    id: str
    sets: tuple[str, ...]
    window: tuple[int, int, int, int]
    size: tuple[int, int]
    tiles: tuple[bytes, ...]


def choose(ids: Sequence[str], order: np.ndarray, count: int) -> dict[str, tuple[str, ...]]:
    """Which images to keep.

    Args:
        ids: Of all images.
        order: Their indices from worst to best.
        count: How many of each set.

    Returns:
        id -> sets: `worst`, from the worst on; `median`, around the middle of the order; `spread`, evenly over the
        ids, so that two runs over the same split have them in common.
    """
    total = len(order)
    count = min(count, total)
    start = (total - count) // 2
    by_id = np.argsort(np.asarray(ids))
    evenly = [by_id[(2 * k + 1) * total // (2 * count)] for k in range(count)]
    found: dict[str, tuple[str, ...]] = {}
    parts: tuple[Iterable[int], ...] = order[:count], order[start : start + count], evenly
    for name, which in zip(SETS, parts, strict=True):
        for index in which:
            key = str(ids[index])
            found[key] = (*found.get(key, ()), name)
    return found


def window(truth: np.ndarray, prediction: np.ndarray) -> tuple[int, int, int, int]:
    """A square about the true craft, large enough for what is predicted near it; x0, y0, x1, y1.

    Without a true craft it is about the predicted one, without either the whole frame. Predictions far off are left
    to the picture of the whole frame.
    """
    height, width = truth.shape
    craft = (truth > 0) & (truth != 255)
    if not craft.any():
        craft = prediction > 0
    if not craft.any():
        return 0, 0, width, height
    x, y, w, h = cv2.boundingRect(craft.astype(np.uint8))
    side = min(max(max(w, h) * (1 + 2 * _MARGIN), 48), max(height, width))
    side = int(np.ceil(side))
    x0 = int(np.clip(x + w / 2 - side / 2, 0, max(width - side, 0)))
    y0 = int(np.clip(y + h / 2 - side / 2, 0, max(height - side, 0)))
    return x0, y0, min(x0 + side, width), min(y0 + side, height)


def render(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> tuple[Any, list[bytes]]:
    """The window and the five tiles of an image uint8 [H, W, 3] with labels uint8 [H, W]."""
    x0, y0, x1, y1 = area = window(truth, prediction)
    frame = _sized(image, cv2.INTER_AREA)
    scale = frame.shape[1] / image.shape[1]
    # A false alarm far from the craft would show nowhere else.
    alarm = ((truth == 0) & (prediction > 0)).astype(np.uint8)
    alarm[y0:y1, x0:x1] = 0
    if alarm.any():
        reach = max(1, round(2 / scale))
        wide = cv2.dilate(alarm, np.ones((reach, reach), np.uint8))
        small = cv2.resize(wide, frame.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        frame[small > 0] = ERROR_COLOURS["false alarm"]
    if area != (0, 0, image.shape[1], image.shape[0]):
        corners = [round(v * scale) for v in area]
        ends = corners[:2], [corners[2] - 1, corners[3] - 1]
        cv2.rectangle(frame, *ends, (0, 0, 0), 5)  # seen on white clouds too
        cv2.rectangle(frame, *ends, (255, 255, 255), 2)
    cut = np.s_[y0:y1, x0:x1]
    grows = max(x1 - x0, y1 - y0) < SIDE
    part = _sized(image[cut], cv2.INTER_CUBIC if grows else cv2.INTER_AREA)
    true, found = (_sized(labels[cut], cv2.INTER_NEAREST) for labels in (truth, prediction))
    pictures = [frame, part, overlay(part, true), overlay(part, found)]
    pictures.append(error_overlay(part, found, true))
    return area, [_jpeg(one) for one in pictures]


def _sized(array: np.ndarray, method: int) -> np.ndarray:
    scale = SIDE / max(array.shape[:2])
    size = max(1, round(array.shape[1] * scale)), max(1, round(array.shape[0] * scale))
    return cv2.resize(np.ascontiguousarray(array), size, interpolation=method)


def _jpeg(image: np.ndarray) -> bytes:
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        _QUALITY,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    done, data = cv2.imencode(".jpg", image, options)
    assert done, "OpenCV could not encode a JPEG"
    return data.tobytes()


def save_pictures(
    path: str | Path, pictures: Iterable[Picture], evaluation: Mapping[str, Any] | None = None
) -> None:
    """Writes pictures as npz in one step: `index` (JSON as bytes) and the tiles `<n>_<name>` as uint8.

    Args:
        path: The file; its folder must be there.
        pictures: What to keep.
        evaluation: Of which they are, as `identity.identify` returns it.
    """
    arrays: dict[str, np.ndarray] = {}
    index = []
    for n, one in enumerate(pictures):
        entry = {"id": one.id, "sets": one.sets, "window": one.window, "size": one.size}
        index.append(entry)
        for name, data in zip(TILES, one.tiles, strict=True):
            arrays[f"{n}_{name}"] = np.frombuffer(data, np.uint8)
    arrays["index"] = np.frombuffer(
        json.dumps({"evaluation": dict(evaluation or {}), "pictures": index}).encode(), np.uint8
    )
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())


def load_pictures(path: str | Path) -> tuple[list[Picture], dict[str, Any]]:
    """Reads what `save_pictures` wrote: the pictures and of which evaluation they are.

    Raises:
        UserError: The file is damaged.
    """
    try:
        with open_npz(path) as file:
            index = json.loads(file["index"].tobytes())
            found = [
                Picture(
                    id=str(entry["id"]),
                    sets=tuple(str(name) for name in entry["sets"]),
                    window=tuple(int(v) for v in entry["window"]),  # type: ignore[arg-type]
                    size=tuple(int(v) for v in entry["size"]),  # type: ignore[arg-type]
                    tiles=tuple(file[f"{n}_{name}"].tobytes() for name in TILES),
                )
                for n, entry in enumerate(index["pictures"])
            ]
            return found, identity_in(index)
    except PermissionError:
        raise
    except DAMAGED as error:
        raise UserError(f"{path} holds no pictures ({reason(error)}): evaluate again") from error


def predict_pictures(
    cfg: "Config",
    checkpoint: str | Path,
    chosen: dict[str, tuple[str, ...]],
    split: str = "val",
    strategy: str = "deepspeed",
    trust: bool = False,
    weights: "dict[str, torch.Tensor] | None" = None,
) -> list[Picture]:
    """Predicts the chosen images and draws them, in the order chosen.

    Args:
        cfg: As from `spark_seg.config.load_config`.
        checkpoint: As for `evaluation.run.evaluate`.
        chosen: As `choose` returns them.
        split: `train` or `val`.
        strategy: `deepspeed` or `single`.
        trust: Whether the checkpoint may be unpickled without restriction.
        weights: What was read from the checkpoint already; None reads it.
    """
    from mmengine.evaluator import BaseMetric

    from spark_seg.datasets.io import read_image
    from spark_seg.engine.build import prediction_runner
    from spark_seg.engine.checkpoints import load_state_dict
    from spark_seg.evaluation.metric import label_map

    found: dict[str, Picture] = {}

    class _Draw(BaseMetric):
        default_prefix = ""

        def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
            for sample in data_samples:
                image = read_image(sample["img_path"])
                truth, labels = (
                    label_map(sample, name).astype(np.uint8)
                    for name in ("gt_sem_seg", "pred_sem_seg")
                )
                key = str(sample["sample_id"])
                area, tiles = render(image, truth, labels)
                size = image.shape[0], image.shape[1]
                found[key] = Picture(key, chosen[key], area, size, tuple(tiles))
                self.results.append(key)

        def compute_metrics(self, results: list) -> dict:
            return {}

    dataloader = copy.deepcopy(cfg.val_dataloader)
    dataloader.dataset.split = split
    dataloader.dataset.subset = list(chosen)
    weights = load_state_dict(checkpoint, trust) if weights is None else weights
    prediction_runner(cfg, weights, checkpoint, dataloader, _Draw(), strategy).test()
    return [found[key] for key in chosen]
