"""From logits to labels at full size."""

import itertools
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F

from spark_seg.models.upsample import exact_labels

_CHUNK = 1 << 26  # logits enlarged at once, 256 MB


class Segmentor(Protocol):
    """Pictures to logits: whatever takes the PyTorch model's place in `spark_seg.submission.run.infer`.

    Attributes:
        identity: Names all that the logits depend on (a digest of the exported file, the backend, its precision). An
            interrupted inference is continued only by a segmentor of the same identity.
        streams: So many batches may be predicted at a time, each in a thread of the caller's.
    """

    identity: str
    streams: int

    def __call__(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """A batch as the test pipeline packs it -> logits [N, C, h, w], floating point, on any device.

        Args:
            inputs: N tensors uint8 [3, H, W] of one size, BGR, 0 to 255, in the host's memory; normalisation and the
                order of channels are the segmentor's task.
        """
        ...


def labels_from_logits(
    logits: torch.Tensor, sizes: Sequence[tuple[int, int]]
) -> list[torch.Tensor]:
    """The largest of logits that are resized once, bilinearly.

    On the CPU most pixels need no interpolation (`upsample.exact_labels`); the labels are the same, pixel for pixel, as
    those of `F.interpolate(..., mode="bilinear", align_corners=False)` and `argmax`, which other devices, float64
    and logits full of borders go through.

    Args:
        logits: [B, C, h, w], any floating dtype; computed in fp32 at least.
        sizes: (H, W) for each image.

    Returns:
        For each image uint8 labels [H, W] on the logits' device. The lowest class wins a tie.
    """
    if len(logits) != len(sizes):
        raise ValueError(f"{len(logits)} images, {len(sizes)} sizes")
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    # Strides choose torch's kernel, and kernels round differently.
    logits = logits.detach().contiguous()
    if logits.device.type == "cpu":
        return [_on_cpu(image, (h, w)) for image, (h, w) in zip(logits, sizes, strict=True)]
    found: list[torch.Tensor] = []
    for size, group in itertools.groupby(map(tuple, sizes)):
        first, count = len(found), len(list(group))
        chunk = max(1, _CHUNK // (logits.shape[1] * size[0] * size[1]))
        for part in logits[first : first + count].split(chunk):
            found += _enlarged(part, size)
    return found


def _on_cpu(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if image.dtype == torch.float32:
        labels = exact_labels(image.numpy(), size)
        if labels is not None:
            return torch.from_numpy(labels)
    return _enlarged(image[None], size)[0]


def _enlarged(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The plain way: [B, C, h, w] -> uint8 [B, H, W]."""
    full = F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)
    # torch's own argmax over so few channels took 9 times as long on one core.
    best = full[:, 0].clone()
    labels = torch.zeros_like(best, dtype=torch.uint8)
    for index in range(1, full.shape[1]):
        labels.masked_fill_(full[:, index] > best, index)
        torch.maximum(best, full[:, index], out=best)
    return labels
