"""The small spacecraft: Cheops, an Earth observer and the Proba family. Metres, simplified."""

from math import cos, pi, sin

import numpy as np

from spark_seg.datasets.demo.geometry import Builder, Mesh, frame
from spark_seg.datasets.demo.materials import INDEX as M


def cheops() -> Mesh:
    """A short hexagon behind a sunshield of three panels, a telescope with an open lid."""
    b = Builder()
    b.prism(
        6,
        (0.66, 0.66),
        (-0.55, 0.45),
        M["blue_white"],
        (M["grey_foil"], M["blue_white"]),
        turn=pi / 6,
    )
    # The sunshield: one panel square to -y and two that fold round the body.
    for k, turn in enumerate((-pi / 3, 0.0, pi / 3)):
        n = np.array([sin(turn), -cos(turn), 0.0])
        at = frame(n * 0.70, z=n, x=(0, 0, 1))
        width = 0.86 if k == 1 else 0.80
        b.panel((0.05, 0, 0), (1.35, width), at, M["cells_big"], M["gold"], M["gold"], 0.04, 0.025)
    # The telescope: baffle, dark bore, and its lid on a hinge.
    b.prism(
        16,
        (0.30, 0.30),
        (0.45, 1.15),
        M["light_grey"],
        smooth=True,
        at=frame((0, 0.12, 0)),
        inner=M["black"],
    )
    b.prism(
        16,
        (0.33, 0.33),
        (1.08, 1.15),
        M["white"],
        smooth=True,
        at=frame((0, 0.12, 0)),
        inner=M["black"],
    )
    b.prism(16, (0.28, 0.28), (0.6, 0.62), M["black"], (None, M["lens"]), at=frame((0, 0.12, 0)))
    lid = frame((0, 0.78, 1.42), z=(0, 0.85, 0.5))
    b.prism(18, (0.34, 0.34), (-0.02, 0.02), M["gold"], (M["blue_white"], M["blue_white"]), at=lid)
    b.rod((0, 0.42, 1.12), (0, 0.62, 1.28), 0.03, M["metal"])
    b.prism(18, (0.46, 0.42), (-0.75, -0.55), M["light_grey"], (M["blue_white"], None), smooth=True)
    for i, t in enumerate((pi / 3, pi / 2, 5 * pi / 6)):
        at = frame((0.57 * cos(t), 0.57 * sin(t), 0), z=(cos(t), sin(t), 0), x=(0, 0, 1))
        b.clutter(
            at,
            (0.8, 0.5),
            7,
            [M[x] for x in ("white", "blue_white", "metal", "black")],
            10 + i,
            0.17,
        )
    b.box((0, 0.59, -0.05), (0.34, 0.06, 0.4), M["white"])
    for x in (-0.36, 0.36):
        b.prism(
            10,
            (0.09, 0.12),
            (0, 0.3),
            M["white"],
            smooth=True,
            inner=M["black"],
            at=frame((x, 0.3, 0.42), z=(x, 0.8, 1)),
        )
    b.clutter(frame((0, 0, 0.45)), (0.8, 0.8), 8, [M["white"], M["metal"], M["gold"]], 20, 0.14)
    return b.mesh()


