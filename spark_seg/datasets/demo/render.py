"""One frame: image, labels and name from nothing but (seed, split, index, size)."""

from dataclasses import dataclass

import numpy as np

from spark_seg.datasets.demo.background import background
from spark_seg.datasets.demo.craft import craft
from spark_seg.datasets.demo.domain import (
    DOMAINS,
    OTHER_TEXTURES,
    expose,
    hard_camera,
    hard_light,
    hard_materials,
)
from spark_seg.datasets.demo.effects import bloom, glare, grain, lift, soften
from spark_seg.datasets.demo.geometry import BODY, PANEL, Mesh
from spark_seg.datasets.demo.materials import Table
from spark_seg.datasets.demo.raster import place, zbuffer
from spark_seg.datasets.demo.scene import Pose, sample_light, sample_pose, sun_in_view
from spark_seg.datasets.demo.shade import Light, shade
from spark_seg.datasets.layout import SATELLITES

SPLITS = ("train", "val", "test")
BACKGROUND = 0


@dataclass(frozen=True)
class Rendered:
    """A frame and its truth.

    Attributes:
        image: uint8 [S, S, 3], blue first.
        labels: uint8 [S, S] class indices.
        box: (x_min, y_min, x_max, y_max) of the craft, inclusive pixels.
        satellite: Its SPARK name.
        background: `stars`, `limb` or `earth`.
    """

    image: np.ndarray
    labels: np.ndarray
    box: tuple[int, int, int, int]
    satellite: str
    background: str


def satellite_of(index: int) -> str:
    """The craft of the frame of that index: they take turns."""
    return SATELLITES[index % len(SATELLITES)]


def box_of(labels: np.ndarray) -> tuple[int, int, int, int] | None:
    """Extent of everything that is not background, inclusive, or None where there is nothing."""
    rows, cols = np.flatnonzero(labels.any(1)), np.flatnonzero(labels.any(0))
    if not len(rows):
        return None
    return int(cols[0]), int(rows[0]), int(cols[-1]), int(rows[-1])


def render(seed: int, split: str, index: int, size: int, domain: str = DOMAINS[0]) -> Rendered:
    """Renders a frame; the same arguments always give the same pixels.

    Args:
        seed: Of the data set.
        split: `train`, `val` or `test`.
        index: Of the frame in its split; settles the craft too.
        size: Width and height in pixels. Poses and backgrounds do not depend on it.
        domain: `standard`, or `hard` for another look of the same scene (`spark_seg.datasets.demo.domain`).
    """
    name = satellite_of(index)
    mesh = craft(name)
    # One generator per concern, so that a change in one leaves the others' frames alone.
    streams = np.random.SeedSequence([seed, SPLITS.index(split), index]).spawn(5)
    geometry, behind, lamps, camera, other = (np.random.default_rng(s) for s in streams)
    hard = domain == "hard"
    materials = hard_materials(other) if hard else None
    textures = seed + OTHER_TEXTURES if hard else seed
    back = background(behind, textures, size)
    spot = None if back.kind == "earth" else sun_in_view(lamps, back.image)
    box, pose = None, None
    while box is None:  # only where a tiny craft falls between the pixels of a tiny frame
        pose = sample_pose(geometry, name, mesh)
        light = sample_light(lamps, back.kind, back.earth, spot, pose.focal)
        if hard:
            light = hard_light(other, light)
        image = back.image.copy()
        labels = draw_craft(image, mesh, pose, light, materials)
        box = box_of(labels)
    bloom(image, labels, camera)
    if spot is not None:
        glare(image, camera, spot)
    if hard:
        image = expose(soften(image, camera), hard_camera(other), other, textures)
        return Rendered(image, labels, box, name, back.kind)
    floor = camera.normal(30, 1.2) if camera.random() < 0.9 else camera.uniform(14, 28)
    image = soften(lift(image, floor), camera)
    deviation = camera.uniform(1.6, 3.4) if camera.random() < 0.85 else camera.uniform(3.4, 7.0)
    if back.kind == "earth":
        deviation *= 0.8
    image = grain(image, camera, seed, deviation)
    return Rendered(image, labels, box, name, back.kind)


