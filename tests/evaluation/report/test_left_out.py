"""What other evaluations left in a folder is in no report; runs of two rules are scored by one."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_folders import IDS, built, pictures

from spark_seg.cli.report import main
from spark_seg.evaluation.report.data import load_run
from spark_seg.evaluation.report.pictures import PICTURES_FILE, save_pictures
from spark_seg.evaluation.run import summarize, write_results

IDENTITY = {
    "weights": "new",
    "split": "val",
    "data": "0123456789abcdef",
    "rule": {"thresholds": [0.5, 0.75], "panel_share": 0.05, "empty_union": 0.0},
    "prediction": "fedcba9876543210",
}
OTHERS = [
    ("weights", "old", "weights"),
    ("split", "train", "split"),
    ("data", "0", "data"),
    ("rule", {**IDENTITY["rule"], "panel_share": 0.1}, "challenge rule"),  # type: ignore[dict-item]
    ("prediction", "1", "model options"),
]


def mark(folder: Path, identity: dict | None) -> None:
    """Says of which evaluation the folder's faults and pictures are."""
    path = folder / "robustness.json"
    found = json.loads(path.read_text())
    found.pop("evaluation", None)
    path.write_text(json.dumps(found if identity is None else {**found, "evaluation": identity}))
    save_pictures(folder / PICTURES_FILE, pictures(IDS[:3]), identity)


@pytest.mark.parametrize(("key", "value", "title"), OTHERS)
def test_what_another_evaluation_left_in_the_folder_is_not_shown(
    key: str,
    value: Any,
    title: str,
    make: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make(record={"checkpoint": "new.pth", **IDENTITY})
    mark(folder, {**IDENTITY, key: value})
    main([str(folder)])
    _, page = built(folder / "report.html")
    assert {"robustness", "worst", "median"}.isdisjoint(page.anchors)
    told = capsys.readouterr().out
    for name, option in (("robustness.json", "--corruptions"), (PICTURES_FILE, "--report")):
        line = (
            f"{folder / name} is of another evaluation ({title}) and is left out: run tools/test.py"
        )
        line += f" with {option} again"
        assert line in told
        assert line in page.text
    mark(folder, IDENTITY)
    main([str(folder)])
    assert {"robustness", "worst", "median"} <= set(built(folder / "report.html")[1].anchors)
    assert "left out" not in capsys.readouterr().out


def test_files_of_before_the_identities(make: Callable[..., Path]) -> None:
    """Beside an old record they are taken as they are, beside a new one nothing says whose they are."""
    folder = make(record={"checkpoint": "new.pth", "weights": "new"})
    mark(folder, None)
    assert load_run(folder).robustness
    assert load_run(folder).pictures
    found = json.loads((folder / "robustness.json").read_text())
    (folder / "robustness.json").write_text(json.dumps({**found, "weights": "old"}))
    assert load_run(folder).robustness is None
    (folder / "run.json").write_text(json.dumps(IDENTITY))
    (folder / "robustness.json").write_text(json.dumps({**found, "weights": "new"}))
    run = load_run(folder)
    assert run.robustness is None
    assert not run.pictures
    assert len(run.left_out) == 2


def test_runs_of_different_rules_are_scored_by_one(make: Callable[..., Path]) -> None:
    """B's own score by its own rule is no number to set beside A's."""
    a = make()
    strict = {"thresholds": [0.99], "panel_share": 0.05, "empty_union": 0.0}
    b = make("b/test_val", record={"checkpoint": "b.pth", "rule": strict})
    write_results(b, summarize(load_run(b).counts, load_run(b).rule, resamples=50))
    assert load_run(b).metrics["spark/score"] < load_run(a).metrics["spark/score"]
    main([str(a), str(b)])
    html, page = built(b / "report_compare.html")
    value = f"{100 * load_run(a).metrics['spark/score']:.2f}"
    assert f"<td>spark/score</td><td>{value}</td><td>{value}</td><td>0.00</td>" in html
    assert "different challenge rules; here both are by A's" in page.text
    assert "is scored by another challenge rule than A and is left out" in page.text
    mean = re.search(r"mean: the score</td>((?:<td>[^<]*</td>)+)", html)
    assert mean
    cells = re.findall(r"<td>([^<]*)</td>", mean[1])
    assert cells[:2] == cells[2:]
