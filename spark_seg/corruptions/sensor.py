"""Faults of the sensor and of what follows it: noise, pixels, bits, lines, compression."""

from functools import cache
from statistics import NormalDist

import cv2
import numpy as np

from spark_seg.corruptions.common import level, lookup, scale_of


@cache
def _normal_levels() -> np.ndarray:
    """A byte's 256 values as equally likely values of a normal deviate: float32 [256], deviation 1."""
    values = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)])
    return (values / values.std()).astype(np.float32)


def noise(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Read noise of constant deviation and shot noise whose variance grows with the light."""
    read = level((3, 6, 10, 16, 24), severity)
    shot = level((0.3, 0.7, 1.4, 2.6, 4.5), severity)
    # A table over random bytes draws a frame's 3 million deviates ten times as fast as a normal generator.
    bytes_ = np.frombuffer(rng.bytes(image.size), np.uint8).reshape(image.shape)
    deviation = np.sqrt(read**2 + shot * np.arange(256)).astype(np.float32)
    grain = cv2.multiply(cv2.LUT(bytes_, _normal_levels()), cv2.LUT(image, deviation))
    return cv2.add(image, grain, dtype=cv2.CV_8U)


def hot_pixels(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Pixels that glow in one colour or in all whatever falls on them, and as many as a tenth of them that are dead."""
    share = level((1e-4, 4e-4, 1.2e-3, 3.5e-3, 1e-2), severity)
    result = image.reshape(-1, 3).copy()
    # Drawn at once for the worst severity: milder ones take the first of the same pixels.
    most = max(5, round(0.01 * len(result)))
    where: np.ndarray = rng.integers(0, len(result), most)
    values = rng.integers(130, 256, most)
    colour = rng.integers(0, 5, most)
    dead = rng.random(most) < 0.1
    count = min(most, max(int(severity), round(share * len(result))))
    for channel in range(3):
        lit = np.flatnonzero(((colour == channel) | (colour > 2))[:count])
        result[where[lit], channel] = np.maximum(result[where[lit], channel], values[lit])
    result[where[:count][dead[:count]]] = 0
    return result.reshape(image.shape)


def bit_depth(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Fewer grey levels per colour: 6, 5, 4, 3, 2 bits."""
    levels = round(2 ** level((6, 5, 4, 3, 2), severity, start=8))
    steps = 255 / (levels - 1)
    return cv2.LUT(image, lookup(np.rint(np.arange(256) / steps) * steps))


def dropped_lines(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Lines lost on the way, black, alone and in short runs."""
    share = level((0.005, 0.015, 0.04, 0.08, 0.16), severity)
    height = image.shape[0]
    starts: np.ndarray = rng.permutation(height)
    longest = max(1, round(4 * scale_of(image)))
    runs: np.ndarray = rng.integers(1, longest + 1, size=(height,))
    # Runs overlap a little; they are counted as if they did not, which keeps milder severities inside worse ones.
    count = max(int(severity), int(np.searchsorted(np.cumsum(runs), share * height)))
    result = image.copy()
    for start, run in zip(starts[:count], runs[:count], strict=True):
        result[start : start + run] = 0
    return result


def jpeg(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """JPEG with half the colours' resolution at quality 50, 30, 18, 10, 5."""
    quality = round(level((50, 30, 18, 10, 5), severity, start=95))
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    ]
    done, data = cv2.imencode(".jpg", image, options)
    assert done, "OpenCV could not encode a JPEG"
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None, "OpenCV could not decode its own JPEG"
    return decoded
