"""Ten spacecraft, each with the shape that one would know it by. Metres, simplified.

The boxy observatories and planetary craft are here, the small Proba family in `craft_small.py`.
"""

from collections.abc import Callable
from functools import cache
from math import cos, pi, sin

import numpy as np

from spark_seg.datasets.demo.craft_small import (
    cheops,
    observation_sat,
    proba2,
    proba3,
    proba3_occulter,
)
from spark_seg.datasets.demo.geometry import PANEL, Builder, Mesh, frame
from spark_seg.datasets.demo.materials import INDEX as M


def venus_express() -> Mesh:
    """A gold-black box with a big dish on one side and two wings of two panels."""
    b = Builder()
    b.box((0, 0, 0), (1.55, 1.7, 1.45), M["dark_gold"], py=M["black_foil"], ny=M["black_foil"])
    for sign in (1, -1):
        at = frame((0, 0.86 * sign, 0.1), z=(0.35, 0, 1), x=(0, sign, 0))
        b.wing(at, 2, (1.40, 1.62), 0.06, 0.75, M["cells_blue"], M["composite"], M["dark_metal"])
        b.box((0, sign * 0.855, -0.25), (0.9, 0.02, 0.7), M["radiator"])
    b.dish(0.72, 0.22, M["white"], M["grey_foil"], frame((0.82, 0, 0), z=(1, 0, 0)))
    for t in (0, 2.1, 4.2):
        b.rod((0.98, 0.4 * cos(t), 0.4 * sin(t)), (1.35, 0, 0), 0.015, M["metal"])
    b.prism(
        8,
        (0.1, 0.07),
        (0, 0.12),
        M["metal"],
        (None, M["metal"]),
        at=frame((1.3, 0, 0), z=(1, 0, 0)),
    )
    b.dish(
        0.28,
        0.08,
        M["white"],
        M["grey_foil"],
        frame((-0.4, 0.2, 0.74), z=(-0.3, 0, 1)),
        rings=2,
        sides=12,
    )
    b.prism(16, (0.48, 0.48), (-0.86, -0.72), M["metal"], smooth=True, inner=M["dark_metal"])
    b.prism(12, (0.22, 0.08), (-1.15, -0.72), M["dark_metal"], smooth=True, inner=M["black"])
    b.rod((-0.78, 0.5, 0.6), (-1.0, 0.6, 1.9), 0.02, M["grey_foil"])
    foil = [M[n] for n in ("dark_gold", "black_foil", "light_grey", "metal")]
    b.clutter(frame((-0.775, 0, 0), z=(-1, 0, 0)), (1.3, 1.2), 12, foil, 1, 0.28)
    b.clutter(frame((0, 0, 0.725)), (1.3, 1.4), 12, foil, 2, 0.26)
    return b.mesh()


def lisa_pathfinder() -> Mesh:
    """A squat gold octagon wearing its solar array as a lid."""
    b = Builder()
    b.prism(
        8, (0.98, 0.98), (-0.60, 0.40), M["orange"], (M["black_foil"], M["orange"]), turn=pi / 8
    )
    b.prism(
        8, (1.09, 1.09), (0.40, 0.45), M["dark_metal"], (M["composite"], M["black"]), turn=pi / 8
    )
    ang = pi / 8 + np.arange(8) * pi / 4
    lid = np.stack([1.06 * np.cos(ang), 1.06 * np.sin(ang), np.full(8, 0.455)], 1)
    # Turned so that the rows of cells run along the array.
    b.poly(lid, M["cells_dark"], PANEL, inside=(0, 0, 0))
    for x, y in ((0.0, 0.62), (0.35, 0.2), (-0.4, -0.25), (0.1, -0.6)):
        b.prism(
            8, (0.05, 0.05), (0.45, 0.50), M["orange"], (None, M["copper"]), at=frame((x, y, 0))
        )
    b.prism(20, (0.62, 0.58), (-0.78, -0.60), M["metal"], smooth=True, inner=M["dark_metal"])
    for i in range(8):
        t = i * pi / 4
        at = frame((0.906 * cos(t), 0.906 * sin(t), 0), z=(cos(t), sin(t), 0), x=(0, 0, 1))
        parts = [M[n] for n in ("orange", "gold", "white", "black_foil", "orange")]
        b.clutter(at, (0.7, 0.6), 6, parts, 40 + i, 0.14)
        if i % 3 == 0:
            b.box((0, 0, 0.02), (0.42, 0.34, 0.05), M["white"], at=at)
    for t in (0.4, 2.5, 4.6):
        at = frame((1.0 * cos(t), 1.0 * sin(t), 0.25), z=(cos(t), sin(t), 0))
        b.box((0, 0, 0.08), (0.34, 0.22, 0.26), M["gold"], at=at)
        for y in (-0.06, 0.06):
            b.prism(
                8,
                (0.04, 0.07),
                (0.2, 0.32),
                M["metal"],
                at=frame(at([(0, y, 0)])[0], z=(cos(t), sin(t), 0)),
                inner=M["black"],
            )
    return b.mesh()


