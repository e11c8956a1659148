"""Spacecraft as convex polygons: the builder that the craft are written with, and its mesh.

Lengths are metres. Every polygon carries its material, its class (body or panel), a texture frame
(origin, two unit axes) and a normal that may vary linearly over the polygon, `n + u nu + v nv`, so
that a sixteen-sided tube shades like a round one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

BODY, PANEL = 1, 2


@dataclass(frozen=True)
class Mesh:
    """A craft, centred on its bounding box.

    Attributes:
        verts: float32 [V, 3].
        faces: int32 [F, N], vertex numbers anticlockwise from outside; the last one repeated as
            padding.
        material, label: int [F].
        origin, uaxis, vaxis, normal, nu, nv: float32 [F, 3].
        area: float32 [F], m^2.
        rods: int32 [R, 2], vertex numbers of the ends of thin round members.
        rod_radius: float32 [R]; rod_material: int [R]. Rods are always body.
        radius: of the bounding sphere.
    """

    verts: np.ndarray
    faces: np.ndarray
    material: np.ndarray
    label: np.ndarray
    origin: np.ndarray
    uaxis: np.ndarray
    vaxis: np.ndarray
    normal: np.ndarray
    nu: np.ndarray
    nv: np.ndarray
    area: np.ndarray
    rods: np.ndarray
    rod_radius: np.ndarray
    rod_material: np.ndarray
    radius: float


@dataclass(frozen=True)
class Frame:
    """A placed coordinate frame: local (x, y, z) -> origin + rotation @ (x, y, z)."""

    origin: np.ndarray
    rotation: np.ndarray

    def __call__(self, points: ArrayLike) -> np.ndarray:
        """Points [N, 3] of this frame in the craft's own."""
        return np.asarray(points, float) @ self.rotation.T + self.origin


def unit(v: ArrayLike) -> np.ndarray:
    """The vector(s) scaled to length one, along the last axis."""
    v = np.asarray(v, float)
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12)


def frame(origin: ArrayLike, z: ArrayLike = (0, 0, 1), x: ArrayLike | None = None) -> Frame:
    """A frame whose z axis points along `z` and whose x axis is the part of `x` square to it."""
    zz = unit(z)
    xx = np.asarray(x if x is not None else ((1, 0, 0) if abs(zz[0]) < 0.9 else (0, 1, 0)), float)
    xx = unit(xx - zz * (xx @ zz))
    return Frame(np.asarray(origin, float), np.stack([xx, np.cross(zz, xx), zz], 1))


HOME = frame((0, 0, 0))


