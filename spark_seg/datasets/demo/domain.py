"""A second domain of rendered frames: the same craft and poses, another look.

Training on rendered frames and testing on real ones meets a camera, materials and light that the renderer does not
have. `hard` stands for that step: every frame has materials of its own (colours, gloss, crinkles, grids), a wider range
of sun and shade, other land, clouds and stars behind, and a worse camera (exposure, colour cast, vignetting, blur,
floor, grain). What it changes is drawn from a generator of its own, so that frame i of both domains has one geometry,
one kind of background and one truth.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from spark_seg.datasets.demo.effects import grain, lift
from spark_seg.datasets.demo.materials import Table, table
from spark_seg.datasets.demo.shade import Light

DOMAINS = ("standard", "hard")
OTHER_TEXTURES = 1_000_003  # added to the seed that land, clouds, Milky Way and grain are made from


@dataclass(frozen=True)
class Camera:
    """What the camera does to a frame after bloom and glare.

    Attributes:
        floor: Grey level that black is raised to.
        deviation: Of the grain, grey levels.
        blur: Sigma in pixels of a 1024 px frame, on top of the lens'; 0 for none.
        gain: Exposure of each channel, blue first.
        dark_corners: Share of light that the corners lose.
    """

    floor: float
    deviation: float
    blur: float = 0.0
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    dark_corners: float = 0.0


def hard_camera(rng: np.random.Generator) -> Camera:
    """A worse one, of another make in every frame."""
    gain = np.exp(rng.normal(0, 0.30)) * np.exp(rng.normal(0, 0.10, 3))
    return Camera(
        floor=rng.uniform(2, 64),
        deviation=float(np.exp(rng.uniform(np.log(1.5), np.log(14)))),
        blur=rng.uniform(0.5, 2.4) if rng.random() < 0.5 else 0.0,
        gain=(float(gain[0]), float(gain[1]), float(gain[2])),
        dark_corners=rng.uniform(0.1, 0.6) if rng.random() < 0.5 else 0.0,
    )


def hard_materials(rng: np.random.Generator) -> Table:
    """The materials with colours, highlights, crinkles and grids drawn anew about their own."""
    usual = table()
    count = len(usual.albedo)

    def factor(spread: float, *columns: int) -> np.ndarray:
        return np.exp(rng.normal(0, spread, (count, *columns))).astype(np.float32)

    scalars = usual.scalars.copy()
    scalars[:, 0] *= factor(0.6)  # strength of the highlight
    scalars[:, 1] *= factor(0.4)  # its sharpness
    scalars[:, 2] = np.minimum(scalars[:, 2] * factor(0.6), 0.6)  # crinkles
    scalars[:, 3] *= factor(0.5)  # their size
    colour = factor(0.45, 1) * factor(0.22, 3)
    return replace(
        usual,
        albedo=np.minimum(usual.albedo * colour, 0.9),
        line=np.minimum(usual.line * factor(0.5, 1) * factor(0.15, 3), 0.9),
        scalars=scalars,
        pitch=usual.pitch * factor(0.4, 2),
        width=usual.width * factor(0.4),
    )


def hard_light(rng: np.random.Generator, light: Light) -> Light:
    """The same sun, from glaring to none; more or less of what fills the shadows."""
    sunlight = light.sunlight * float(np.exp(rng.normal(0, 0.6)))
    if rng.random() < 0.15:
        sunlight = 0.0
    fill = float(np.exp(rng.normal(0, 0.7)))
    shine = (light.earthshine * float(np.exp(rng.normal(0, 0.5)))).astype(np.float32)
    return replace(light, sunlight=sunlight, ambient=light.ambient * fill, earthshine=shine)


def expose(image: np.ndarray, camera: Camera, rng: np.random.Generator, seed: int) -> np.ndarray:
    """What the camera makes of the light: uint8 [S, S, 3], blue first, in and out."""
    size = image.shape[0]
    if camera.gain != (1.0, 1.0, 1.0):
        levels = np.arange(256)[:, None] * np.array(camera.gain)
        image = cv2.LUT(image, np.clip(levels, 0, 255).astype(np.uint8).reshape(256, 1, 3))
    if camera.dark_corners:
        at = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
        from_middle = (at[None] ** 2 + at[:, None] ** 2) / 2
        kept = (1 - camera.dark_corners * from_middle).astype(np.float32)
        image = cv2.blendLinear(image, np.zeros_like(image), kept, 1 - kept)
    sigma = camera.blur * size / 1024
    if sigma >= 0.25:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    return grain(lift(image, camera.floor), rng, seed, camera.deviation)