def smart1() -> Mesh:
    """A metre cube between two very long thin wings."""
    b = Builder()
    b.box((0, 0, 0), (1.15, 1.15, 1.15), M["black_foil"], px=M["dark_gold"], pz=M["grey_foil"])
    for sign in (1, -1):
        at = frame((0, 0.58 * sign, 0), z=(0.2, 0, 1), x=(0, sign, 0))
        b.wing(at, 3, (1.72, 0.84), 0.12, 1.0, M["cells_green"], M["grey_back"], M["dark_metal"])
    b.prism(16, (0.34, 0.30), (0.57, 0.74), M["white"], (None, M["light_grey"]), smooth=True)
    b.prism(
        12,
        (0.16, 0.22),
        (0.57, 0.82),
        M["metal"],
        smooth=True,
        inner=M["black"],
        at=frame((0, 0, 0), z=(0, 0, -1)),
    )
    b.box((0.585, 0, 0.1), (0.03, 0.8, 0.6), M["radiator"])
    b.box((-0.6, 0.2, 0.2), (0.12, 0.3, 0.3), M["black"])
    parts = [M[n] for n in ("white", "black_foil", "gold", "metal")]
    for i, z in enumerate(((1, 0, 0), (-1, 0, 0), (0, 0, 1), (0, 0, -1))):
        b.clutter(frame(0.575 * np.asarray(z), z=z), (1, 1), 9, parts, 60 + i, 0.2)
    b.rod((0.5, 0.5, 0.5), (0.9, 0.8, 1.2), 0.012, M["light_grey"])
    b.rod((-0.5, 0.4, -0.5), (-1.2, 0.6, -0.9), 0.012, M["light_grey"])
    return b.mesh()


def soho() -> Mesh:
    """A tall payload tower on a wider service module that carries two wings."""
    b = Builder()
    b.box((0, 0, -1.1), (2.1, 2.1, 1.1), M["dark_gold"], px=M["black_foil"], nz=M["grey_foil"])
    b.prism(8, (0.95, 0.95), (-0.55, 2.0), M["black_foil"], (None, M["gold"]), turn=pi / 8)
    for sign in (1, -1):
        at = frame((0, 1.05 * sign, -1.1), z=(1, 0, 0.15), x=(0, sign, 0))
        b.wing(at, 2, (1.4, 1.5), 0.08, 0.75, M["cells_blue"], M["kapton"], M["dark_gold"])
    # Telescopes that stand around the tower, looking where it points.
    for i, (t, h, r) in enumerate(
        ((0.3, 2.6, 0.22), (1.5, 2.2, 0.3), (2.7, 2.5, 0.18), (3.9, 2.75, 0.26), (5.2, 2.3, 0.2))
    ):
        at = frame((1.12 * cos(t), 1.12 * sin(t), -0.5))
        skin = (M["grey_foil"], M["gold"], M["black_foil"], M["light_grey"], M["dark_gold"])[i]
        b.prism(12, (r, r), (0, h), skin, (None, M["black"]), smooth=True, at=at)
        b.prism(
            12,
            (r * 1.12, r * 1.12),
            (h, h + 0.08),
            M["metal"],
            smooth=True,
            at=at,
            inner=M["black"],
        )
    b.box((-0.9, 0.1, 0.6), (0.3, 0.9, 1.6), M["radiator"])
    b.box((0.98, -0.1, 0.2), (0.24, 0.8, 1.2), M["dark_gold"])
    b.dish(
        0.4,
        0.12,
        M["white"],
        M["grey_foil"],
        frame((0.2, 0.1, -2.15), z=(0.5, 0, -1)),
        rings=2,
        sides=12,
    )
    b.rod((0, 0, -1.6), (0.2, 0.1, -2.15), 0.05, M["metal"])
    parts = [M[n] for n in ("gold", "black_foil", "light_grey", "grey_foil")]
    for i, z in enumerate(((1, 0, 0), (-1, 0, 0))):
        b.clutter(
            frame(np.array([0, 0, -1.1]) + 1.05 * np.asarray(z), z=z),
            (0.9, 1.9),
            10,
            parts,
            80 + i,
            0.25,
        )
    b.clutter(frame((0, 0, 2.0)), (1.2, 1.2), 10, parts, 83, 0.25)
    return b.mesh()