class Builder:
    """Collects solids; `mesh()` ends it. Angles are radians, sizes full widths in metres."""

    def __init__(self) -> None:
        self._verts: list[np.ndarray] = []
        self._count = 0
        self._faces: list[list[int]] = []
        self._material: list[int] = []
        self._label: list[int] = []
        self._frames: list[np.ndarray] = []  # each [7, 3]: origin u v n nu nv (area 0 0)
        self._rods: list[tuple[int, int, float, int]] = []

    def _add(self, points: np.ndarray) -> int:
        first = self._count
        self._verts.append(points)
        self._count += len(points)
        return first

    def poly(
        self,
        points: ArrayLike,
        material: int,
        label: int = BODY,
        inside: ArrayLike | None = None,
        normals: ArrayLike | None = None,
        back: int | None = None,
        at: Frame = HOME,
    ) -> None:
        """A convex polygon [N, 3]. `inside`: a point behind it, which settles the side it shows.

        `normals` [N, 3] at the corners make it shade smoothly. `back`: material of the other side,
        which is then drawn too, always as body.
        """
        p = at(points)
        fan = p[1:] - p[0]
        n = np.cross(fan[:-1], fan[1:]).sum(0)
        area = float(np.linalg.norm(n)) / 2
        if area < 1e-9:
            return
        n = unit(n)
        vn = None if normals is None else np.asarray(normals, float) @ at.rotation.T
        if inside is not None and n @ (p.mean(0) - at(np.asarray(inside, float)[None])[0]) < 0:
            p, n = p[::-1], -n
            vn = None if vn is None else vn[::-1]
        u = unit(p[1] - p[0])
        v = np.cross(n, u)
        o = p[0]
        lin = np.stack([n, np.zeros(3), np.zeros(3)])
        if vn is not None:
            a = np.stack([np.ones(len(p)), (p - o) @ u, (p - o) @ v], 1)
            lin = np.linalg.lstsq(a, vn, rcond=None)[0]
        first = self._add(p)
        self._faces.append(list(range(first, first + len(p))))
        self._material.append(material)
        self._label.append(label)
        self._frames.append(np.stack([o, u, v, lin[0], lin[1], lin[2], np.array([area, 0, 0])]))
        if back is not None:
            self.poly(p[::-1], back, normals=None if vn is None else -vn[::-1])

    def box(
        self,
        centre: ArrayLike,
        size: ArrayLike,
        material: int,
        at: Frame = HOME,
        **sides: int,
    ) -> None:
        """A box; `px nx py ny pz nz` name another material for one side."""
        c, h = np.asarray(centre, float), np.asarray(size, float) / 2
        for axis in range(3):
            b, d = (axis + 1) % 3, (axis + 2) % 3
            for sign, name in ((1, "p"), (-1, "n")):
                corners = np.zeros((4, 3))
                corners[:, axis] = sign * h[axis]
                corners[:, b] = h[b] * np.array([-1, 1, 1, -1])
                corners[:, d] = h[d] * np.array([-1, -1, 1, 1])
                self.poly(c + corners, sides.get(name + "xyz"[axis], material), inside=c, at=at)

    def prism(
        self,
        sides: int,
        radii: tuple[float, float],
        z: tuple[float, float],
        material: int,
        caps: tuple[int | None, int | None] = (None, None),
        smooth: bool = False,
        at: Frame = HOME,
        turn: float = 0.0,
        cap_label: int = BODY,
        inner: int | None = None,
    ) -> None:
        """A prism, tube or cone along z. `caps`: materials of its two ends, None leaves one open.

        `cap_label` is the upper end's class; `inner` the material seen from inside an open one.
        """
        ang = turn + np.arange(sides) * 2 * np.pi / sides
        ring = np.stack([np.cos(ang), np.sin(ang), np.zeros(sides)], 1)
        low, high = ring * radii[0] + [0, 0, z[0]], ring * radii[1] + [0, 0, z[1]]
        slope = (radii[0] - radii[1]) / max(abs(z[1] - z[0]), 1e-9)
        vn = unit(ring + np.array([0, 0, slope]))
        mid = (0.0, 0.0, (z[0] + z[1]) / 2)
        for i in range(sides):
            j = (i + 1) % sides
            quad = np.array([low[i], low[j], high[j], high[i]])
            normals = vn[[i, j, j, i]] if smooth else None
            self.poly(quad, material, inside=mid, normals=normals, back=inner, at=at)
        for cap, points, label in ((caps[0], low, BODY), (caps[1], high, cap_label)):
            if cap is not None:
                self.poly(points, cap, label, inside=mid, at=at)

    def dish(
        self,
        radius: float,
        depth: float,
        front: int,
        rear: int,
        at: Frame,
        rings: int = 3,
        sides: int = 16,
    ) -> None:
        """A paraboloid that opens along the frame's z, its pole at the origin."""
        ang = np.arange(sides) * 2 * np.pi / sides
        ring = np.stack([np.cos(ang), np.sin(ang)], 1)
        r = radius * np.arange(rings + 1) / rings
        k = depth / radius**2
        for a, b in pairwise(r):
            for i in range(sides):
                j = (i + 1) % sides
                pts, nrm = [], []
                for rad, m in ((a, i), (b, i), (b, j), (a, j)):
                    xy = ring[m] * rad
                    pts.append([*xy, k * rad**2])
                    nrm.append(unit([*(-2 * k * xy), 1.0]))
                if a == 0:
                    pts, nrm = pts[:3], nrm[:3]
                self.poly(pts, front, inside=(0, 0, -1e3), normals=nrm, back=rear, at=at)

    def dome(
        self,
        radius: float,
        height: float,
        material: int,
        at: Frame,
        rings: int = 3,
        sides: int = 12,
    ) -> None:
        """Half an ellipsoid standing on the frame's xy plane."""
        ang = np.arange(sides) * 2 * np.pi / sides
        lat = np.linspace(0, np.pi / 2, rings + 1)
        for a, b in pairwise(lat):
            for i in range(sides):
                j = (i + 1) % sides
                corner = [(a, ang[i]), (a, ang[j]), (b, ang[j]), (b, ang[i])]
                if b == lat[-1]:
                    corner = corner[:3]
                pts = np.array(
                    [
                        [
                            radius * np.cos(t) * np.cos(f),
                            radius * np.cos(t) * np.sin(f),
                            height * np.sin(t),
                        ]
                        for t, f in corner
                    ]
                )
                self.poly(
                    pts,
                    material,
                    inside=(0, 0, 0),
                    normals=unit(pts / [radius, radius, height]),
                    at=at,
                )

    def rod(
        self,
        start: ArrayLike,
        end: ArrayLike,
        radius: float,
        material: int,
        at: Frame = HOME,
    ) -> None:
        """A thin round member: boom, strut, antenna. Never drawn thinner than about one pixel."""
        first = self._add(at(np.array([start, end], float)))
        self._rods.append((first, first + 1, radius, material))

    def panel(
        self,
        centre: ArrayLike,
        size: tuple[float, float],
        at: Frame,
        cells: int,
        back: int,
        edge: int,
        thick: float = 0.03,
        border: float = 0.0,
    ) -> None:
        """A flat solar panel in the frame's xy plane, cells towards +z; all else of it is body."""
        c = np.asarray(centre, float)
        self.box(c - [0, 0, thick / 2], (size[0], size[1], thick), edge, at=at, nz=back)
        w, h = size[0] / 2 - border, size[1] / 2 - border
        front = c + np.array([[-w, -h, 0.004], [w, -h, 0.004], [w, h, 0.004], [-w, h, 0.004]])
        self.poly(front, cells, PANEL, inside=c - [0, 0, 1], at=at)

    def wing(
        self,
        at: Frame,
        count: int,
        size: tuple[float, float],
        gap: float,
        yoke: float,
        cells: int,
        back: int,
        edge: int,
        border: float = 0.0,
        thick: float = 0.03,
    ) -> None:
        """Panels in a row along the frame's x, cells towards its z, on a V-shaped yoke."""
        w, h = size
        x = yoke
        for tip in (-0.3 * h, 0.3 * h):
            self.rod((0, 0, 0), (x, tip, 0), 0.025, edge, at=at)
        self.rod((x, -0.45 * h, 0), (x, 0.45 * h, 0), 0.025, edge, at=at)
        for i in range(count):
            self.panel((x + w / 2, 0, 0), (w, h), at, cells, back, edge, thick, border)
            if i < count - 1:
                for y in (-0.36 * h, 0.0, 0.36 * h):
                    self.box((x + w + gap / 2, y, -0.01), (gap + 0.06, 0.05, 0.05), edge, at=at)
            x += w + gap

    def clutter(
        self,
        at: Frame,
        size: tuple[float, float],
        count: int,
        materials: Sequence[int],
        seed: int,
        scale: float = 0.12,
    ) -> None:
        """Small boxes and cylinders strewn over a side (frame's xy plane, standing along +z)."""
        rng = np.random.default_rng(seed)
        for _ in range(count):
            x, y = (rng.random(2) - 0.5) * np.asarray(size) * 0.85
            s = scale * rng.uniform(0.35, 1.2, 3)
            m = int(materials[int(rng.integers(len(materials)))])
            spot = Frame(at([[x, y, 0]])[0], at.rotation)
            if rng.random() < 0.6:
                self.box((0, 0, s[2] * 0.3), (s[0] * 1.4, s[1], s[2] * 0.6), m, at=spot)
            else:
                self.prism(8, (s[0] / 2, s[0] / 2), (0, s[2] * 0.8), m, (None, m), True, at=spot)

    def mesh(self) -> Mesh:
        """Everything so far, centred on its bounding box."""
        verts = np.concatenate(self._verts)
        centre = (verts.min(0) + verts.max(0)) / 2
        verts = verts - centre
        n = max(map(len, self._faces))
        faces = np.array([f + [f[-1]] * (n - len(f)) for f in self._faces], np.int32)
        fr = np.stack(self._frames).astype(np.float32)
        rods = np.array([r[:2] for r in self._rods], np.int32).reshape(-1, 2)
        return Mesh(
            verts=verts.astype(np.float32),
            faces=faces,
            material=np.array(self._material, np.int32),
            label=np.array(self._label, np.uint8),
            origin=fr[:, 0] - centre.astype(np.float32),
            uaxis=fr[:, 1],
            vaxis=fr[:, 2],
            normal=fr[:, 3],
            nu=fr[:, 4],
            nv=fr[:, 5],
            area=fr[:, 6, 0],
            rods=rods,
            rod_radius=np.array([r[2] for r in self._rods], np.float32),
            rod_material=np.array([r[3] for r in self._rods], np.int32),
            radius=float(np.linalg.norm(verts, axis=1).max()),
        )
