"""The report's section on calibration: what it says of a curve holds for the curve it draws."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spark_seg.evaluation.calibration import UNIT
from spark_seg.evaluation.report import charts, quality
from spark_seg.evaluation.report.data import Run, load_run
from spark_seg.evaluation.store import ImageCounts


def perfect(folder: Path, name: str) -> Run:
    """Right as often as confident over all pixels and those found as craft; not over the truth's craft."""
    sums = np.zeros((2, 3, 15, 3), np.int64)
    sums[:, [0, 2], 9:] = [100, 65, 65 * UNIT]
    sums[:, 1, 9:] = [100, 20, 65 * UNIT]
    names, stack = np.array(["a", "b"]), np.tile(np.diag([400, 100, 100]), (2, 1, 1))
    nll = np.full((2, 3), 9)
    folder.mkdir()
    ImageCounts(names, names, stack, calibration=sums, nll=nll).save(folder / "counts.npz")
    return load_run(folder, name)


def test_curves_are_those_that_a_perfect_model_has_on_the_diagonal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [perfect(tmp_path / name, name) for name in ("a", "b")]
    drawn: list[charts.Curve] = []

    def lines(curves: Sequence[charts.Curve], *args: Any, **options: Any) -> str:
        drawn.extend(curves)
        return charts.lines(curves, *args, **options)

    monkeypatch.setattr(quality, "lines", lines)
    for shown in (runs[:1], runs):
        drawn.clear()
        section = quality.calibration(shown)
        assert section is not None
        assert len(drawn) == 2  # all and found as craft of one run; found as craft of two
        for curve in drawn:
            assert len(curve.x) == 6
            np.testing.assert_allclose(curve.x, curve.y)
        assert "too sure of itself" in section.html
        assert "found as craft" in section.html
        assert "even a perfectly calibrated model has an ECE there" in section.html
    assert [run.metrics["ECE/predicted"] for run in runs] == [0, 0]
    assert runs[0].metrics["ECE/foreground"] == pytest.approx(0.45)