def observation_sat() -> Mesh:
    """A tall Earth observer: a long instrument box, a radar plate, two square wings."""
    b = Builder()
    b.box(
        (0, 0, 0), (1.4, 1.5, 2.7), M["gold"], nx=M["grey_foil"], pz=M["black_foil"], nz=M["metal"]
    )
    b.box((0.75, 0, -0.2), (0.14, 1.3, 2.1), M["radiator"])
    b.box((0, 0, 1.55), (0.9, 0.9, 0.5), M["light_grey"])
    b.prism(
        16,
        (0.36, 0.40),
        (0, 0.6),
        M["light_grey"],
        smooth=True,
        at=frame((-0.2, 0.1, 1.8)),
        inner=M["black"],
    )
    b.prism(
        12,
        (0.2, 0.2),
        (0, 0.5),
        M["gold"],
        (None, M["black"]),
        True,
        at=frame((-0.7, 0.3, 0.5), z=(-1, 0, 0)),
    )
    for sign in (1, -1):
        at = frame((0, 0.75 * sign, 0.3), z=(1, 0, 0.25), x=(0, sign, 0))
        b.wing(at, 2, (1.4, 1.9), 0.05, 0.5, M["cells_blue"], M["grey_back"], M["metal"])
    b.dish(
        0.3,
        0.09,
        M["white"],
        M["grey_foil"],
        frame((-0.72, -0.35, -0.8), z=(-1, 0, -0.2)),
        rings=2,
        sides=12,
    )
    b.rod((-0.6, 0.5, -1.3), (-0.9, 0.7, -2.6), 0.02, M["metal"])
    b.prism(16, (0.5, 0.5), (-1.5, -1.35), M["metal"], smooth=True, inner=M["dark_metal"])
    parts = [M[n] for n in ("gold", "white", "black_foil", "metal")]
    b.clutter(frame((-0.7, 0, 0), z=(-1, 0, 0)), (2.4, 1.3), 16, parts, 30, 0.28)
    for i, y in enumerate((1, -1)):
        b.clutter(frame((0, 0.75 * y, -0.5), z=(0, y, 0)), (1.2, 1.4), 7, parts, 31 + i, 0.25)
    return b.mesh()


def proba2() -> Mesh:
    """A little box, a panel on its face and one folded out on each side, instruments on top."""
    b = Builder()
    b.box(
        (0, 0, 0),
        (0.62, 0.7, 0.85),
        M["black_foil"],
        px=M["grey_back"],
        pz=M["dark_metal"],
        nx=M["grey_foil"],
    )
    at = frame((0.315, 0, 0), z=(1, 0, 0), x=(0, 0, 1))
    b.panel(
        (-0.24, 0, 0.01), (0.30, 0.6), at, M["cells_blue"], M["black"], M["kapton"], 0.02, 0.015
    )
    for sign in (1, -1):
        b.panel(
            (0.0, 0.60 * sign, 0),
            (0.8, 0.42),
            at,
            M["cells_blue"],
            M["grey_back"],
            M["kapton"],
            0.02,
            0.014,
        )
        for z in (-0.3, 0.3):
            b.box((0.31, 0.37 * sign, z), (0.03, 0.06, 0.05), M["metal"])
    b.prism(
        12,
        (0.10, 0.10),
        (0.42, 0.62),
        M["white"],
        (None, M["lens"]),
        True,
        at=frame((0.05, 0.18, 0)),
    )
    b.prism(
        12,
        (0.07, 0.09),
        (0.42, 0.6),
        M["copper"],
        (None, M["black"]),
        True,
        at=frame((-0.1, -0.2, 0)),
    )
    b.prism(
        12,
        (0.09, 0.09),
        (0.42, 0.58),
        M["metal"],
        (None, M["lens"]),
        True,
        at=frame((0.18, -0.1, 0)),
    )
    b.prism(14, (0.2, 0.2), (-0.5, -0.42), M["metal"], smooth=True, inner=M["dark_metal"])
    b.rod((0.2, 0.3, 0.42), (0.35, 0.55, 0.85), 0.008, M["gold"])
    b.box((0.36, 0.56, 0.87), (0.05, 0.05, 0.05), M["gold"])
    b.rod((-0.25, -0.25, -0.42), (-0.55, -0.4, -0.8), 0.006, M["gold"])
    parts = [M[n] for n in ("white", "black_foil", "metal", "copper", "light_grey")]
    b.clutter(frame((-0.31, 0, 0), z=(-1, 0, 0)), (0.75, 0.6), 12, parts, 50, 0.14)
    b.clutter(frame((0.31, 0, 0.2), z=(1, 0, 0)), (0.5, 0.3), 8, parts, 51, 0.10)
    b.clutter(frame((0, 0, 0.425)), (0.5, 0.6), 6, parts, 52, 0.1)
    for i, y in enumerate((1, -1)):
        b.clutter(frame((-0.05, 0.35 * y, 0), z=(0, y, 0)), (0.7, 0.4), 7, parts, 53 + i, 0.13)
    return b.mesh()


