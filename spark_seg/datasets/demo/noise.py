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
    clouds = fractal(rng, n, 1.25)
    dust = fractal(rng, n, 1.35)
    fine = fractal(rng, n, 0.55)
    y = (np.arange(n, dtype=np.float32)[:, None] - n / 2) / n
    wave = 0.05 * np.sin(np.arange(n, dtype=np.float32)[None] * 2 * np.pi / n)
    band = np.exp(-(((y - wave) / 0.15) ** 2)) + 0.6 * np.exp(-(((y - wave) / 0.07) ** 2))
    lane = step(dust, 0.1, 1.2) * np.exp(-(((y - wave) / 0.09) ** 2))
    glow = np.clip(band * (0.55 + 0.38 * clouds + 0.12 * fine), 0, None)
    blue = step(clouds, 0.2, 1.6) * band
    bgr = np.stack([34 * glow + 46 * blue, 24 * glow + 18 * blue, 29 * glow + 16 * blue], 2)
    rust = step(-clouds, 0.3, 1.6) * band
    bgr += np.stack([2 * rust, 8 * rust, 18 * rust], 2)
    bgr *= (1 - 0.8 * lane)[..., None]
    # The band is grainy with faint stars.
    stars = rng.random((n, n)).astype(np.float32)
    few = (stars > 0.985) * (0.3 + band) * rng.uniform(10, 60, (n, n)).astype(np.float32)
    tint = rng.uniform(0.75, 1.0, (n, n, 3)).astype(np.float32)
    bgr += few[..., None] * tint
    return np.clip(bgr * 0.8, 0, 255).astype(np.uint8)


@lru_cache(maxsize=2)
def land_tile(seed: int) -> np.ndarray:
    """Ground from orbit, uint8 [1024, 1024, 3]: arid land, green patches, coasts, dark sea."""
    rng = np.random.default_rng([seed, 3])
    n = TILE
    shape = fractal(rng, n, 1.75, 1.5)
    wet = fractal(rng, n, 1.35, 3.0)
    hills = fractal(rng, n, 1.35, 6.0)
    fine = fractal(rng, n, 0.7, 20.0)
    dx, dy = fractal(rng, n, 1.7, 2.0), fractal(rng, n, 1.7, 2.0)
    wet = warped(wet, dx, dy, 14)
    hills = warped(hills, dy, dx, 10)
    light = 1 + 0.17 * np.clip(relief(hills), -2, 2) + 0.05 * fine
    # Colours blue first: ochre, rust, sand, scrub green.
    rust, ochre, sand, green = ((26, 58, 120), (34, 84, 146), (92, 126, 156), (26, 62, 52))
    t = step(hills + 0.4 * fine, -1.4, 1.4)[..., None]
    land: np.ndarray = np.asarray(rust, np.float32) * (1 - t) + np.asarray(ochre, np.float32) * t
    s = step(wet, -2.4, -0.9)[..., None]
    land = land * s + np.asarray(sand, np.float32) * (1 - s)
    g = (step(wet + 0.3 * hills, 0.45, 1.5) * 0.85)[..., None]
    land = (land * (1 - g) + np.asarray(green, np.float32) * g) * light[..., None]
    coast = shape + 0.05 * hills + 0.02 * fine
    sea = np.array((66, 46, 36), np.float32) * (1 + 0.03 * fine[..., None])
    shore = step(coast, -0.62, -0.35)[..., None] * np.array((42, 44, 6), np.float32)
    water = sea + shore * 0.9
    a = step(coast, -0.36, -0.33)[..., None]
    return np.clip(water * (1 - a) + land * a, 0, 255).astype(np.uint8)


@lru_cache(maxsize=2)
def cloud_tile(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Clouds: (thickness, of mean 128 and deviation 40; brightness), each uint8 [1024, 1024]."""
    rng = np.random.default_rng([seed, 4])
    n = TILE
    big = fractal(rng, n, 1.9, 2.0)
    puff = fractal(rng, n, 1.15, 14.0)
    dx, dy = fractal(rng, n, 2.0, 2.0), fractal(rng, n, 2.0, 2.0)
    field = warped(big + 0.42 * puff, dx, dy, 40)
    field /= field.std()
    bright = 0.86 + 0.07 * np.clip(relief(cv2.GaussianBlur(field, (0, 0), 1.2)), -2.5, 1.8)
    thick = np.clip(128 + 40 * field, 0, 255).astype(np.uint8)
    return thick, np.clip(bright * 255, 0, 255).astype(np.uint8)


@lru_cache(maxsize=2)
def swirl_tile(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """As `cloud_tile`, but drawn out and curled as weather systems look from afar."""
    rng = np.random.default_rng([seed, 5])
    n = TILE
    big = fractal(rng, n, 1.5, 3.0)
    puff = fractal(rng, n, 0.95, 12.0)
    field = big + 0.45 * puff
    for reach in (70, 36, 16):
        pot = fractal(rng, n, 2.6, 2.5)
        gy, gx = np.gradient(pot)
        norm = float(np.sqrt((gx**2 + gy**2).mean()))
        # Along the contours of a potential: curls without sources, like wind.
        field = warped(
            field, (-gy / norm).astype(np.float32), (gx / norm).astype(np.float32), reach
        )
    field /= field.std()
    bright = 0.88 + 0.06 * np.clip(relief(field), -2.5, 1.6)
    return np.clip(128 + 40 * field, 0, 255).astype(np.uint8), np.clip(bright * 255, 0, 255).astype(
        np.uint8
    )
