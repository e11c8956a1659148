"""Two runs side by side: what one of them lacks, and what only pixels tell, is not lost."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from report_folders import built

from spark_seg.cli.report import main
from spark_seg.evaluation.store import ImageCounts


@pytest.fixture
def pair(make: Callable[..., Path]) -> tuple[Path, Path]:
    return make(seed=0), make("b/test_val", seed=1)


def test_a_group_without_a_score_of_the_challenge_is_in_the_table(pair: tuple[Path, Path]) -> None:
    for folder in pair:
        counts = ImageCounts.load(folder / "counts.npz")
        counts.confusion[0, 0] += counts.confusion[0, 2]
        counts.confusion[0, 2] = 0
        counts.save(folder / "counts.npz")
        for name in ("groups.json", "metrics.json", "intervals.json"):
            (folder / name).unlink()
    main([str(folder) for folder in pair])
    html, _ = built(pair[1] / "report_compare.html")
    section = html.split('<section id="panels">')[1].split("</section>")[0]
    assert "<td>no panel</td><td>1</td>" in section
    assert "no panel" not in section.split("<table")[0]  # its half of a score would say nothing


def test_no_fault_comes_first_and_other_faults_are_told(pair: tuple[Path, Path]) -> None:
    main([str(folder) for folder in pair])
    html, page = built(pair[1] / "report_compare.html")
    section = html.split('<section id="robustness">')[1].split("</section>")[0]
    places = [section.index(f">{name}<") for name in ("no fault", "sensor noise")]
    assert places == sorted(places)
    assert "over different ones" not in page.text
    found = json.loads((pair[1] / "robustness.json").read_text())
    del found["kinds"]["glare"]
    found["worst"]["kind"] = "noise"
    (pair[1] / "robustness.json").write_text(json.dumps(found))
    main([str(folder) for folder in pair])
    _, page = built(pair[1] / "report_compare.html")
    assert "Not all faults and severities were measured for both" in page.text


def test_what_holds_for_both_tables_is_said_once(pair: tuple[Path, Path]) -> None:
    main([str(folder) for folder in pair])
    html, _ = built(pair[1] / "report_compare.html")
    assert html.count("IoU pools all pixels; image mean is the mean over images.") == 1


def test_the_training_says_only_what_the_evaluation_does_not(make: Callable[..., Path]) -> None:
    record = {
        "checkpoint": "best.safetensors",
        "versions": {"torch": "2.13.0", "numpy": "2.4.6"},
        "training": {"versions": {"torch": "2.12.0", "numpy": "2.4.6"}, "seed": 7},
    }
    folder = make(record=record)
    main([str(folder)])
    html, _ = built(folder / "report.html")
    names = re.findall(r'<td class="v">((?:training\.)?versions[^<]*|training[^<]*)</td>', html)
    assert names == ["versions.torch", "versions.numpy", "training.versions.torch", "training.seed"]
