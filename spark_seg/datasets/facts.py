"""What is known of SPARK 2024's labelled part, to hold a copy of it against."""

SIDE = 1024
"""Width and height of every frame in pixels."""

FRAMES = {"train": 6000, "val": 2000}
"""Frames of each of the ten satellites."""

SHARES = {
    "VenusExpress": (1.88, 1.36),
    "Cheops": (4.22, 2.32),
    "LisaPathfinder": (3.71, 1.23),
    "ObservationSat1": (4.46, 2.30),
    "Proba2": (5.47, 1.54),
    "Proba3": (5.85, 1.27),
    "Proba3ocs": (4.03, 0.59),
    "Smart1": (0.91, 0.55),
    "Soho": (1.62, 0.46),
    "XMM Newton": (3.81, 0.77),
}
"""Percent of the validation split's pixels that are body and panel."""
