"""Downloads from a server on this machine: right, wrong, cut short, interrupted, not there."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spark_seg.errors import UserError
from spark_seg.models import download
from spark_seg.models.download import cache_folder, fetch

CONTENT = bytes(range(256)) * 9000
DIGEST = hashlib.sha256(CONTENT).hexdigest()[:8]


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; paths with `short` break off half way, `missing` is not there."""

    served: list[str]

    def do_GET(self) -> None:
        self.served.append(self.path)
        if "missing" in self.path:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if "short" in self.path else CONTENT)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Handler.served = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
        thread.join()


def cached() -> list[str]:
    return sorted(p.name for p in cache_folder().iterdir())


def test_downloads_once(server: str, tmp_path: Path) -> None:
    path = fetch(f"{server}/folder/weights-{DIGEST}.pth", DIGEST)
    assert path == tmp_path / "torch" / "hub" / "checkpoints" / f"weights-{DIGEST}.pth"
    assert path.read_bytes() == CONTENT
    assert fetch(f"{server}/folder/weights-{DIGEST}.pth", DIGEST) == path
    assert len(Handler.served) == 1
    assert cached() == [path.name]


@pytest.mark.parametrize("name", ["short.pth", "other.pth"])
def test_wrong_content_leaves_nothing(server: str, name: str) -> None:
    with pytest.raises(UserError, match=f"{name}.* cut short or another file") as caught:
        fetch(f"{server}/{name}", DIGEST if "short" in name else "00000000")
    assert "\n" not in str(caught.value)
    assert cached() == []


def test_dead_link(server: str) -> None:
    with pytest.raises(UserError) as caught:
        fetch(f"{server}/missing.pth", DIGEST)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("404", f"{server}/missing.pth", str(cache_folder() / "missing.pth")):
        assert part in message
    assert "--cfg-options pretrained=None" in message
    assert cached() == []


def test_offline(server: str) -> None:
    # Port 9 of this machine: nobody answers.
    with pytest.raises(UserError) as caught:
        fetch("http://127.0.0.1:9/weights.pth", DIGEST)
    message = str(caught.value)
    assert "\n" not in message
    assert "http://127.0.0.1:9/weights.pth" in message
    assert str(cache_folder() / "weights.pth") in message
    assert "--cfg-options pretrained=None" in message
    # The advice works: a file put there is taken without any network.
    (cache_folder() / "weights.pth").write_bytes(CONTENT)
    assert fetch("http://127.0.0.1:9/weights.pth", DIGEST).read_bytes() == CONTENT


def test_damaged_cache(server: str) -> None:
    path = fetch(f"{server}/weights.pth", DIGEST)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=r"weights\.pth is damaged .* delete it"):
        fetch(f"{server}/weights.pth", DIGEST)
    path.unlink()
    assert fetch(f"{server}/weights.pth", DIGEST).read_bytes() == CONTENT


def test_interrupted(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def stop(*_: object) -> None:
        seen.append(cached())
        raise KeyboardInterrupt

    monkeypatch.setattr(download.Progress, "update", stop)
    with pytest.raises(KeyboardInterrupt):
        fetch(f"{server}/weights.pth", DIGEST)
    (during,) = seen
    assert len(during) == 1
    assert during[0].endswith(".part")
    assert cached() == []


def test_cache_not_writable(server: str, tmp_path: Path) -> None:
    (tmp_path / "torch").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot write"):
        fetch(f"{server}/weights.pth", DIGEST)
