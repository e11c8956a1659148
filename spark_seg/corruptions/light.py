"""Faults of light and exposure: too much, too little, of the wrong colour, or from where it should not come."""

import cv2
import numpy as np

from spark_seg.corruptions.common import add_light, grid, level, lookup, scale_of

_GAMMA = 2.2  # what lies between a stored grey level and the light that it stands for


def overexposure(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """0.7 to 3.5 stops more light; what exceeds white is lost."""
    return cv2.LUT(image, _exposed(level((0.7, 1.4, 2.1, 2.8, 3.5), severity)))


def underexposure(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """1 to 6 stops less light; what falls between two grey levels is lost."""
    return cv2.LUT(image, _exposed(-level((1, 2, 3.2, 4.5, 6), severity)))


def _exposed(stops: float) -> np.ndarray:
    return lookup(np.arange(256) * 2 ** (stops / _GAMMA))


def colour_cast(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """A wrong white balance: each colour by a factor of its own, their product 1."""
    strength = level((0.1, 0.2, 0.32, 0.48, 0.7), severity)
    hue = rng.uniform(0, 2 * np.pi)
    gains = np.exp(strength * np.cos(hue + np.arange(3) * 2 * np.pi / 3))
    return cv2.LUT(image, lookup(np.arange(256)[:, None] * gains[None]))


def bloom(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """The brightest spots spill: a halo about them, and a streak along the whole row or column.

    Bright is what comes near white, or the brightest half percent of a dark frame; a frame without contrast stays as
    it is.
    """
    halo_light = level((20, 40, 70, 110, 160), severity)
    streak_light = level((15, 30, 55, 90, 140), severity)
    along_rows = bool(rng.random() < 0.5)
    y, x = grid(image, max(1, round(8 * scale_of(image))))
    h, w = y.shape[0], x.shape[1]
    small = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA).astype(np.float32)
    peak = small.max(axis=2)
    floor = min(float(np.quantile(peak, 0.995)), 215.0)
    source = np.maximum(peak - floor, 0)
    top = float(source.max())
    if top <= 0:
        return image.copy()
    source /= top
    spread = max(h, w) * 0.025
    halo = cv2.GaussianBlur(source, (0, 0), spread, borderType=cv2.BORDER_CONSTANT)
    streak = np.minimum(source.sum(axis=1 if along_rows else 0, keepdims=True), 1.0)
    sigma_x, sigma_y = (1e-6, 0.7) if along_rows else (0.7, 1e-6)
    streak = cv2.GaussianBlur(
        np.broadcast_to(streak, (h, w)).copy(), (3, 3), sigma_x, sigmaY=sigma_y
    )
    glow = halo * (halo_light / float(halo.max())) + streak * streak_light
    tint = np.array([0.92, 0.97, 1.0], np.float32)
    return add_light(image, glow[..., None] * tint)


def glare(image: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """A light at or beyond the frame's border: a veil that falls off across it, and ghosts of the lens's glass."""
    veil = level((30, 60, 95, 135, 185), severity)
    ghost = level((8, 14, 20, 28, 38), severity)
    y, x = grid(image, 8)
    side = max(image.shape[:2])
    middle = np.array([image.shape[0], image.shape[1]]) / (2 * side)
    angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1.15)
    sun = middle * (1 + reach * np.array([np.sin(angle), np.cos(angle)]))
    away = np.hypot(y - sun[0], x - sun[1])
    field = veil * (0.25 + 0.75 * np.exp(-away / 0.35))
    tint = np.array([0.9, 0.96, 1.0]) * rng.uniform(0.92, 1.0, 3)
    glow = field[..., None] * tint
    for _ in range(3):
        place = sun + (middle - sun) * rng.uniform(0.6, 1.9)
        radius = rng.uniform(0.03, 0.12)
        disc = np.clip((radius - np.hypot(y - place[0], x - place[1])) / 0.012, 0, 1)
        glow += (ghost * disc)[..., None] * rng.uniform(0.3, 1.0, 3)
    return add_light(image, glow.astype(np.float32))
