"""Published weights for compute nodes without network; nothing here reaches the network."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spark_seg.cli.fetch_weights import main
from spark_seg.errors import UserError
from spark_seg.models import download, published

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of stand-ins under the published names, with hashes that fit, in place of the host."""
    folder = tmp_path / "mirror"
    monkeypatch.setattr(published, "_HOST", folder.as_uri())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for table in ("_ADE20K", "_IMAGENET"):
        fitting = {}
        for variant, name in getattr(published, table).items():
            content = f"{table} {variant}".encode()
            fitting[variant] = f"{name[:-8]}{hashlib.sha256(content).hexdigest()[:8]}"
            monkeypatch.setitem(getattr(published, table), variant, fitting[variant])
            source = "ade20k" if table == "_ADE20K" else "imagenet"
            path = folder / published.published(source, variant).url.removeprefix(
                folder.as_uri() + "/"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return folder


def cached(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "torch/hub/checkpoints").glob("*"))


def test_downloads_into_the_cache_once(
    mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["b0", "b3"]) == 0
    out = capsys.readouterr().out
    assert "non-commercial" in out
    assert out.count("downloaded") == 2
    wanted = {published.published("ade20k", v).file for v in ("b0", "b3")}
    assert set(cached(tmp_path)) == wanted
    main(["b0", "b3"])
    assert capsys.readouterr().out.count("was there") == 2
    # what training asks for is what was fetched
    entry = published.published("ade20k", "b3")
    assert download.fetch_in_job("file:///nowhere/" + entry.file, entry.digest).is_file()


def test_all_and_the_default(mirror: Path, tmp_path: Path) -> None:
    main([])
    assert cached(tmp_path) == [published.published("ade20k", "b2").file]
    main(["all", "--source", "imagenet"])
    assert len(cached(tmp_path)) == 7


def test_list_downloads_nothing(
    mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["b1", "--list"])
    out = capsys.readouterr().out
    assert "ade20k b1: not there" in out
    assert "1 to download" in out
    assert not cached(tmp_path)


def test_a_damaged_file_is_told(mirror: Path, tmp_path: Path) -> None:
    main(["b0"])
    (tmp_path / "torch/hub/checkpoints" / cached(tmp_path)[0]).write_bytes(b"half")
    with pytest.raises(UserError, match="damaged"):
        main(["b0"])


def test_misspelt(mirror: Path) -> None:
    with pytest.raises(UserError, match=r"no variant 'b9'.*did you mean"):
        main(["b9"])
    with pytest.raises(UserError, match=r"no source 'ade20'.*did you mean 'ade20k'"):
        main(["--source", "ade20"])


JOB = """
import sys, torch
from pathlib import Path
from spark_seg.engine.launch import start_process_group
from spark_seg.errors import UserError
from spark_seg.models import download
process = start_process_group()
calls, real = [], download._download
def counted(url, path):
    calls.append(url)
    return real(url, path)
download._download = counted
try:
    path = download.fetch_in_job(sys.argv[1], sys.argv[2])
    print("rank", process.rank, "downloads", len(calls), path.read_bytes() == b"weights")
except UserError as error:
    print("rank", process.rank, "downloads", len(calls), "error:", error)
torch.distributed.destroy_process_group()
"""


def in_a_job(
    tmp_path: Path, url: str, digest: str, caches: tuple[str, str] = ("one", "one")
) -> list[str]:
    """What two ranks say that ask for one file at once."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank, cache in enumerate(caches):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "TORCHELASTIC"))}
        env |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": str(port)}
        env |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        env |= {"PYTHONPATH": str(ROOT), "TORCH_HOME": str(tmp_path / cache)}
        command = [sys.executable, "-c", JOB, url, digest]
        ranks.append(
            subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    said = []
    for rank in ranks:
        out, err = rank.communicate(timeout=180)
        lines = [line for line in out.splitlines() if line.startswith("rank")]
        assert lines, err
        said += lines
    return said


def test_in_a_job_rank_0_alone_downloads(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()[:8]
    assert in_a_job(tmp_path, file.as_uri(), digest) == [
        "rank 0 downloads 1 True",
        "rank 1 downloads 0 True",
    ]


def test_in_a_job_all_ranks_fail_together(tmp_path: Path) -> None:
    """The download's error reaches those who waited for it; so does a cache that they do not see."""
    gone = (tmp_path / "gone.pth").as_uri()
    zero, one = in_a_job(tmp_path, gone, "00000000")
    assert zero.startswith("rank 0 downloads 1 error: cannot download")
    assert one.startswith("rank 1 downloads 0 error: cannot download")
    assert "tools/fetch_weights.py" in one
    file = tmp_path / "weights.pth"
    file.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()[:8]
    zero, one = in_a_job(tmp_path, file.as_uri(), digest, caches=("here", "there"))
    assert zero == "rank 0 downloads 1 True"
    assert "error: rank 0 has weights.pth in its cache" in one
    assert "TORCH_HOME" in one
