"""Light on the craft: sun with cast shadows, earthshine, a faint glow from everywhere.

Deferred shading: the z-buffer has settled which face each pixel shows, so every covered pixel is
    shaded
once, all of them in one pass of array arithmetic.
"""

from dataclasses import dataclass

import numpy as np

from spark_seg.datasets.demo.geometry import Mesh
from spark_seg.datasets.demo.materials import (
    CELLS,
    CRINKLE_SIZE,
    PLAIN,
    TILES,
    Table,
    crinkles,
    table,
)
from spark_seg.datasets.demo.raster import Soup, place, zbuffer

_SHADOW_PIXELS = 384


@dataclass(frozen=True)
class Light:
    """The light on a craft, in view coordinates (x right, y down, z away).

    Attributes:
        sun: Unit vector towards the sun; `sunlight` its strength (0: eclipse).
        earth: Unit vector towards the Earth; `earthshine` float [3], blue first.
        ambient: What reaches every surface.
    """

    sun: np.ndarray
    sunlight: float
    earth: np.ndarray
    earthshine: np.ndarray
    ambient: float


@dataclass(frozen=True)
class _ShadowMap:
    axes: np.ndarray  # [3, 3]: rows are the map's x, y and the direction away from the sun
    depth: np.ndarray
    scale: float

    def lit(self, points: np.ndarray, slant: np.ndarray) -> np.ndarray:
        """1 where the points [K, 3] (metres about the craft's centre) see the sun, else 0.

        `slant` [K]: cosine between the sun and the face; a slanting one varies in depth within a
        pixel of the map, and would shade itself in stripes if it were not forgiven that much.
        """
        half = _SHADOW_PIXELS / 2
        p = points @ self.axes.T
        ix = np.clip((p[:, 0] * self.scale + half + 0.5).astype(np.int32), 0, _SHADOW_PIXELS - 1)
        iy = np.clip((p[:, 1] * self.scale + half + 0.5).astype(np.int32), 0, _SHADOW_PIXELS - 1)
        near = self.depth[iy, ix]
        bias = (1.5 + np.minimum(1 / np.maximum(slant, 0.02), 20)) / self.scale
        return (-p[:, 2] > near - bias).astype(np.float32)


def _shadow_map(mesh: Mesh, rotation: np.ndarray, sun: np.ndarray) -> _ShadowMap:
    away = -sun
    x = np.cross(away, [0.0, 1.0, 0.0] if abs(away[1]) < 0.9 else [1.0, 0.0, 0.0])
    x /= np.linalg.norm(x)
    axes = np.stack([x, np.cross(away, x), away]).astype(np.float32)
    scale = (_SHADOW_PIXELS / 2 - 2) / mesh.radius
    soup = place(mesh, axes @ rotation, np.inf, 1 / scale)
    half = _SHADOW_PIXELS / 2
    _, depth = zbuffer(soup, (_SHADOW_PIXELS, _SHADOW_PIXELS), scale, (half, half), parallel=True)
    return _ShadowMap(axes, depth, scale)


def _lines(u: np.ndarray, pitch: np.ndarray, width: np.ndarray, foot: np.ndarray) -> np.ndarray:
    """The share of a pixel of `foot` metres that a grating's lines cover; their mean afar."""
    d = np.abs((u / pitch) % 1 - 0.5) * pitch
    sharp = np.clip(0.5 + (width / 2 - d) / foot, 0, 1) * np.minimum(width / foot, 1)
    fade = np.clip(pitch / foot * 0.4 - 0.6, 0, 1)
    return sharp * fade + width / pitch * (1 - fade)


