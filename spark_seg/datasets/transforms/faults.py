"""The camera's faults (`spark_seg.corruptions`) as an augmentation whose strength is one number."""

# ruff: noqa: NPY002 - mmengine seeds numpy's global generator, in every loader process

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from spark_seg.corruptions import KINDS, SEVERITIES, apply, choose_kinds
from spark_seg.errors import UserError

STAGES: dict[str, tuple[str, ...]] = {
    "light": ("overexposure", "underexposure", "colour_cast"),
    "stray light": ("glare", "bloom"),
    "lens": ("motion_blur", "defocus", "vignetting", "downsampling"),
    "sensor": ("noise", "hot_pixels", "bit_depth"),
    "transmission": ("jpeg", "dropped_lines"),
}
"""What happens to the light on its way to a file, in order; a picture has at most one fault of each stage."""


@TRANSFORMS.register_module()
class CameraFaults(BaseTransform):
    """Degrades some of the samples as a space camera would: exposure, glare, bloom and streaks, blur, noise, JPEG ...

    Such a sample has one to three faults, of as many stages of `STAGES` and in their order; each has a severity drawn
    evenly from 0 to `strength`. Severities are those that `tools/test.py --corruptions` measures. Labels stay: no fault
    moves a pixel. Draws from numpy's global generator.

    Args:
        strength: The largest severity, 0 (none) to 5. 2 is what a good camera may do, 5 leaves little to see.
        prob: Probability that a sample has faults.
        kinds: Names of `corruptions.KINDS` to choose from; None takes all.
    """

    def __init__(
        self, strength: float = 2.0, prob: float = 0.5, kinds: Sequence[str] | None = None
    ) -> None:
        for name, value, top in (("strength", strength, SEVERITIES[-1]), ("prob", prob, 1)):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value <= top:
                raise UserError(f"{name}={value!r}: must lie between 0 and {top}")
        if isinstance(kinds, str):
            raise UserError(f"kinds={kinds!r}: give a list of names")
        self.strength, self.prob = strength, prob
        self.kinds = choose_kinds(kinds or ())
        chosen = ([kind for kind in stage if kind in self.kinds] for stage in STAGES.values())
        self._stages = [stage for stage in chosen if stage]

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        if np.random.rand() >= self.prob or not self.strength:
            return results
        count = np.random.randint(1, min(3, len(self._stages)) + 1)
        stages = np.sort(np.random.permutation(len(self._stages))[:count])
        rng = np.random.default_rng(np.random.randint(0, 1 << 32, 4, np.uint64))
        img = results["img"]
        for stage in stages:
            kinds = self._stages[stage]
            kind = kinds[rng.integers(len(kinds))]
            severity = rng.uniform(0, self.strength)
            img = apply(KINDS[kind].fault, img, severity, rng)
            results.setdefault("applied", []).append(f"{kind} {severity:.1f}")
        results["img"] = img
        return results

    def __repr__(self) -> str:
        return f"CameraFaults(strength={self.strength}, prob={self.prob}, kinds={self.kinds})"
