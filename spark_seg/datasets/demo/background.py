"""What lies behind the craft: a grey star field, the Earth's limb, or the Earth all over."""

from dataclasses import dataclass

import cv2
import numpy as np

from spark_seg.datasets.demo.noise import TILE, cloud_tile, land_tile, milky_way, swirl_tile


@dataclass(frozen=True)
class Background:
    """The picture behind, and the light that it throws.

    Attributes:
        image: uint8 [S, S, 3], blue first, without grain.
        kind: `stars`, `limb` or `earth`.
        earth: Unit vector towards the Earth (x right, y down, z away), or None.
    """

    image: np.ndarray
    kind: str
    earth: np.ndarray | None


def _cut(
    tile: np.ndarray, rng: np.random.Generator, size: int, zoom: float, turn: float | None = None
) -> np.ndarray:
    """A square of a wrapping tile: turned, shifted, `zoom` tile pixels per 1/1024 of the frame."""
    angle = rng.uniform(0, 2 * np.pi) if turn is None else turn
    s = zoom * 1024 / size
    c, q = s * np.cos(angle), s * np.sin(angle)
    off = rng.uniform(0, TILE, 2)
    # Half of them mirrored, so that one tile serves for twice the shapes.
    m = 1 if rng.random() < 0.5 else -1
    matrix = np.array([[m * c, -q, off[0]], [m * q, c, off[1]]], np.float64)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(tile, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_WRAP)


def _stars(image: np.ndarray, rng: np.random.Generator) -> None:
    size = image.shape[0]
    n = int(np.exp(rng.uniform(np.log(2500), np.log(18000))))
    xy = rng.random((n, 2))
    # Their light is gathered in one pixel, less of it where pixels are larger.
    bright = 17 / (1 - rng.random(n)) ** 0.55 * min(size / 1024, 1)
    tint = rng.uniform(0.8, 1.0, (n, 3))
    p = (xy * size).astype(int)
    glow = np.clip(bright[:, None] * tint, 0, 170)
    old = image[p[:, 1], p[:, 0]]
    image[p[:, 1], p[:, 0]] = np.clip(old + glow, 0, 255).astype(np.uint8)
    for _ in range(int(rng.integers(2, 14))):
        x, y = rng.random(2) * size
        r = rng.uniform(0.6, 1.9) * size / 1024
        v = rng.uniform(80, 225)
        hue = 1 - rng.random(3) * 0.25 * rng.random()
        at = (round(x * 16), round(y * 16))
        cv2.circle(image, at, max(round(r * 16), 6), (v * hue).tolist(), -1, cv2.LINE_AA, 4)


