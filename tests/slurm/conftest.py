"""A real Slurm of two nodes for the tests of this folder; they skip where it cannot be set up."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cluster import Cluster, why_not
from tiny import make_tree


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """Two idle nodes; stopped and removed at the end."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    cluster = Cluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SPARK tree: 8 frames to train on, an odd 7 to evaluate, an odd 5 to predict."""
    root = make_tree(tmp_path_factory.mktemp("slurm") / "tree", train=4, val=3, test=5)
    # two processes must pad: 3 + 4 frames
    for kind, suffix in (("images", "img"), ("mask", "layer")):
        folder = root / kind / "Cheops" / "val"
        (folder / f"image_00009_{suffix}.jpg").write_bytes(
            (folder / f"image_00001_{suffix}.jpg").read_bytes()
        )
    return root
