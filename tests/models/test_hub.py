"""Repositories of the Hugging Face hub, from a server on this host that answers as the hub does."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spark_seg.cli.fetch_weights import main as fetch_weights
from spark_seg.engine.checkpoints import save_pth, save_safetensors
from spark_seg.errors import UserError
from spark_seg.models.convert import from_mmseg, norms_of
from spark_seg.models.hub import find_repo
from spark_seg.models.pretrained import load_pretrained

REPO = "nvidia/mit-b0"
CONFIG = json.dumps({"model_type": "segformer"}).encode()


class Hub:
    """Files by `owner/name/file`; large ones go through a redirect that carries their SHA-256."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.damage = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.asked.append(self.path)
                if self.path.startswith("/store/"):
                    content = hub.files[self.path.removeprefix("/store/")]
                    content = content[:-1] + b"?" if hub.damage else content
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                    return
                name = self.path.lstrip("/").replace("/resolve/main/", "/")
                if name not in hub.files:
                    self.send_error(404)
                    return
                self.send_response(302)
                self.send_header("Location", f"/store/{name}")
                self.send_header(
                    "X-Linked-Etag", f'"{hashlib.sha256(hub.files[name]).hexdigest()}"'
                )
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


@pytest.fixture(scope="module")
def encoder(build_model: Callable[..., nn.Module]) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A b0, and its encoder as the hub's files name it, with ImageNet's classifier."""
    torch.manual_seed(0)
    model = build_model("b0")
    backbone = {f"backbone.{k}": v for k, v in model.backbone.state_dict().items()}
    state = from_mmseg(backbone, "huggingface")
    return model, state | {
        "classifier.weight": torch.zeros(9, 256),
        "classifier.bias": torch.zeros(9),
    }


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_repository_is_fetched_once_and_loaded(
    name: str, hub: Hub, encoder: Any, build_model: Any, tmp_path: Path
) -> None:
    model, state = encoder
    (save_safetensors if name.endswith("safetensors") else save_pth)(state, tmp_path / "file")
    hub.files = {f"{REPO}/{name}": (tmp_path / "file").read_bytes(), f"{REPO}/config.json": CONFIG}
    other = build_model("b0")
    report = load_pretrained(other, REPO, "b0")
    assert report is not None
    assert report.path.name == name
    assert set(report.dropped) == {"classifier.weight", "classifier.bias"}
    assert norms_of(other) == "huggingface"
    for key, tensor in model.backbone.state_dict().items():
        assert torch.equal(other.backbone.state_dict()[key], tensor), key
    hub.asked.clear()
    load_pretrained(other, REPO, "b0")
    assert not hub.asked, "the second time it is there"


def test_a_damaged_download_is_told_and_not_kept(hub: Hub) -> None:
    hub.files = {f"{REPO}/model.safetensors": b"x" * 100, f"{REPO}/config.json": CONFIG}
    hub.damage = True
    with pytest.raises(UserError, match="cut short or damaged"):
        fetch_weights(["--source", REPO])
    assert find_repo(REPO) is None
    hub.damage = False
    fetch_weights(["--source", REPO])
    assert find_repo(REPO) is not None


def test_what_is_not_there(hub: Hub, build_model: Any) -> None:
    with pytest.raises(UserError, match="has no repository 'nvidia/mit-b9'") as caught:
        load_pretrained(build_model("b0"), "nvidia/mit-b9", "b0")
    assert "\n" not in str(caught.value)


def test_no_network(hub: Hub, build_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    model = build_model("b0")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(
        UserError, match=r"cannot download http://127\.0\.0\.1:9.*run tools/fetch_weights"
    ) as e:
        load_pretrained(model, REPO, "b0")
    assert "\n" not in str(e.value)
    assert "put config.json and the weights into" in str(e.value), "one alone is no folder"
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_the_hubs_own_cache_is_used(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "hf" / "hub" / "models--nvidia--mit-b0"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc123")
    snapshot = folder / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes(CONFIG)
    assert find_repo(REPO) is None
    (snapshot / "pytorch_model.bin").write_bytes(b"x")
    assert find_repo(REPO) == snapshot


def test_the_command(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.files = {f"{REPO}/model.safetensors": b"x" * 100, f"{REPO}/config.json": CONFIG}
    assert fetch_weights(["--source", REPO, "--list"]) == 0
    out = capsys.readouterr().out
    assert "not there" in out
    assert "non-commercial" in out
    fetch_weights(["--source", REPO])
    assert "downloaded" in capsys.readouterr().out
    fetch_weights(["--source", REPO])
    assert "was there" in capsys.readouterr().out
    fetch_weights(["--source", "someone/segformer", "--list"])
    assert "see https://huggingface.co/someone/segformer" in capsys.readouterr().out
    with pytest.raises(UserError, match="leave VARIANT out"):
        fetch_weights(["b0", "--source", REPO])
    with pytest.raises(UserError, match="named owner/name"):
        fetch_weights(["--source", "a/b/c"])