def xmm_newton() -> Mesh:
    """A ten-metre tube: mirrors, bus and wings at one end, the instruments at the other."""
    b = Builder()
    b.prism(20, (0.82, 0.82), (-3.2, 3.0), M["black_foil"], smooth=True)
    b.prism(
        8,
        (1.05, 1.25),
        (-4.3, -3.2),
        M["dark_metal"],
        (M["grey_foil"], M["black_foil"]),
        turn=pi / 8,
    )
    b.prism(8, (1.25, 0.82), (-3.2, -2.9), M["black_foil"], turn=pi / 8)
    b.prism(
        8, (1.55, 1.55), (3.0, 4.4), M["black_foil"], (M["black_foil"], M["grey_foil"]), turn=pi / 8
    )
    for i in range(4):
        t = pi / 8 + i * pi / 2
        at = frame(
            (1.44 * cos(t + pi / 8), 1.44 * sin(t + pi / 8), 3.75),
            z=(cos(t + pi / 8), sin(t + pi / 8), 0),
            x=(0, 0, 1),
        )
        b.box((0, 0, 0), (0.9, 0.8, 0.05), M["radiator"], at=at)
    for i in range(3):
        t = i * 2 * pi / 3 + 0.5
        at = frame((0.72 * cos(t), 0.72 * sin(t), 4.4))
        b.prism(14, (0.46, 0.46), (0, 0.5), M["gold"], smooth=True, at=at, inner=M["black"])
    b.box((0, -1.7, 4.0), (2.4, 0.08, 2.4), M["black_foil"])
    for sign in (1, -1):
        at = frame((1.45 * sign, 0, 3.7), z=(0, -1, 0), x=(sign, 0, 0))
        b.wing(
            at,
            3,
            (1.75, 1.5),
            0.06,
            0.8,
            M["cells_dark"],
            M["composite"],
            M["dark_metal"],
            thick=0.04,
        )
    parts = [M[n] for n in ("light_grey", "black_foil", "radiator", "metal")]
    for i in range(8):
        t = i * pi / 4
        n = (cos(t), sin(t), 0)
        b.clutter(
            frame((1.08 * n[0], 1.08 * n[1], -3.8), z=n, x=(0, 0, 1)),
            (0.8, 0.6),
            4,
            parts,
            100 + i,
            0.3,
        )
        b.clutter(
            frame((1.43 * n[0], 1.43 * n[1], 3.7), z=n, x=(0, 0, 1)),
            (1.0, 0.9),
            3,
            parts,
            120 + i,
            0.26,
        )
    b.rod((0.8, -1.0, -4.0), (1.6, -1.8, -4.8), 0.03, M["light_grey"])
    b.prism(
        10,
        (0.3, 0.2),
        (-4.9, -4.3),
        M["light_grey"],
        (M["black"], None),
        smooth=True,
        at=frame((0.2, -0.3, 0)),
    )
    return b.mesh()


_BUILDERS: dict[str, Callable[[], Mesh]] = {
    "VenusExpress": venus_express,
    "Cheops": cheops,
    "LisaPathfinder": lisa_pathfinder,
    "ObservationSat1": observation_sat,
    "Proba2": proba2,
    "Proba3": proba3,
    "Proba3ocs": proba3_occulter,
    "Smart1": smart1,
    "Soho": soho,
    "XMM Newton": xmm_newton,
}


@cache
def craft(name: str) -> Mesh:
    """The craft of that SPARK name. Raises KeyError for any other."""
    return _BUILDERS[name]()