def shade(
    mesh: Mesh,
    soup: Soup,
    k: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    near: np.ndarray,
    rotation: np.ndarray,
    distance: float,
    focal: float,
    centre: tuple[float, float],
    light: Light,
    materials: Table | None = None,
) -> np.ndarray:
    """Linear light leaving K samples of the picture.

    Args:
        mesh, soup: The craft, and the same placed in view.
        k: int32 [K], the face each sample shows.
        x, y: float32 [K], where, in pixels.
        near: float32 [K], 1/z there.
        rotation: [3, 3], craft to view; `distance`: metres.
        focal, centre: As given to `zbuffer`.
        light: Where the light comes from.
        materials: In the usual ones' place.

    Returns:
        float32 [K, 3], blue first.
    """
    tab = table() if materials is None else materials
    z = 1 / near
    pos = np.stack([(x - centre[0]) * (z / focal), (y - centre[1]) * (z / focal), z], 1)

    # u = U.(p - o): the constant part is per face.
    uo = (soup.uaxis * soup.origin).sum(1)
    vo = (soup.vaxis * soup.origin).sum(1)
    ua, va = soup.uaxis.take(k, axis=0), soup.vaxis.take(k, axis=0)
    u = np.einsum("kc,kc->k", ua, pos) - uo[k]
    v = np.einsum("kc,kc->k", va, pos) - vo[k]
    mat = soup.material[k]
    sca = tab.scalars.take(mat, axis=0)

    # Every face reads the foil at a place of its own.
    hop = (k * 97) % CRINKLE_SIZE
    step = sca[:, 3] * CRINKLE_SIZE
    iu = ((u * step).astype(np.int32) + hop) & (CRINKLE_SIZE - 1)
    iv = ((v * step).astype(np.int32) + hop * 3) & (CRINKLE_SIZE - 1)
    foil = crinkles().reshape(-1, 3).take(iv * CRINKLE_SIZE + iu, axis=0)

    tilt = foil[:, :2] * sca[:, 2:3]
    normal = soup.normal.take(k, axis=0)
    normal += u[:, None] * soup.nu.take(k, axis=0) + v[:, None] * soup.nv.take(k, axis=0)
    normal += tilt[:, :1] * ua + tilt[:, 1:] * va
    normal *= 1 / np.sqrt(np.einsum("kc,kc->k", normal, normal))[:, None]

    blotch = 1 + (0.03 + 0.5 * sca[:, 2:3]) * foil[:, 2:3]
    albedo = tab.albedo.take(mat, axis=0) * np.maximum(blotch, 0)
    _pattern(albedo, tab, mat, u, v, z / focal)

    glow = light.earthshine * (0.5 + 0.5 * (normal @ light.earth)[:, None]) + light.ambient
    colour = albedo * glow
    if light.sunlight > 0:
        facing = np.clip(normal @ light.sun, 0, None)
        # Which side of the flat face the sun is on decides too: a facet of foil behind it stays
        # dark.
        plane = np.cross(soup.uaxis, soup.vaxis) @ light.sun
        smooth = (np.abs(soup.nu).sum(1) + np.abs(soup.nv).sum(1)) > 0
        lit = (facing > 0) & ((plane > 0) | smooth)[k]
        i = np.flatnonzero(lit)
        if len(i):
            shadow = _shadow_map(mesh, rotation, light.sun)
            local = pos[i] - np.array([0, 0, distance], np.float32)
            sun = light.sunlight * shadow.lit(local, plane[k[i]])
            half = light.sun - pos[i] / z[i, None]
            half *= 1 / np.sqrt(np.einsum("kc,kc->k", half, half))[:, None]
            ndh = np.clip(np.einsum("kc,kc->k", normal[i], half), 0, 1)
            si = sca[i]
            shine = si[:, 0] * np.exp(si[:, 1] * 2 * (ndh - 1))
            tint = np.where(si[:, 4:5] > 0, np.sqrt(albedo[i]), 1.0)
            colour[i] += sun[:, None] * (
                albedo[i] * facing[i, None] + tint * (shine * facing[i] ** 0.5)[:, None]
            )
    assert colour.dtype == np.float32, "doubles creep in where a numpy scalar does"
    return colour


def _pattern(
    albedo: np.ndarray,
    tab: Table,
    mat: np.ndarray,
    u: np.ndarray,
    v: np.ndarray,
    foot: np.ndarray,
) -> None:
    """Draws grids, tiles, ribs into the albedo [K, 3], in place. `foot`: metres a pixel spans."""
    kind = tab.pattern[mat]
    i = np.flatnonzero(kind != PLAIN)
    if not len(i):
        return
    m, kind = mat[i], kind[i]
    ui, vi, fi = u[i], v[i], foot[i]
    pitch, width = tab.pitch[m], tab.width[m]
    a = _lines(ui, pitch[:, 0], width, fi)
    grid = kind != 3
    b = np.where(grid, _lines(vi, pitch[:, 1], width, fi), 0)
    cover = a + b - a * b
    cells = kind == CELLS
    # Strings of cells are parted by wider gaps, every sixth column.
    wide = _lines(ui, pitch[:, 0] * 6, width * 2.2, fi)
    cover = np.where(cells, np.maximum(cover * 0.75, wide), cover)
    # No two cells or mirror tiles have quite the same colour.
    cu, cv = (
        np.floor(ui / pitch[:, 0]).astype(np.int32),
        np.floor(vi / pitch[:, 1]).astype(np.int32),
    )
    lot = ((cu * 73856093) ^ (cv * 19349663)) & 255
    tone = np.where(cells | (kind == TILES), 0.86 + lot.astype(np.float32) / 255 * 0.28, 1.0)
    base = albedo[i] * tone[:, None]
    albedo[i] = base + (tab.line[m] - base) * cover[:, None]
