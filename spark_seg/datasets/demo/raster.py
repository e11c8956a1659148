"""A z-buffer for convex polygons: which face shows at each pixel, and how near it is.

Each polygon is filled by OpenCV into a scratch mask of its own small rectangle; inverse depth,
which is affine over the screen for a plane, decides per pixel, so faces may intersect.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from spark_seg.datasets.demo.geometry import Mesh

_SHIFT = 4  # sub-pixel bits of cv2.fillConvexPoly


@dataclass(frozen=True)
class Soup:
    """A mesh placed in some view, its rods turned into strips that face the viewer.

    Attributes:
        verts: float32 [V, 3] in view coordinates (x right, y down, z away).
        faces: int32 [F, N]; the mesh's faces first, then one strip per rod.
        material, label: [F].
        origin, uaxis, vaxis, normal, nu, nv: float32 [F, 3] in view coordinates.
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


def place(mesh: Mesh, rotation: np.ndarray, distance: float, pixel: float) -> Soup:
    """Turns the mesh and puts it `distance` metres away.

    Args:
        mesh: The craft.
        rotation: [3, 3], craft to view.
        distance: Metres along z; `inf` for a parallel view (the sun's), which keeps z about the
            craft.
        pixel: Size of a pixel over its distance (or in metres in a parallel view): the least width
            of a rod.
    """
    rot = rotation.astype(np.float32)
    parallel = not np.isfinite(distance)
    shift = np.array([0, 0, 0 if parallel else distance], np.float32)
    verts = mesh.verts @ rot.T + shift
    if not len(mesh.rods):
        d = [a @ rot.T for a in (mesh.uaxis, mesh.vaxis, mesh.normal, mesh.nu, mesh.nv)]
        return Soup(verts, mesh.faces, mesh.material, mesh.label, mesh.origin @ rot.T + shift, *d)
    p, q = verts[mesh.rods[:, 0]], verts[mesh.rods[:, 1]]
    look = np.array([0, 0, 1], np.float32) if parallel else (p + q) / 2
    along = q - p
    across = np.cross(along, look)
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-9)
    along = along / np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    facing = np.cross(along, across)
    flip = np.where((facing * look).sum(1, keepdims=True) > 0, -1, 1).astype(np.float32)
    across, facing = across * flip, facing * flip
    near = np.ones((len(p), 1), np.float32) if parallel else ((p + q) / 2)[:, 2:]
    half = np.maximum(mesh.rod_radius[:, None], 0.5 * pixel * near).astype(np.float32)
    off = across * half
    strip = np.stack([p - off, q - off, q + off, p + off], 1)
    n, r = len(verts), len(p)
    index = n + np.arange(4 * r).reshape(r, 4)
    index = np.concatenate([index, np.repeat(index[:, 3:], mesh.faces.shape[1] - 4, 1)], 1)
    cat = np.concatenate
    return Soup(
        verts=cat([verts, strip.reshape(-1, 3)]).astype(np.float32),
        faces=cat([mesh.faces, index.astype(np.int32)]),
        material=cat([mesh.material, mesh.rod_material]),
        label=cat([mesh.label, np.ones(r, np.uint8)]),
        origin=cat([mesh.origin @ rot.T + shift, p]).astype(np.float32),
        uaxis=cat([mesh.uaxis @ rot.T, along]).astype(np.float32),
        vaxis=cat([mesh.vaxis @ rot.T, across]).astype(np.float32),
        normal=cat([mesh.normal @ rot.T, facing]).astype(np.float32),
        nu=cat([mesh.nu @ rot.T, np.zeros((r, 3), np.float32)]).astype(np.float32),
        nv=cat([mesh.nv @ rot.T, across / half * 0.8]).astype(np.float32),
    )


def zbuffer(
    soup: Soup,
    shape: tuple[int, int],
    focal: float,
    centre: tuple[float, float],
    parallel: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the soup.

    Args:
        soup: Faces in view coordinates.
        shape: (height, width) of the window in pixels.
        focal: Pixels per unit of x/z; in a parallel view, pixels per metre.
        centre: (x, y) of the optical axis in the window; pixel i spans i-0.5 .. i+0.5.
        parallel: Whether rays are parallel to z (nearness is then -z).

    Returns:
        (face int16 [H, W], -1 where nothing is; nearness float32 [H, W]: 1/z, or -z in a parallel
        view).
    """
    height, width = shape
    v = soup.verts
    scale = np.full(len(v), focal, np.float32) if parallel else focal / v[:, 2]
    xy = np.stack([v[:, 0] * scale + centre[0], v[:, 1] * scale + centre[1]], 1)
    poly = xy[soup.faces]  # F N 2
    # Planes through the corners; the smoothed normals are for the light only.
    flat = np.cross(soup.uaxis, soup.vaxis)
    d = (flat * v[soup.faces[:, 0]]).sum(1)
    front = (flat[:, 2] if parallel else d) < -1e-6
    lo = np.floor(poly.min(1)).astype(int)
    hi = np.ceil(poly.max(1)).astype(int) + 1
    lo = np.maximum(lo, 0)
    hi = np.minimum(hi, [width, height])
    seen = np.flatnonzero(front & (lo < hi).all(1))

    if parallel:
        nz = np.where(np.abs(flat[:, 2]) < 1e-6, 1e-6, flat[:, 2])
        a, b = flat[:, 0] / nz / focal, flat[:, 1] / nz / focal
        c = -d / nz - a * centre[0] - b * centre[1]
        near = -v[:, 2][soup.faces]
    else:
        d = np.where(np.abs(d) < 1e-6, 1e-6, d)
        a, b = flat[:, 0] / d / focal, flat[:, 1] / d / focal
        c = flat[:, 2] / d - a * centre[0] - b * centre[1]
        near = 1 / v[:, 2][soup.faces]
    low, high = near.min(1), near.max(1)

    face = np.full(shape, -1, np.int16)
    best = np.full(shape, -np.inf if parallel else 0, np.float32)
    cols, rows = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    fixed = np.round((poly - lo[:, None]) * (1 << _SHIFT)).astype(np.int32)
    for k in seen:
        x0, y0, x1, y1 = lo[k, 0], lo[k, 1], hi[k, 0], hi[k, 1]
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        cv2.fillConvexPoly(mask, fixed[k], 1, cv2.LINE_8, _SHIFT)
        depth = (a[k] * cols[x0:x1])[None] + (b[k] * rows[y0:y1] + c[k])[:, None]
        # The filled outline reaches half a pixel past the polygon, where a steep plane runs far
        # off.
        np.clip(depth, low[k], high[k], out=depth)
        spot = best[y0:y1, x0:x1]
        win = (depth > spot) & mask.view(bool)
        np.copyto(spot, depth, where=win)
        np.copyto(face[y0:y1, x0:x1], np.int16(k), where=win)
    return face, best
