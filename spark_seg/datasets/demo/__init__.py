"""Demo data: a renderer of SPARK-like frames, see `make_demo_data`.

The ten craft (`craft`, `craft_small`) are convex polygons (`geometry`) with materials, placed by
`scene`, drawn by `raster` and `shade` over a `background` built from `noise`; `effects` is the
camera, `render` one frame, `tree` the data set on disk.
"""

from spark_seg.datasets.demo.tree import ensure_demo_data, make_demo_data

__all__ = ["ensure_demo_data", "make_demo_data"]