def proba3() -> Mesh:
    """The coronagraph: a black box with a round white instrument and a wing on one side only."""
    b = Builder()
    b.box((0, 0, 0), (1.05, 1.1, 1.5), M["black_foil"], nz=M["composite"])
    at = frame((0.45, 0.55, -0.35), z=(1, 0.15, 0), x=(0, 1, 0))
    b.wing(at, 1, (1.6, 0.96), 0.0, 0.22, M["cells_violet"], M["grey_back"], M["light_grey"], 0.012)
    b.prism(
        20,
        (0.36, 0.34),
        (0, 0.22),
        M["white"],
        smooth=True,
        at=frame((0.52, 0, 0.1), z=(1, 0, 0)),
        inner=M["light_grey"],
    )
    b.prism(
        20,
        (0.30, 0.30),
        (0, 0.08),
        M["light_grey"],
        (None, M["white"]),
        at=frame((0.52, 0, 0.1), z=(1, 0, 0)),
    )
    for y in (0.25, 0.48):
        b.prism(
            12,
            (0.11, 0.13),
            (0, 0.42),
            M["white"],
            (None, M["black"]),
            True,
            at=frame((0.2, y, 0.72), z=(0.3, 0, 1)),
        )
    b.dish(
        0.26, 0.10, M["white"], M["white"], frame((0, -0.56, 0.2), z=(0, -1, 0)), rings=2, sides=14
    )
    b.box((0, -0.56, -0.4), (0.3, 0.03, 0.3), M["white"])
    parts = [M[n] for n in ("white", "black", "copper", "black_foil", "light_grey")]
    sides = ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1))
    for i, n in enumerate(sides):
        off = 0.525 if n[0] else 0.55 if n[1] else 0.75
        b.clutter(frame(off * np.asarray(n), z=n), (0.95, 0.95), 11, parts, 70 + i, 0.16)
    for x in (-0.45, 0.45):
        for y in (-0.48, 0.48):
            b.prism(
                8,
                (0.05, 0.08),
                (0, 0.14),
                M["metal"],
                smooth=True,
                inner=M["black"],
                at=frame((x, y, -0.75), z=(x, y, -1)),
            )
    return b.mesh()


def proba3_occulter() -> Mesh:
    """The occulter: a flat box behind a round shield wider than itself, one side clad in cells."""
    b = Builder()
    b.box((0, 0, 0), (0.95, 0.95, 0.95), M["black_foil"], nx=M["black"])
    b.prism(28, (0.70, 0.70), (0.50, 0.54), M["dark_metal"], (M["composite"], M["black"]))
    b.prism(28, (0.66, 0.70), (0.40, 0.50), M["black_foil"], smooth=True)
    at = frame((0.48, 0, -0.03), z=(1, 0, 0), x=(0, 0, 1))
    b.panel(
        (0, 0, 0.03), (0.78, 0.82), at, M["cells_violet"], M["black"], M["light_grey"], 0.03, 0.02
    )
    b.box((0, 0.485, 0.2), (0.45, 0.02, 0.22), M["white"])
    b.box((0.1, -0.485, 0.2), (0.3, 0.02, 0.28), M["white"])
    for x in (-0.3, 0.0, 0.3):
        b.box((x, 0.2, -0.55), (0.12, 0.4, 0.18), M["black"])
        b.prism(
            10,
            (0.06, 0.09),
            (0, 0.12),
            M["white"],
            smooth=True,
            inner=M["black"],
            at=frame((x, -0.25, -0.48), z=(0, 0, -1)),
        )
    parts = [M[n] for n in ("white", "black", "light_grey", "copper", "black_foil")]
    b.clutter(frame((0, 0, 0.54)), (0.85, 0.85), 8, parts, 90, 0.12)
    b.clutter(frame((-0.475, 0, 0), z=(-1, 0, 0)), (0.85, 0.85), 12, parts, 91, 0.15)
    for i, y in enumerate((1, -1)):
        b.clutter(frame((0, 0.475 * y, -0.1), z=(0, y, 0)), (0.8, 0.6), 8, parts, 92 + i, 0.12)
    b.rod((0.3, 0.3, -0.47), (0.42, 0.5, -0.85), 0.008, M["white"])
    return b.mesh()
