"""Faults of the lens and of pointing: blur, resolution, vignetting."""

import cv2
import numpy as np

from spark_seg.corruptions.common import convolve, enlarge, grid, level, scale_of


def motion_blur(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """The craft or the camera turns while the shutter is open: a straight smear about each pixel's place."""
    length = level((5, 9, 14, 21, 30), severity) * scale_of(image)
    angle = rng.uniform(0, np.pi)
    return convolve(image, line_kernel(length, angle))


def line_kernel(length: float, angle: float) -> np.ndarray:
    """A line through the kernel's middle, float32 [K, K] with K odd and sum 1.

    Args:
        length: In pixels, any value above 0.
        angle: Radians, against the x axis.
    """
    along = np.linspace(-length / 2, length / 2, max(3, int(4 * length) | 1))
    return _kernel(along * np.cos(angle), along * np.sin(angle))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Points about the middle as a kernel: each one's weight goes to the four pixels around it.

    So kernels of less than a pixel still blur, as little as they should.
    """
    reach = int(np.ceil(max(np.abs(x).max(), np.abs(y).max()))) + 1
    x, y = x + reach, y + reach
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, low = x - left, y - top
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    for dy, wy in ((0, 1 - low), (1, low)):
        for dx, wx in ((0, 1 - right), (1, right)):
            np.add.at(kernel, (top + dy, left + dx), wy * wx)
    return (kernel / kernel.sum()).astype(np.float32)


def defocus(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """A disc for each point: the lens focuses elsewhere."""
    radius = level((1.5, 2.5, 4, 6, 9), severity) * scale_of(image)
    return convolve(image, disc_kernel(radius))


def disc_kernel(radius: float) -> np.ndarray:
    """A disc about the kernel's middle, float32 [K, K] with K odd and sum 1; the radius in pixels, above 0."""
    across = np.linspace(-radius, radius, max(9, int(6 * radius) | 1))
    x, y = (axis.ravel() for axis in np.meshgrid(across, across))
    inside = np.hypot(x, y) <= radius * (1 + 1e-9)
    return _kernel(x[inside], y[inside])


def downsampling(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """As from a sensor with 1.5, 2, 3, 4, 6 times coarser pixels, enlarged again."""
    factor = level((1.5, 2, 3, 4, 6), severity, start=1)
    height, width = image.shape[:2]
    small = max(1, round(width / factor)), max(1, round(height / factor))
    coarse = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def vignetting(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """The corners get less light, about a middle a little off the frame's."""
    loss = level((0.3, 0.5, 0.7, 0.85, 0.97), severity)
    y, x = grid(image, 16)
    middle = 0.5 + rng.uniform(-0.08, 0.08, 2)
    height, width = image.shape[:2]
    side = max(height, width)
    away = np.hypot(y - middle[0] * height / side, x - middle[1] * width / side)
    # 1 in a corner of a frame whose middle is in the middle
    away = np.minimum(away / (0.5 * np.hypot(height, width) / side), 1)
    kept = 1 - loss * away**1.7
    return cv2.multiply(
        image, cv2.merge([enlarge(kept.astype(np.float32), image)] * 3), dtype=cv2.CV_8U
    )