def _sky(rng: np.random.Generator, seed: int, size: int) -> np.ndarray:
    image = np.full((size, size, 3), rng.integers(4, 8), np.uint8)
    gain = rng.uniform(0.5, 1.4) if rng.random() < 0.6 else 0.0
    if gain:
        angle = rng.uniform(0, 2 * np.pi)
        zoom = rng.uniform(0.55, 1.1)
        # The band passes within reach of the frame's middle.
        s = zoom * 1024 / size
        c, q = s * np.cos(angle), s * np.sin(angle)
        mid = rng.uniform(0, TILE), TILE / 2 + rng.normal() * 230
        h = size / 2
        matrix = np.array([[c, -q, mid[0] - c * h + q * h], [q, c, mid[1] - q * h - c * h]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        band = cv2.warpAffine(
            milky_way(seed), matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT
        )
        cv2.scaleAdd(band, gain, image, dst=image)
    _stars(image, rng)
    return image


def _cover(thick: np.ndarray, share: float, soft: float) -> np.ndarray:
    """Cloud opacity 0..255 from thickness: clouds over about `share` of the ground."""
    # Thickness is normal with mean 128, deviation 40; the logit stands in for the quantile.
    edge = 128 + 40 * 0.6 * np.log((1 - share) / share)
    t = np.clip((np.arange(256) - edge) / (40 * soft) + 0.5, 0, 1)
    return cv2.LUT(thick, (255 * t * t * (3 - 2 * t)).astype(np.uint8))


def _over(ground: np.ndarray, bright: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    a = opacity.astype(np.float32) * (1 / 255)
    white = cv2.merge([bright, bright, bright])
    return cv2.blendLinear(white, ground, a, 1 - a)


def _tone(image: np.ndarray, rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    """Exposure and a slight change of colour for the whole picture."""
    gain = rng.uniform(low, high) * rng.uniform(0.9, 1.1, 3)
    table = np.clip(np.arange(256)[:, None] * gain + rng.uniform(0, 8), 0, 255).astype(np.uint8)
    return cv2.LUT(image, table.reshape(256, 1, 3))


def _earth(rng: np.random.Generator, seed: int, size: int) -> Background:
    """Straight down: sharp land, sea and clouds."""
    zoom = rng.uniform(0.34, 0.66)
    ground = _tone(_cut(land_tile(seed), rng, size, zoom), rng, 0.75, 1.35)
    thick, bright = cloud_tile(seed)
    both = _cut(cv2.merge([thick, bright]), rng, size, zoom * rng.uniform(0.6, 1.1))
    thick, bright = cv2.split(both)
    image = _over(
        ground, bright, _cover(thick, rng.choice([0.06, 0.2, 0.45]) * rng.uniform(0.6, 1.4), 1.6)
    )
    tilt = rng.normal(size=2) * 0.25
    earth = np.array([tilt[0], tilt[1], 1.0], np.float32)
    return Background(image, "earth", earth / np.linalg.norm(earth))


def _limb(rng: np.random.Generator, seed: int, size: int) -> Background:
    """The edge of the Earth against the sky, with its blue rim of air."""
    sky = _sky(rng, seed, size)
    radius = float(np.exp(rng.uniform(np.log(1.0), np.log(3.6))))  # of the frame's width
    angle = rng.uniform(0, 2 * np.pi)
    toward = np.array([np.cos(angle), np.sin(angle)])
    # How far the limb stands from the frame's middle, negative where the Earth covers that.
    gap = rng.uniform(-0.3, 0.44)
    cx, cy = 0.5 + toward * (radius + gap)

    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    dx, dy = grid[None] - np.float32(cx), grid[:, None] - np.float32(cy)
    dist = np.sqrt(dx * dx + dy * dy)
    depth = np.float32(radius) - dist  # > 0 on the disc, in frame widths

    # The ball seen from afar: texture squeezed towards the limb. The map is smooth, so a coarse one
    # will do.
    m = max(size // 4, 8)
    cg = (np.arange(m, dtype=np.float32) + 0.5) / m
    ex, ey = cg[None] - np.float32(cx), cg[:, None] - np.float32(cy)
    d = np.sqrt(ex * ex + ey * ey)
    bend = np.arcsin(np.clip(d / radius, 0, 0.9995)) / np.maximum(d / radius, 1e-3)
    k = TILE * radius * rng.uniform(0.26, 0.5)
    ox, oy = rng.uniform(0, TILE, 2).astype(np.float32)
    mx = cv2.resize(ex * bend / radius * k + ox, (size, size), interpolation=cv2.INTER_LINEAR)
    my = cv2.resize(ey * bend / radius * k + oy, (size, size), interpolation=cv2.INTER_LINEAR)

    thick_tile, bright = swirl_tile(seed)
    tex = cv2.remap(
        cv2.merge([thick_tile, bright]), mx, my, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )
    thick, bright = cv2.split(tex)
    ground = cv2.remap(land_tile(seed), mx, my, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    ground = _tone(ground, rng, 0.7, 1.1)
    image = _over(ground, bright, _cover(thick, rng.uniform(0.4, 0.8), 3.0))

    rim = rng.uniform(0.8, 1.5)
    # Seen edge on, clouds become streaks along the limb.
    along = np.arctan2(ey * toward[0] - ex * toward[1], -ex * toward[0] - ey * toward[1])
    along = cv2.resize(along.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    sx = along * np.float32(radius * TILE * 0.35) + oy
    sy = depth * np.float32(TILE * 5.0 / rim) + ox
    streak = cv2.remap(thick_tile, sx, sy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    streak = cv2.LUT(streak, np.clip((np.arange(256) - 130) * 6, 0, 235).astype(np.uint8))

    # Air over the disc: saturated blue at the limb that thins inwards; a glow of it outside.
    steps = 4096
    reach = np.linspace(-0.06, 0.5, steps, dtype=np.float32)
    inside = np.clip(reach / rim, 0, None)
    veil = 0.10 + 0.86 * np.exp(-((inside / 0.026) ** 2)) + 0.40 * np.exp(-inside / 0.09)
    halo = np.exp(np.minimum(reach, 0) / (0.0085 * rim))
    edge = np.array([240, 106, 54], np.float32) * rng.uniform(0.85, 1.05)
    high = np.array([222, 140, 100], np.float32)
    mix = np.clip(inside / 0.10, 0, 1)[:, None]
    index = np.clip((depth + 0.06) * ((steps - 1) / 0.56), 0, steps - 1).astype(np.int16)
    air = np.take((edge * (1 - mix) + high * mix).astype(np.uint8), index, axis=0)
    w = np.take(np.where(reach > 0, np.minimum(veil, 0.95), 1).astype(np.float32), index)
    disc = cv2.blendLinear(air, image, w, 1 - w)
    belt = np.exp(-(((inside - 0.024) / 0.016) ** 2)) + 0.4 * np.exp(
        -(((inside - 0.07) / 0.03) ** 2)
    )
    w = np.take((belt / 255 * (reach > 0.003)).astype(np.float32), index) * streak
    disc = cv2.blendLinear(np.full_like(disc, 240), disc, w, 1 - w)
    fade = np.where(reach > 0, 1.0, np.where(reach > -0.055, halo * 0.9, 0))
    solid = np.take(fade.astype(np.float32), index)
    out = cv2.blendLinear(disc, sky, solid, 1 - solid)
    earth = np.array([toward[0], toward[1], rng.uniform(-0.3, 0.8)], np.float32)
    return Background(out, "limb", earth / np.linalg.norm(earth))


def background(rng: np.random.Generator, seed: int, size: int) -> Background:
    """A background for one frame.

    Args:
        rng: The frame's own generator.
        seed: Of the data set; picks the textures.
        size: Width and height in pixels.
    """
    lot = rng.random()
    if lot < 0.24:
        return _earth(rng, seed, size)
    if lot < 0.56:
        return _limb(rng, seed, size)
    return Background(_sky(rng, seed, size), "stars", None)
