"""How a frame is laid out: attitude, distance, place in the frame, light. No pixels yet."""

from dataclasses import dataclass

import numpy as np

from spark_seg.datasets.demo.geometry import PANEL, Mesh
from spark_seg.datasets.demo.shade import Light

# Share of the frame that the box covers, in percent: log-normal, held to the extremes of the real
# set. The cropping at the border takes a little, hence somewhat more than the real median of 9.
BOX_MEDIAN, BOX_SPREAD, BOX_LEAST, BOX_MOST = 10.3, 0.64, 0.29, 75.5
NO_PANEL = 0.175
CUT = 0.16
GLARE = 0.08

# Craft whose boxes are mostly air are seen from nearer by in the real set, and the other way round.
_FACTOR = {
    "VenusExpress": 0.8,
    "Cheops": 1.05,
    "LisaPathfinder": 0.64,
    "ObservationSat1": 1.3,
    "Proba2": 1.1,
    "Proba3": 1.05,
    "Proba3ocs": 0.72,
    "Smart1": 0.75,
    "Soho": 0.47,
    "XMM Newton": 1.3,
}


@dataclass(frozen=True)
class Pose:
    """Where a craft stands before the camera.

    Attributes:
        rotation: float32 [3, 3], craft to view (x right, y down, z away).
        distance: metres.
        focal: focal length in frame widths.
        centre: (x, y) of the optical axis in frame widths. Shifting it, rather than the craft,
            keeps the perspective of a craft seen straight on wherever it stands in the frame.
    """

    rotation: np.ndarray
    distance: float
    focal: float
    centre: tuple[float, float]


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """A rotation matrix [3, 3], all attitudes equally likely."""
    q = rng.normal(size=4)
    w, x, y, z = q / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ],
        np.float32,
    )


def _panel_share(mesh: Mesh, rotation: np.ndarray) -> float:
    """How much of the cells' area faces the camera, foreshortened; 0 where none does."""
    i = mesh.label == PANEL
    look = (mesh.normal[i] @ rotation.T)[:, 2]
    return float((np.clip(-look, 0, None) * mesh.area[i]).sum() / mesh.area[i].sum())


def _attitude(rng: np.random.Generator, mesh: Mesh) -> np.ndarray:
    """An attitude, drawn so that as many frames show no panel as in the real set."""
    hidden = rng.random() < NO_PANEL
    rotation = random_rotation(rng)
    for _ in range(60):
        share = _panel_share(mesh, rotation)
        if (share == 0) if hidden else (share > 0.06):
            break
        rotation = random_rotation(rng)
    return rotation


def _extent(
    mesh: Mesh, rotation: np.ndarray, distance: float, focal: float
) -> tuple[np.ndarray, np.ndarray]:
    """The box about the optical axis, frame widths: (low [2], high [2])."""
    v = mesh.verts @ rotation.T
    xy = v[:, :2] * (focal / (v[:, 2:] + distance))
    return xy.min(0), xy.max(0)


def sample_pose(rng: np.random.Generator, name: str, mesh: Mesh) -> Pose:
    """A pose whose box covers a share of the frame drawn from the real set's distribution."""
    rotation = _attitude(rng, mesh)
    focal = float(np.exp(rng.uniform(np.log(1.3), np.log(3.0))))
    share = np.exp(np.log(BOX_MEDIAN * _FACTOR[name]) + BOX_SPREAD * rng.normal())
    share = float(np.clip(share, BOX_LEAST, BOX_MOST)) / 100
    cut = rng.random() < CUT
    near, far = 1.6 * mesh.radius, 400 * mesh.radius
    for _ in range(22):
        mid = (near * far) ** 0.5
        low, high = _extent(mesh, rotation, mid, focal)
        w, h = high - low
        # Too near: the box is too large, or does not fit a frame that is to hold all of it.
        if w * h > share or (max(w, h) > 0.98 and not cut):
            near = mid
        else:
            far = mid
    low, high = _extent(mesh, rotation, far, focal)
    size = high - low
    if cut:
        # Over the border by up to half the box.
        corner = rng.uniform(-0.5 * size, 1 - 0.5 * size)
        axis = int(rng.integers(2))
        over = rng.uniform(0.05, 0.5) * size[axis]
        corner[axis] = -over if rng.random() < 0.5 else 1 - size[axis] + over
    else:
        # Somewhat more often near the middle than uniform.
        room = np.maximum(1 - size, 0)
        corner = room * (0.7 * rng.random(2) + 0.3 * rng.beta(3, 3, 2))
    centre = corner - low
    return Pose(rotation, float(far), focal, (float(centre[0]), float(centre[1])))


def _unit(v: np.ndarray) -> np.ndarray:
    return (v / np.linalg.norm(v)).astype(np.float32)


def sun_in_view(rng: np.random.Generator, image: np.ndarray) -> tuple[float, float] | None:
    """Where the sun stands in or near the frame (frame widths), None in most frames.

    Args:
        rng: The frame's generator.
        image: The background, uint8 [S, S, 3]; the sun is not drawn before the Earth.
    """
    if rng.random() >= GLARE:
        return None
    for _ in range(8):
        x, y = rng.uniform(-0.2, 1.2, 2)
        if not (0 <= x < 1 and 0 <= y < 1):
            return float(x), float(y)
        size = image.shape[0]
        if int(image[int(y * size), int(x * size)].max()) < 60:
            return float(x), float(y)
    return None


def sample_light(
    rng: np.random.Generator,
    kind: str,
    earth: np.ndarray | None,
    spot: tuple[float, float] | None,
    focal: float,
) -> Light:
    """Sun, earthshine and glow.

    Args:
        rng: The frame's generator.
        kind, earth: Of the background.
        spot: Where the sun is seen (frame widths), if it is; then it stands behind the craft.
        focal: Focal length in frame widths.
    """
    sun = _unit(rng.normal(size=3))
    # The lit side is mostly seen, as cameras are mostly pointed.
    if sun[2] > 0 and rng.random() < 0.55:
        sun[2] *= -1
    dark = rng.random() < (0.16 if kind != "earth" else 0.10)
    if spot is not None:
        dark, sun = False, _unit(np.array([spot[0] - 0.5, spot[1] - 0.5, focal]))
    strength = 0.0 if dark else float(np.exp(rng.normal(-0.05, 0.35)))
    ambient = float(np.exp(rng.uniform(np.log(0.010), np.log(0.06))))
    shine = np.zeros(3)
    if earth is not None:
        blue = rng.uniform(0, 1)
        tint = np.array([1.0, 0.74 - 0.1 * blue, 0.66 - 0.28 * blue])
        shine = tint * float(np.exp(rng.uniform(np.log(0.02), np.log(0.30))))
    return Light(
        sun=sun,
        sunlight=strength,
        earth=np.zeros(3, np.float32) if earth is None else earth,
        earthshine=shine.astype(np.float32),
        ambient=ambient,
    )
