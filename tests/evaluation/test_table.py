"""The table says what the scores say, and metrics.json is whole."""

import json
import re

import numpy as np
import pytest

from spark_seg.errors import UserError
from spark_seg.evaluation.table import metrics_of, table_lines, write_metrics_json

STACK = np.array([[[80, 5, 0], [2, 6, 2], [0, 1, 4]], [[90, 0, 0], [1, 8, 0], [0, 0, 1]]])


def test_numbers_in_percent_with_two_decimals():
    metrics, lines = metrics_of(STACK), table_lines(STACK)
    cells = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert cells["class"] == "IoU Dice Precision Recall image IoU image Dice".split()
    for name in ("background", "body", "panel"):
        kinds = ("IoU", "Dice", "Precision", "Recall", "per_image/IoU", "per_image/Dice")
        assert cells[name] == [f"{100 * metrics[f'{kind}/{name}']:.2f}" for kind in kinds]
    for key in ("mIoU", "mIoU/foreground", "aAcc", "spark/score"):
        assert cells[key][0] == f"{100 * metrics[key]:.2f}"
    assert cells["images"][0] == "2"


def test_aligned_plain_text():
    lines = table_lines(STACK)
    assert len({len(line) for line in lines[:5]}) == 1
    text = "\n".join(lines)
    assert text.isascii()
    assert not re.search(r"nan|\t|\x1b", text)
    assert max(map(len, lines)) <= 100


def test_a_dash_where_a_number_is_not_defined():
    lines = table_lines(np.diag([100, 50, 0])[None])
    assert next(line for line in lines if line.startswith("panel")).split()[1:] == ["-"] * 6
    assert "the panel counts in no image" in "\n".join(lines)
    missed = table_lines(np.array([[[9, 0, 0], [0, 9, 0], [3, 0, 0]]]))
    row = next(line for line in missed if line.startswith("panel")).split()[1:]
    assert row == ["0.00", "0.00", "-", "0.00", "0.00", "0.00"]


def test_no_image_is_a_table_too():
    assert any(line.startswith("images") for line in table_lines(np.zeros((0, 3, 3), int)))


def test_metrics_json(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")
    metrics = metrics_of(STACK)
    write_metrics_json(path, metrics | {"mIoU": np.float32(0.5)})
    back = json.loads(path.read_text())
    assert set(back) == set(metrics)
    assert back["IoU/body"] == metrics["IoU/body"]
    assert back["mIoU"] == 0.5
    assert back["images"] == 2
    assert isinstance(back["images"], int)
    assert list(tmp_path.iterdir()) == [path]


def test_nan_is_never_written(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with pytest.raises(ValueError):
        write_metrics_json(path, {"mIoU": float("nan")})
    assert path.read_text() == "old"


def test_a_folder_that_is_a_file_is_one_clear_line(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write .*metrics\.json"):
        write_metrics_json(tmp_path / "out" / "metrics.json", {"mIoU": 1.0})
