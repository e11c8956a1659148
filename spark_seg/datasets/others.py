"""Other frames of the data set, for augmentation that mixes several: mosaic, copy-paste.

Which ones, is drawn from numpy's generator, which `SparkDataset` seeds for each sample: the same whichever worker makes
it, and after a resumption. A frame is loaded by the pipeline's own loading steps, so a cache, pictures kept in memory
and decoding at reduced size hold for it too.
"""

# ruff: noqa: NPY002 - mmengine seeds numpy's global generator, in every loader process

from typing import TYPE_CHECKING, Any

import numpy as np

from spark_seg.datasets.bad_files import ATTEMPTS
from spark_seg.datasets.transforms.loading import LoadSparkImage, LoadSparkMask
from spark_seg.errors import UserError
from spark_seg.labels import CLASSES, histogram

if TYPE_CHECKING:
    from spark_seg.datasets.spark import SparkDataset

_TRIES = 4


class OtherFrames:
    """Draws other frames than one sample's own (a data set of one frame gives that one).

    Args:
        dataset: The sample's.
        index: The sample's.
    """

    def __init__(self, dataset: "SparkDataset", index: int) -> None:
        self._dataset, self._index = dataset, index

    def draw(self) -> dict[str, Any]:
        """A frame drawn evenly from all others, as the pipeline's loading steps leave it.

        Raises:
            UserError: It cannot be read, and the data set does not skip bad files.
        """
        total = len(self._dataset)
        for attempt in range(1, ATTEMPTS + 1):
            step = np.random.randint(1, total) if total > 1 else 0
            index = (self._index + step) % total
            try:
                return self._load(index)
            except UserError as error:
                if attempt == ATTEMPTS or not self._dataset.note_bad(index, error):
                    raise
        raise AssertionError("unreachable")

    def draw_with_little_craft(self, share: float) -> dict[str, Any]:
        """Likewise, whose craft covers no more than `share` of it; after a few tries the one with the least."""
        best, least = self.draw(), 1.0
        for attempt in range(_TRIES):
            found = best if attempt == 0 else self.draw()
            counts = histogram(found["gt_seg_map"])[: len(CLASSES)]
            covered = counts[1:].sum() / max(counts.sum(), 1)
            if covered < least:
                best, least = found, covered
            if least <= share:
                break
        return best

    def _load(self, index: int) -> dict[str, Any]:
        info = self._dataset.frame_info(index)
        info["others"] = self
        for step in self._dataset.pipeline.transforms:
            if isinstance(step, LoadSparkImage | LoadSparkMask):
                info = step(info)
        return info


def others_of(results: dict[str, Any], who: str) -> OtherFrames:
    """The handle in a sample.

    Raises:
        UserError: There is none: the data set is no `SparkDataset`, or has no masks.
    """
    if "others" not in results or "gt_seg_map" not in results:
        raise UserError(f"{who} takes other frames: it needs a SparkDataset with masks")
    return results["others"]
