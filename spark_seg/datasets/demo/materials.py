"""What the craft are made of: one row of optical constants per material, and the foil's crinkles.

Colours are linear light (0..1), blue first as OpenCV orders them.
"""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

PLAIN, CELLS, TILES, RIBS = range(4)


@dataclass(frozen=True)
class Material:
    """Optical constants of one surface.

    Attributes:
        rgb: diffuse colour as seen on screen, 0..255 sRGB.
        spec: strength of the highlight.
        gloss: its exponent.
        crinkle: tilt of the foil's facets, radians.
        grain: metres of surface that the crinkle texture covers.
        pattern: PLAIN, CELLS (grid of dark cells), TILES (mirror tiles), RIBS (parallel
            stiffeners).
        pitch: metres between the pattern's lines along u and v.
        line: their colour, 0..255 sRGB; `width`: their width, metres.
        metal: whether the highlight takes the diffuse colour.
    """

    rgb: tuple[int, int, int]
    spec: float = 0.1
    gloss: float = 12.0
    crinkle: float = 0.0
    grain: float = 1.0
    pattern: int = PLAIN
    pitch: tuple[float, float] = (1.0, 1.0)
    line: tuple[int, int, int] = (0, 0, 0)
    width: float = 0.01
    metal: bool = False


_LIST: dict[str, Material] = {
    "gold": Material((222, 140, 38), 1.6, 14, 0.30, 1.3, metal=True),
    "orange": Material((226, 122, 44), 0.5, 8, 0.18, 1.6, metal=True),
    "dark_gold": Material((126, 82, 30), 1.1, 12, 0.32, 1.1, metal=True),
    "black_foil": Material((40, 40, 43), 0.22, 14, 0.12, 2.2),
    "black": Material((27, 27, 29), 0.05, 6),
    "grey_foil": Material((124, 126, 132), 0.6, 12, 0.14, 2.4, metal=True),
    "white": Material((236, 236, 234), 0.12, 10),
    "blue_white": Material((198, 208, 224), 0.15, 10),
    "light_grey": Material((172, 172, 176), 0.2, 10),
    "metal": Material((158, 158, 162), 1.0, 26, 0.03, 1.5, metal=True),
    "dark_metal": Material((74, 74, 78), 0.5, 18, 0.03, 1.5, metal=True),
    "radiator": Material(
        (204, 208, 214), 0.6, 30, 0.01, 1.0, TILES, (0.16, 0.16), (150, 152, 158), 0.008
    ),
    "composite": Material((48, 48, 51), 0.15, 10, 0.008, 1.0, RIBS, (0.5, 0.5), (36, 36, 38), 0.03),
    "kapton": Material((150, 92, 34), 0.35, 10, 0.08, 1.4, RIBS, (0.6, 0.6), (104, 62, 24), 0.04),
    "grey_back": Material((92, 93, 97), 0.2, 10, 0.02, 1.0, RIBS, (0.45, 0.45), (70, 70, 74), 0.03),
    "lens": Material((12, 14, 22), 1.6, 60),
    "copper": Material((168, 92, 60), 0.8, 16, 0.05, metal=True),
    "cells_blue": Material(
        (40, 44, 66), 0.55, 34, 0.015, 2.0, CELLS, (0.12, 0.08), (150, 152, 164), 0.007
    ),
    "cells_grey": Material(
        (66, 68, 84), 0.55, 26, 0.015, 2.0, CELLS, (0.08, 0.08), (182, 184, 196), 0.006
    ),
    "cells_violet": Material(
        (44, 42, 62), 0.5, 24, 0.02, 2.0, CELLS, (0.11, 0.85), (214, 212, 226), 0.012
    ),
    "cells_green": Material(
        (84, 104, 74), 0.5, 24, 0.02, 2.0, CELLS, (0.26, 0.20), (196, 202, 146), 0.014
    ),
    "cells_dark": Material(
        (31, 32, 38), 0.4, 24, 0.01, 2.0, CELLS, (0.10, 0.10), (78, 80, 88), 0.007
    ),
    "cells_big": Material(
        (50, 56, 92), 0.55, 30, 0.015, 2.0, CELLS, (0.22, 0.14), (176, 178, 190), 0.012
    ),
}

MATERIALS = tuple(_LIST.values())
INDEX = {name: i for i, name in enumerate(_LIST)}


def _linear(rgb: tuple[int, int, int]) -> list[float]:
    # The renderer's tone curve is a square root, so its inverse is a square.
    return [(c / 255.0) ** 2 for c in reversed(rgb)]


@dataclass(frozen=True)
class Table:
    """The materials as arrays, one row each (M rows), float32."""

    albedo: np.ndarray
    line: np.ndarray
    scalars: np.ndarray  # spec, gloss, crinkle, 1/grain, metal
    pattern: np.ndarray
    pitch: np.ndarray
    width: np.ndarray


@cache
def table() -> Table:
    """The material table in the form that the shader gathers from."""
    m = MATERIALS
    return Table(
        albedo=np.array([_linear(x.rgb) for x in m], np.float32),
        line=np.array([_linear(x.line) for x in m], np.float32),
        scalars=np.array(
            [(x.spec, x.gloss, x.crinkle, 1 / x.grain, x.metal) for x in m], np.float32
        ),
        pattern=np.array([x.pattern for x in m], np.int32),
        pitch=np.array([x.pitch for x in m], np.float32),
        width=np.array([x.width for x in m], np.float32),
    )


CRINKLE_SIZE = 512  # a power of two: coordinates wrap by masking


@cache
def crinkles() -> np.ndarray:
    """Tilts of crumpled foil, float32 [512, 512, 3], about -1..1: along u, along v, a blotch.

    Flat facets (a Voronoi diagram, each cell with a tilt of its own) under fine wrinkles, which is
    how multi-layer insulation glints. Wraps around at its edges.
    """
    n = CRINKLE_SIZE
    rng = np.random.default_rng(20240)
    tilt = np.zeros((n, n, 2), np.float32)
    for count, weight in ((90, 0.6), (420, 0.5), (1600, 0.3)):
        points = rng.integers(0, n, (count, 2))
        # Repeating the points around the tile makes the diagram wrap.
        free = np.full((2 * n, 2 * n), 255, np.uint8)
        for oy in (-n, 0, n):
            for ox in (-n, 0, n):
                p = points + np.array([oy + n // 2, ox + n // 2])
                p = p[((p >= 0) & (p < 2 * n)).all(1)]
                free[p[:, 0], p[:, 1]] = 0
        _, lab = cv2.distanceTransformWithLabels(
            free, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
        )
        # The copies of a point have labels of their own; its place in the tile unites them.
        ys, xs = np.nonzero(free == 0)
        own = np.zeros(int(lab.max()) + 1, np.int64)
        own[lab[ys, xs]] = ((ys - n // 2) % n) * n + (xs - n // 2) % n
        lab = lab[n // 2 : n // 2 + n, n // 2 : n // 2 + n]
        tilt += weight * rng.uniform(-1, 1, (n * n, 2)).astype(np.float32)[own[lab]]
    blotch = cv2.GaussianBlur(tilt[..., 0], (0, 0), 9, borderType=cv2.BORDER_REFLECT)
    return np.ascontiguousarray(np.dstack([tilt, blotch * 4]).astype(np.float32))