def draw_craft(
    image: np.ndarray, mesh: Mesh, pose: Pose, light: Light, materials: Table | None = None
) -> np.ndarray:
    """Draws the craft into `image` [S, S, 3], antialiased, and returns the labels uint8 [S, S].

    `materials` stand in for the usual ones (`materials.table`).

    Coverage is settled on a grid twice as fine. Where the four samples of a pixel show one face
    they are shaded as one; a pixel belongs to the craft when two of the four do, and then to the
    class that most have.
    """
    size = image.shape[0]
    labels = np.zeros((size, size), np.uint8)
    focal = pose.focal * size
    soup = place(mesh, pose.rotation, pose.distance, 0.9 / focal)
    v = soup.verts
    xy = v[:, :2] * (focal / v[:, 2:]) + np.array(pose.centre, np.float32) * size
    x0, y0 = np.maximum(np.floor(xy.min(0)).astype(int) - 1, 0)
    x1, y1 = np.minimum(np.ceil(xy.max(0)).astype(int) + 2, size)
    if x0 >= x1 or y0 >= y1:
        return labels
    h, w = int(y1 - y0), int(x1 - x0)
    # In the fine grid pixel i spans i-0.5 .. i+0.5, hence the half.
    cx, cy = pose.centre
    centre = (float(cx * size - x0) * 2 - 0.5, float(cy * size - y0) * 2 - 0.5)
    face, near = zbuffer(soup, (2 * h, 2 * w), 2 * focal, centre)

    corners = [np.ascontiguousarray(face[j::2, i::2]).ravel() for j in (0, 1) for i in (0, 1)]
    same = (corners[0] == corners[1]) & (corners[1] == corners[2]) & (corners[2] == corners[3])
    whole = np.flatnonzero(same & (corners[0] >= 0))
    mixed = np.flatnonzero(~same)
    fine = np.stack([c[mixed] for c in corners], 1)  # [M, 4] faces of the mixed pixels' samples
    hit = fine >= 0
    cell, sub = np.nonzero(hit)
    part = mixed[cell]

    wx, wy = (whole % w) * 2, (whole // w) * 2
    mx, my = (part % w) * 2 + (sub & 1), (part // w) * 2 + (sub >> 1)
    px = np.concatenate([wx + 0.5, mx]).astype(np.float32)
    py = np.concatenate([wy + 0.5, my]).astype(np.float32)
    k = np.concatenate([corners[0][whole], fine[cell, sub]]).astype(np.int32)
    # 1/z is affine over a face: the mean of opposite samples is that of the middle.
    middle = (near[wy, wx] + near[wy + 1, wx + 1]) / 2
    iz = np.concatenate([middle, near[my, mx]])
    colour = shade(
        mesh, soup, k, px, py, iz, pose.rotation, pose.distance, 2 * focal, centre, light, materials
    )
    # The film's curve: a square root stands for sRGB; the shoulder keeps highlights from clipping
    # flat.
    shown = np.sqrt(np.minimum(colour, 1.0)) * 255

    window = image[y0:y1, x0:x1].reshape(-1, 3).astype(np.float32)
    window[whole] = shown[: len(whole)]
    if len(mixed):
        fringe = np.repeat(window[mixed][:, None], 4, 1)
        fringe[cell, sub] = shown[len(whole) :]
        window[mixed] = fringe.mean(1)
    image[y0:y1, x0:x1] = np.clip(window + 0.5, 0, 255).astype(np.uint8).reshape(h, w, 3)

    kind = np.zeros(h * w, np.uint8)
    kind[whole] = soup.label[corners[0][whole]]
    count = hit.sum(1)
    panel = (hit & (soup.label[fine] == PANEL)).sum(1)
    kind[mixed] = np.where(count < 2, BACKGROUND, np.where(2 * panel > count, PANEL, BODY))
    labels[y0:y1, x0:x1] = kind.reshape(h, w)
    return labels
