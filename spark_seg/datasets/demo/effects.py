"""What the camera adds: bloom and its horizontal streaks, sun glare, softness, grain."""

import cv2
import numpy as np

from spark_seg.datasets.demo.noise import TILE, grain_tile


def bloom(image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> None:
    """Light that the craft's near-white spots spill along the rows and around them, in place."""
    size = image.shape[0]
    small = max(size // 8, 8)
    peak = cv2.copyTo(image, labels)
    peak = cv2.resize(peak, (small * 4, small * 4), interpolation=cv2.INTER_AREA)
    peak = cv2.subtract(peak, np.full_like(peak, 205))
    if not peak.any():
        return
    spill = cv2.resize(peak, (small, small), interpolation=cv2.INTER_AREA).astype(np.float32)
    streak = cv2.GaussianBlur(
        spill, (0, 0), sigmaX=small * 0.15, sigmaY=0.7, borderType=cv2.BORDER_CONSTANT
    )
    halo = cv2.GaussianBlur(spill, (0, 0), small * 0.02, borderType=cv2.BORDER_CONSTANT)
    # Spilled light is paler than its source.
    streak = 0.35 * streak + 0.65 * streak.mean(2, keepdims=True)
    glow = streak * rng.uniform(5, 22) + halo * rng.uniform(0.2, 0.9)
    top = float(np.quantile(glow, 0.999))
    glow *= min(1.0, 60.0 / max(top, 1e-3))
    add = cv2.resize(
        np.clip(glow, 0, 120).astype(np.uint8), (size, size), interpolation=cv2.INTER_LINEAR
    )
    cv2.add(image, add, dst=image)


def glare(image: np.ndarray, rng: np.random.Generator, spot: tuple[float, float]) -> None:
    """The sun at `spot` (frame widths): glow, rays, ghosts on a line through the middle, in place."""
    size = image.shape[0]
    n = max(size // 4, 16)
    x0, y0 = spot
    g = (np.arange(n, dtype=np.float32) + 0.5) / n
    dx, dy = g[None] - np.float32(x0), g[:, None] - np.float32(y0)
    r = np.sqrt(dx * dx + dy * dy) + 1e-4
    power = rng.uniform(0.5, 1.0)
    glow = 255 * np.exp(-((r / 0.018) ** 2)) + 150 * np.exp(-r / 0.06) + 46 * np.exp(-r / 0.35)
    theta = np.arctan2(dy, dx)
    spikes = np.abs(np.cos(theta * 3 + rng.uniform(0, 3))) ** 60
    glow = glow + 120 * spikes * np.exp(-r / 0.12)
    glow = glow + 60 * np.exp(-((dy / 0.006) ** 2)) * np.exp(-np.abs(dx) / 0.5)
    add = glow[..., None] * np.array([0.86, 0.94, 1.0], np.float32)
    for _ in range(int(rng.integers(1, 5))):
        t = rng.uniform(0.3, 1.9)
        px, py = x0 + (0.5 - x0) * t, y0 + (0.5 - y0) * t
        rad = rng.uniform(0.015, 0.09)
        q = np.sqrt((g[None] - px) ** 2 + (g[:, None] - py) ** 2)
        disc = 1 / (1 + np.exp(np.clip((q - rad) / 0.004, -40, 40)))
        add += (disc * rng.uniform(4, 18))[..., None] * rng.uniform(0.2, 1, 3).astype(np.float32)
    add = cv2.resize(
        np.clip(add * power, 0, 255).astype(np.uint8), (size, size), interpolation=cv2.INTER_CUBIC
    )
    cv2.add(image, add, dst=image)


def soften(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The lens: a blur of half a pixel or so of a 1024 px frame."""
    sigma = rng.uniform(0.35, 0.8) * image.shape[0] / 1024
    if sigma < 0.25:
        return image
    return cv2.GaussianBlur(image, (5, 5), sigma)


def lift(image: np.ndarray, floor: float) -> np.ndarray:
    """Raises black to `floor` (grey levels), as the real frames' exposure does; white stays."""
    table = np.clip(np.round(floor + np.arange(256) * (1 - floor / 255)), 0, 255)
    return cv2.LUT(image, table.astype(np.uint8))


def grain(image: np.ndarray, rng: np.random.Generator, seed: int, deviation: float) -> np.ndarray:
    """Adds film grain of the given standard deviation (grey levels), nearly colourless."""
    size = image.shape[0]
    tile = grain_tile(seed)
    reps = -(-size // TILE) + 1
    if reps > 2:
        tile = np.tile(tile, (reps - 1, reps - 1))
    oy, ox = rng.integers(0, TILE, 2)
    noise = np.roll(tile, (int(oy), int(ox)), (0, 1))[:size, :size]
    if rng.random() < 0.5:
        noise = noise.T
    # In bytes: what the grain adds and what it takes away, so that OpenCV's saturating sums do the
    # rest.
    table = np.clip(np.round(np.arange(-128, 128) * deviation / 20), -128, 127).astype(int)
    byte = np.ascontiguousarray(noise).view(np.uint8)
    plus = np.maximum(table, 0).astype(np.uint8)
    minus = np.maximum(-table, 0).astype(np.uint8)
    order = np.roll(np.arange(256), 128)  # index of the int8 value behind each byte
    up, down = cv2.LUT(byte, plus[order]), cv2.LUT(byte, minus[order])
    return cv2.subtract(cv2.add(image, cv2.merge([up] * 3)), cv2.merge([down] * 3))
