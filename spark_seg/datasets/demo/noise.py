"""Tileable random textures, made once per process and cut at random places by every frame."""

from functools import lru_cache

import cv2
import numpy as np

TILE = 1024


def fractal(rng: np.random.Generator, size: int, slope: float, lowest: float = 1.0) -> np.ndarray:
    """Gaussian noise with the power spectrum f^(-2 slope), mean 0, deviation 1, that wraps around.

    Args:
        rng: Where the randomness comes from.
        size: Width and height in pixels.
        slope: 0 is white noise, 1 rough land, 1.7 soft clouds.
        lowest: Waves longer than size/lowest are damped.

    Returns:
        float32 [size, size].
    """
    fy = np.fft.fftfreq(size)[:, None] * size
    fx = np.fft.rfftfreq(size)[None] * size
    f = np.sqrt(fx**2 + fy**2 + lowest**2).astype(np.float32)
    white = rng.standard_normal((size, size), dtype=np.float32)
    spectrum = np.fft.rfft2(white) * f ** (-slope)
    spectrum[0, 0] = 0
    out = np.fft.irfft2(spectrum, s=(size, size)).astype(np.float32)
    return out / out.std()


def warped(source: np.ndarray, dx: np.ndarray, dy: np.ndarray, reach: float) -> np.ndarray:
    """The texture [S, S] swirled: each pixel read `reach` pixels along (dx, dy)."""
    n = source.shape[0]
    x = np.arange(n, dtype=np.float32)[None] + dx * reach
    y = np.arange(n, dtype=np.float32)[:, None] + dy * reach
    return cv2.remap(source, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def step(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Smoothstep from 0 at `low` to 1 at `high`."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def relief(height: np.ndarray) -> np.ndarray:
    """Brightness of a wrapping height field's slopes lit from one side: mean 0, deviation 1."""
    slope = (
        np.roll(height, 1, 1)
        - np.roll(height, -1, 1)
        + 0.6 * (np.roll(height, 1, 0) - np.roll(height, -1, 0))
    )
    return slope / slope.std()


@lru_cache(maxsize=2)
def grain_tile(seed: int) -> np.ndarray:
    """Film grain, int8 [1024, 1024] of deviation 20: white noise, slightly soft as after a lens."""
    rng = np.random.default_rng([seed, 1])
    white = rng.standard_normal((TILE, TILE), dtype=np.float32)
    noise = cv2.GaussianBlur(white, (0, 0), 0.55, borderType=cv2.BORDER_REFLECT)
    return np.clip(noise * (20 / noise.std()), -127, 127).astype(np.int8)


@lru_cache(maxsize=2)
def milky_way(seed: int) -> np.ndarray:
    """The Milky Way along the tile's middle row, uint8 [1024, 1024, 3], to be added."""
    rng = np.random.default_rng([seed, 2])
    n = TILE
    clouds = fractal(rng, n, 1.45)
    dust = fractal(rng, n, 1.25, 2.0)
    hue = fractal(rng, n, 1.3)
    fine = fractal(rng, n, 0.45)
    y = (np.arange(n, dtype=np.float32)[:, None] - n / 2) / n
    wave = 0.05 * np.sin(np.arange(n, dtype=np.float32)[None] * 2 * np.pi / n)
    band = 0.7 * np.exp(-(((y - wave) / 0.17) ** 2)) + 0.5 * np.exp(-(((y - wave) / 0.06) ** 2))
    lane = step(dust, 0.0, 1.6) * np.exp(-(((y - wave) / 0.07) ** 2))
    glow = np.clip(band * (0.62 + 0.22 * clouds + 0.16 * fine), 0, None) * (1 - 0.75 * lane)
    # Blue first: violet where young stars are, brown where dust reddens them.
    blue, rust = step(hue, -0.2, 1.8), step(-hue, 0.2, 2.0)
    bgr = glow[..., None] * np.array([42, 27, 31], np.float32)
    bgr += (glow * blue)[..., None] * np.array([30, 9, 10], np.float32)
    bgr += (glow * rust)[..., None] * np.array([-12, 2, 12], np.float32)
    # Most of its light is in stars too faint to be told apart.
    lot = rng.random((n, n), dtype=np.float32)
    speck = np.where(lot > 0.90, (lot - 0.90) * 10, 0) ** 3 * (0.06 + band) * (1 - 0.6 * lane)
    tint = rng.uniform(0.7, 1.0, (n, n, 3)).astype(np.float32)
    bgr += (speck * 90)[..., None] * tint * np.array([1.1, 0.9, 0.95], np.float32)
    return np.clip(bgr, 0, 255).astype(np.uint8)


@lru_cache(maxsize=2)
def land_tile(seed: int) -> np.ndarray:
    """Ground from orbit, uint8 [1024, 1024, 3]: arid land, green patches, coasts, dark sea."""
    rng = np.random.default_rng([seed, 3])
    n = TILE
    shape = fractal(rng, n, 2.1)
    wet = fractal(rng, n, 1.45, 3.0)
    hills = fractal(rng, n, 1.5, 8.0)
    fine = fractal(rng, n, 0.75, 20.0)
    dx, dy = fractal(rng, n, 1.7, 2.0), fractal(rng, n, 1.7, 2.0)
    wet = warped(wet, dx, dy, 14)
    hills = warped(hills, dy, dx, 10)
    light = 1 + 0.13 * np.clip(relief(hills + 0.03 * fine), -2, 2.4) + 0.04 * fine
    # Colours blue first: rust, ochre, sand, scrub green.
    rust, ochre, sand, green = ((6, 32, 64), (12, 54, 90), (62, 88, 110), (2, 28, 20))
    t = step(hills + 0.3 * fine, -1.6, 1.6)[..., None]
    land: np.ndarray = np.asarray(rust, np.float32) * (1 - t) + np.asarray(ochre, np.float32) * t
    s = step(wet, -2.6, -1.2)[..., None]
    land = land * s + np.asarray(sand, np.float32) * (1 - s)
    g = (step(wet + 0.25 * hills + 0.1 * fine, 0.2, 1.6) * 0.85)[..., None]
    land = (land * (1 - g) + np.asarray(green, np.float32) * g) * light[..., None]
    coast = shape + 0.022 * hills + 0.008 * fine
    sea = np.array((38, 19, 12), np.float32) * (1 + 0.03 * fine[..., None])
    shore = step(coast, -0.52, -0.36)[..., None] ** 2 * np.array((34, 42, 2), np.float32)
    a = step(coast, -0.36, -0.345)[..., None]
    return np.clip((sea + shore) * (1 - a) + land * a, 0, 255).astype(np.uint8)


def _bytes(field: np.ndarray, bright: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    thick = np.clip(128 + 40 * field / field.std(), 0, 255).astype(np.uint8)
    return thick, np.clip(bright * 255, 0, 255).astype(np.uint8)


@lru_cache(maxsize=2)
def cloud_tile(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Clouds: (thickness, of mean 128 and deviation 40; brightness), each uint8 [1024, 1024]."""
    rng = np.random.default_rng([seed, 4])
    n = TILE
    big = fractal(rng, n, 1.9, 2.0)
    # Folded noise has the round tops and sharp creases of cumulus.
    puff = 1 - np.abs(fractal(rng, n, 1.55, 7.0)) * 1.25
    veil = fractal(rng, n, 1.25, 4.0)
    fine = fractal(rng, n, 0.9, 40.0)
    dx, dy = fractal(rng, n, 2.0, 3.0), fractal(rng, n, 2.0, 3.0)
    puff = warped(puff, dx, dy, 12)
    field = big + 0.50 * puff + 0.28 * veil + 0.05 * fine
    field -= field.mean()
    lit = relief(cv2.GaussianBlur(puff + 0.15 * veil, (0, 0), 2.5))
    bright = 0.66 + 0.12 * np.clip(field, -2, 2) + 0.04 * np.clip(lit, -2, 2) + 0.05 * veil
    return _bytes(field, np.minimum(bright, 0.95))


@lru_cache(maxsize=2)
def swirl_tile(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """As `cloud_tile`, but drawn out and curled as weather systems look from afar."""
    rng = np.random.default_rng([seed, 5])
    n = TILE
    big = fractal(rng, n, 1.45, 2.0)
    puff = 1 - np.abs(fractal(rng, n, 1.5, 8.0)) * 1.25
    fine = fractal(rng, n, 0.9, 25.0)
    field = big + 0.35 * puff
    for reach in (50, 50, 40):
        pot = fractal(rng, n, 3.0, 1.5)
        gy, gx = np.gradient(pot)
        norm = float(np.sqrt((gx**2 + gy**2).mean()))
        # Along the contours of a potential: curls without sources, like wind.
        field = warped(
            field, (-gy / norm).astype(np.float32), (gx / norm).astype(np.float32), reach
        )
    veil = fractal(rng, n, 1.3, 5.0)
    field = field + 0.30 * veil + 0.06 * fine
    bright = 0.62 + 0.12 * np.clip(field, -2, 2.2) + 0.05 * veil + 0.03 * fine
    return _bytes(field, np.minimum(bright, 0.93))
