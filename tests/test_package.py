"""What `pip install .` gives: a wheel with the configs in it and one console command."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the built wheel is installed, without its dependencies."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    source.mkdir()
    for name in ("spark_seg", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    subprocess.run(build, check=True, cwd=folder, capture_output=True, timeout=300)
    (wheel,) = folder.glob("spark_seg-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "spark_seg/_configs/segformer_b2_spark.py" in names
    assert "spark_seg/_configs/_base_/models/segformer_mit-b0.py" in names
    assert not [name for name in names if name.startswith(("configs/", "tests/", "tools/"))]
    target = folder / "site"
    install = [*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, cwd=folder, capture_output=True, timeout=300)
    return target


def run(installed: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(installed / "bin" / "spark-seg"), *args],
        capture_output=True,
        text=True,
        cwd=installed.parent,
        env={"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        timeout=300,
    )


def test_the_command_finds_its_configs(installed: Path) -> None:
    code = (
        "import spark_seg.config as c; "
        "print(c.find_config('segformer_b2_spark')); print(c.load_config('segformer_b2_spark').variant)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=installed.parent,
        env={"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (found,) = [line for line in done.stdout.splitlines() if line.endswith("segformer_b2_spark.py")]
    assert Path(found).is_relative_to(installed)
    assert "b2" in done.stdout.splitlines()


def test_every_command_has_help(installed: Path) -> None:
    overview = run(installed, "--help")
    assert overview.returncode == 0
    for name in ("train", "test", "infer", "check-dataset", "make-demo-data"):
        assert name in overview.stdout
        done = run(installed, name, "--help")
        assert done.returncode == 0, done.stderr
        assert "usage:" in done.stdout


def test_a_wrong_command_names_the_nearest(installed: Path) -> None:
    done = run(installed, "trian")
    assert done.returncode == 2
    assert done.stderr == "error: no command 'trian'; did you mean 'train'?\n"


def test_importing_the_package_is_light() -> None:
    code = "import sys, spark_seg; print([m for m in ('torch', 'mmseg', 'mmengine') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.stdout.strip() == "[]"
