"""From logits to labels at full size."""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F


class Segmentor(Protocol):
    """Pictures to logits: whatever takes the PyTorch model's place in `spark_seg.submission.run.infer`.

    Attributes:
        identity: Names all that the logits depend on (a digest of the exported file, the backend, its precision). An
            interrupted inference is continued only by a segmentor of the same identity.
    """

    identity: str

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
    """Resizes logits once, bilinearly, and takes the largest.

    Args:
        logits: [B, C, h, w], any floating dtype; computed in fp32 at least.
        sizes: (H, W) for each image.

    Returns:
        For each image uint8 labels [H, W] on the logits' device. The lowest class wins a tie.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return [
        _argmax(
            F.interpolate(image[None], size=tuple(size), mode="bilinear", align_corners=False)[0]
        )
        for image, size in zip(logits, sizes, strict=True)
    ]


def _argmax(scores: torch.Tensor) -> torch.Tensor:
    """argmax over a few channels, [C, H, W] -> uint8 [H, W]; torch's own took 9 times as long on one core."""
    best = scores[0].clone()
    labels = torch.zeros(scores.shape[1:], dtype=torch.uint8, device=scores.device)
    for index in range(1, scores.shape[0]):
        better = scores[index] > best
        labels[better] = index
        torch.maximum(best, scores[index], out=best)
    return labels
