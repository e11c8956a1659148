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
