"""Faults of a space camera, as pure functions over a frame: to measure robustness, and to train for it.

Each fault takes a uint8 BGR image [H, W, 3] of any size, a severity and a random generator, and returns a new image
of the same size whose geometry is unchanged, so that the mask stays true. Severity 0 is the image itself, 1 to 5 are
the levels that `tools/test.py --corruptions` measures; values between them interpolate the fault's parameters, which
suits augmentation. Lengths (blur, bloom) are given for a frame whose longer side has 1024 pixels and scale with it.

Common corruptions of images at five severities: Hendrycks and Dietterich, arXiv:1903.12261; the kinds and levels here
are chosen for frames of one spacecraft before black sky or Earth.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from spark_seg.corruptions import light, optics, sensor
from spark_seg.errors import UserError, nearest

SEVERITIES = (1, 2, 3, 4, 5)
Fault = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


class Kind(NamedTuple):
    """One kind of fault.

    Attributes:
        title: For people.
        fault: The function.
    """

    title: str
    fault: Fault


KINDS: dict[str, Kind] = {
    "noise": Kind("sensor noise", sensor.noise),
    "hot_pixels": Kind("hot pixels", sensor.hot_pixels),
    "motion_blur": Kind("motion blur", optics.motion_blur),
    "defocus": Kind("defocus", optics.defocus),
    "overexposure": Kind("over-exposure", light.overexposure),
    "underexposure": Kind("under-exposure", light.underexposure),
    "bloom": Kind("bloom and smear", light.bloom),
    "glare": Kind("stray-light glare", light.glare),
    "jpeg": Kind("JPEG", sensor.jpeg),
    "downsampling": Kind("down-sampling", optics.downsampling),
    "vignetting": Kind("vignetting", optics.vignetting),
    "colour_cast": Kind("colour cast", light.colour_cast),
    "bit_depth": Kind("bit depth", sensor.bit_depth),
    "dropped_lines": Kind("dropped lines", sensor.dropped_lines),
}


def generator(kind: str, sample: str) -> np.random.Generator:
    """The randomness of one fault on one sample, whatever the order of the work or the process that does it.

    The severity has no part in it: the same sun stands in the same place and only gets brighter, so that severities
    of one frame differ by nothing else.
    """
    digest = hashlib.blake2b(f"{kind}\0{sample}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def corrupt(image: np.ndarray, kind: str, severity: float, sample: str) -> np.ndarray:
    """Applies one fault to a frame; the same result wherever and whenever it is called.

    Args:
        image: uint8 BGR [H, W, 3], both sides at least 1; not changed.
        kind: A key of `KINDS`.
        severity: 0 (nothing) to 5.
        sample: The frame's id, from which the fault's randomness is drawn.

    Returns:
        A new uint8 BGR [H, W, 3].

    Raises:
        UserError: No such kind, or a severity outside 0 to 5.
        TypeError: The image is of another type or shape.
    """
    if kind not in KINDS:
        raise UserError(f"no corruption {kind!r}{nearest(kind, KINDS) or _all_kinds()}")
    return apply(KINDS[kind].fault, image, severity, generator(kind, sample))


def apply(fault: Fault, image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Applies a fault with randomness of the caller's own; see `corrupt`."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise TypeError(f"an image is uint8 [H, W, 3], not {image.dtype} {image.shape}")
    if not 0 <= severity <= SEVERITIES[-1]:
        raise UserError(f"severity {severity}: must lie between 0 and {SEVERITIES[-1]}")
    if severity == 0:
        return image.copy()
    return fault(np.ascontiguousarray(image), float(severity), rng)


def choose_kinds(names: Iterable[str]) -> list[str]:
    """The kinds named, each once and in the order of `KINDS`; all where none is named.

    Raises:
        UserError: There is no such kind.
    """
    wanted = list(names)
    for name in wanted:
        if name not in KINDS:
            raise UserError(f"no corruption {name!r}{nearest(name, KINDS) or _all_kinds()}")
    return [name for name in KINDS if name in wanted or not wanted]


def _all_kinds() -> str:
    return f"; there are {', '.join(KINDS)}"
