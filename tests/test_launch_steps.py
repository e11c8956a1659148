"""When tools/launch.sh asks Slurm for another start of its job; with a stand-in for scontrol."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
set -eu
sleep() { :; }
scontrol() {
    case "$1" in
    show) [ -n "$STATE" ] && echo "JobId=7 JobName=a JobState=$STATE Dependency=(null)" ;;
    requeue) echo "asked for $2" && [ -z "$REFUSED" ] ;;
    esac
}
. tools/launch.sh
SLURM_JOB_ID=7
start_again
exit 75
"""


@pytest.mark.parametrize(
    ("state", "asks"),
    [
        ("RUNNING Reason=None", True),
        ("COMPLETING Reason=TimeLimit", True),
        ("CANCELLED Reason=None", False),
        ("PENDING Reason=BeginTime", False),
        ("", True),  # Slurm does not answer
    ],
)
@pytest.mark.parametrize("refused", ["", "1"])
def test_who_is_queued_again(state: str, asks: bool, refused: str) -> None:
    """The code that asks for another start stays, whatever Slurm says."""
    done = subprocess.run(
        ["bash", "-c", SCRIPT],
        cwd=ROOT,
        env={**os.environ, "STATE": state, "REFUSED": refused},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 75, done.stderr
    assert ("asked for 7" in done.stdout) == asks
    assert ("cancelled or is queued again already" in done.stdout) != asks


KILLED = """
root=$PWD
set -eu
. tools/launch.sh
sleep() { [ "$1" = 60 ] || command sleep "$1"; }
run_slurm train segformer_b0_spark
"""


@pytest.mark.parametrize(("restarts", "asks"), [("0", True), ("19", True), ("20", False)])
def test_an_end_that_saves_nothing_is_not_repeated_for_ever(
    restarts: str, asks: bool, tmp_path: Path
) -> None:
    """srun's tasks are killed after the warning, each time before they could save."""
    stubs = {
        "srun": 'trap "" USR1; kill -USR1 "$PPID"; sleep 0.3; exit 143',
        "scontrol": 'if [ "$1" = show ]; then echo " JobState=RUNNING "; else echo "asked for $2"; fi',
    }
    for name, line in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    job = {"JOB_ID": "7", "JOB_NODELIST": "n1", "NTASKS": "1", "RESTART_COUNT": restarts}
    done = subprocess.run(
        ["bash", "-c", KILLED],
        cwd=ROOT,
        env={
            **os.environ,
            **{f"SLURM_{key}": value for key, value in job.items()},
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ("asked for 7" in done.stdout) == asks, done.stdout + done.stderr
    assert done.returncode == (75 if asks else 143), done.stderr
    assert ("not started again" in done.stderr) != asks


@pytest.mark.parametrize("command", ["train", "test", "infer"])
def test_slurm_scripts_started_elsewhere_say_what_to_do(command: str, tmp_path: Path) -> None:
    """Neither in a clone nor under a Slurm that knows where the script lay."""
    done = subprocess.run(
        ["/bin/bash", str(ROOT / "tools" / f"dist_{command}_slurm.sh"), "config.py"],
        cwd=tmp_path,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.endswith("not found: submit from it, or set SPARK_SEG_ROOT\n")
