"""tools/compare.py: what it prints, writes and refuses."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from spark_seg.cli.compare import main
from spark_seg.errors import UserError
from spark_seg.evaluation.frame import count_frame
from spark_seg.evaluation.store import ImageCounts

ROOT = Path(__file__).resolve().parents[2]


def write_run(folder, shift, count=12, first=0):
    rows = []
    for index in range(first, count):
        truth = np.zeros((40, 60), np.uint8)
        truth[8 : 20 + index % 5, 10:30] = 1
        truth[10:16, 30:50] = 2
        rows.append(
            (f"Soho/val/image_{index:05d}", "Soho", count_frame(np.roll(truth, shift, 1), truth))
        )
    folder.mkdir()
    ImageCounts.collect(rows).save(folder / "counts.npz")
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    return write_run(tmp_path / "bad", 4), write_run(tmp_path / "good", 1)


def test_says_plainly_which_is_better(runs, capsys):
    bad, good = runs
    assert main([bad, good, "--resamples", "200"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [f"A: {bad}", f"B: {good}", "12 images in both"]
    assert lines[-1].startswith("B is better than A by spark/score: +")
    row = next(line for line in lines if line.startswith("spark/score")).split()
    assert float(row[3]) == pytest.approx(float(row[2]) - float(row[1]), abs=0.011)
    assert row[-1] == "better"
    main([good, bad, "--resamples", "200"])
    assert "B is worse than A by spark/score: -" in capsys.readouterr().out
    main([good, good, "--resamples", "200"])
    out = capsys.readouterr().out
    assert "These images do not tell whether B is better than A" in out
    assert "+0.00 to +0.00" in out


def test_the_rule_and_the_score_can_be_chosen(runs, capsys):
    bad, good = runs
    rule = ["--thresholds", "0.01", "--panel-share", "0.9", "--empty-union", "1"]
    main([bad, good, "--resamples", "50", *rule])
    assert "do not tell" in capsys.readouterr().out
    main([bad, good, "--resamples", "50", "--key", "IoU/panel", "--all"])
    out = capsys.readouterr().out
    assert "B is better than A by IoU/panel" in out
    assert "per_image/boundary_F3px/panel" in out


def test_images_of_one_run_only_are_named(tmp_path, runs, capsys):
    other = write_run(tmp_path / "part", 1, count=10, first=2)
    main([runs[0], other, "--resamples", "50"])
    line = capsys.readouterr().out.splitlines()[2]
    assert line == (
        "8 images in both, 4 in A only (first Soho/val/image_00000); those are left out"
    )


def test_json(tmp_path, runs):
    target = tmp_path / "new" / "compare.json"
    main([*runs, "--resamples", "50", "--json", str(target)])
    found = json.loads(target.read_text())
    assert found["images"] == 12
    assert found["rows"]["spark/score"]["verdict"] == "better"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--key", "IoU/pannel"], "did you mean 'IoU/panel'"),
        (["--resamples", "0"], "resamples=0"),
        (["--seed", "-1"], "--seed -1"),
        (["--thresholds", "2"], "thresholds"),
        (["--resample", "3"], "did you mean '--resamples'"),
    ],
)
def test_mistakes(runs, args, message):
    with pytest.raises(UserError, match=message):
        main([*runs, *args])


def test_from_a_clone(tmp_path, runs):
    tool = [sys.executable, str(ROOT / "tools" / "compare.py")]
    start = time.perf_counter()
    done = subprocess.run([*tool, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0
    assert time.perf_counter() - start < 4  # it takes 0.1 s; torch would take longer on any machine
    done = subprocess.run([*tool, *runs, "--resamples", "20"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "B is better" in done.stdout
    done = subprocess.run([*tool, runs[0], str(tmp_path / "none")], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no counts file")
    assert done.stderr.count("\n") == 1


def test_the_rule_is_the_runs_own(runs, capsys):
    """A rule given to tools/test.py holds here too; two rules are not mixed in silence."""
    bad, good = runs
    lenient = {"thresholds": [0.01], "panel_share": 0.05, "empty_union": 0.0}
    (Path(good) / "run.json").write_text(json.dumps({"rule": lenient}))
    main([bad, good, "--resamples", "50"])  # the other keeps no record
    assert "100.00" in capsys.readouterr().out
    main([bad, good, "--resamples", "50", "--thresholds", "0.99"])
    assert "100.00" not in next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith("spark/score")
    )
    (Path(bad) / "run.json").write_text(json.dumps({"rule": {**lenient, "panel_share": 0.5}}))
    with pytest.raises(UserError, match="scored by different challenge rules: choose one by --th"):
        main([bad, good, "--resamples", "50"])


def test_several_seeds_of_each(tmp_path, runs, capsys):
    """A side's score is its runs' mean, and what the seed does widens the interval."""
    bad, good = runs
    worse, middle = write_run(tmp_path / "worse", 7), write_run(tmp_path / "middle", 2)
    target = tmp_path / "found.json"
    assert main([bad, worse, "--to", good, middle, "--json", str(target)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        f"A: {bad}, {worse}",
        f"B: {good}, {middle}",
        "12 images in all",
        "means of 2 and 2 runs; intervals hold images and seeds",
    ]
    assert "do not tell whether B is better" in lines[-1], "two seeds that differ much say little"
    several = json.loads(target.read_text())
    assert several["runs"] == [2, 2]
    singles = []
    for run in (bad, worse, good, middle):
        main([run, run, "--json", str(target), "--resamples", "10"])
        singles.append(json.loads(target.read_text())["rows"]["spark/score"]["a"])
    row = several["rows"]["spark/score"]
    assert row["a"] == pytest.approx((singles[0] + singles[1]) / 2)
    assert row["b"] == pytest.approx((singles[2] + singles[3]) / 2)
    main([bad, good, "--json", str(target)])
    alone = json.loads(target.read_text())["rows"]["spark/score"]
    assert row["high"] - row["low"] > 2 * (alone["high"] - alone["low"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0], "give two runs, A and B, not 1"),
        ([0, 1, 1], "give two runs, A and B, not 3; for several seeds of each: A1 A2 --to B1 B2"),
        ([0, 0, "--to", 1], "bad is given twice on one side"),
    ],
)
def test_runs_that_make_no_two_sides(runs, given, message):
    with pytest.raises(UserError, match=message):
        main([one if isinstance(one, str) else runs[one] for one in given])
