"""Every command in the README is run, on tiny data; and what it says of files and figures is true."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Commands that a test of their own runs.
ELSEWHERE = {
    "bash tools/quickstart.sh": "tests/test_quickstart.py",
    "bash tools/run_tests.sh": "this very run",
    "pip install .": "tests/test_package.py",
}
TINY = (
    "--cfg-options image_size=64 batch_size=2 epochs=1 num_workers=0 pretrained=None subset=4 log_every=1"
).split()


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def test_the_readme_has_commands() -> None:
    assert len(commands()) >= 12
    for command, where in ELSEWHERE.items():
        assert command in commands()
        if where.startswith("tests/"):
            assert (ROOT / where).is_file()


def test_every_command_runs(tmp_path: Path) -> None:
    for name in ("tools", "configs", "spark_seg"):
        (tmp_path / name).symlink_to(ROOT / name)
    data = tmp_path / "tree"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("SPARK_TEST_ROOT", None)

    def run(words: list[str]) -> None:
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, (
            f"{shlex.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )

    render = "tools/make_demo_data.py --images 20 --val 10 --test 3 --size 96 --workers 1 --out"
    run([sys.executable, *render.split(), str(data)])
    ran = 0
    for command in commands():
        if command in ELSEWHERE:
            continue
        if command.startswith("export "):
            name = command.removeprefix("export ").split("=")[0]
            assert name == "SPARK_DATA_ROOT"
            environment[name] = str(data)
            continue
        words = shlex.split(os.path.expandvars(command.replace("$SPARK_DATA_ROOT", str(data))))
        assert words[0] == "python", command
        words[0] = sys.executable
        if words[1] in ("tools/train.py", "tools/test.py", "tools/infer.py", "tools/export.py"):
            words += TINY
        if words[1] == "tools/browse_dataset.py":
            words += [*TINY, "image_size=96", "--count", "2", "--tile", "96"]
        if words[1] == "tools/make_demo_data.py":
            words += "--images 4 --val 2 --test 2 --size 64 --workers 1".split()
        run(words)
        ran += 1
    assert ran >= 9


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_the_readme_names_every_config() -> None:
    for config in sorted((ROOT / "configs").glob("*.py")):
        assert config.name in README, config.name
