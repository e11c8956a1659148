"""Fetches published files once, into torch's own cache folder, checked by their hash."""

import hashlib
import http.client
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from spark_seg.atomic import make_folder, user_errors
from spark_seg.errors import UserError
from spark_seg.progress import Progress

_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without a byte


def cache_folder() -> Path:
    """Where torch.hub keeps weights: `$TORCH_HOME/hub/checkpoints`, else in `~/.cache/torch`."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def fetch(url: str, digest: str) -> Path:
    """The path of a file in the cache, downloaded where it is not there yet.

    The download is written beside and renamed when its hash is right, so that neither an
    interrupted one nor several at a time leave a broken file.

    Args:
        url: An http(s) or file URL; its last part is the file's name in the cache.
        digest: How the file's SHA-256 begins, in hex.

    Raises:
        UserError: The address cannot be reached, the cache not written, or the file is not the one
            expected.
    """
    path = cache_folder() / url.rsplit("/", 1)[1]
    if path.is_file():
        with user_errors(path):
            if not _sha256(path).startswith(digest):
                raise UserError(
                    f"{path} is damaged (its SHA-256 does not begin with {digest}): delete it and "
                    "start again"
                )
        return path
    make_folder(path.parent)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        hashed = hashlib.sha256()
        with user_errors(path), part.open("xb") as file:
            for chunk in _download(url, path):
                hashed.update(chunk)
                file.write(chunk)
        if not hashed.hexdigest().startswith(digest):
            raise UserError(
                f"what {url} sent is cut short or another file (its SHA-256 does not begin with "
                f"{digest}): start again, or {_by_hand(path)}"
            )
        with user_errors(path):
            os.replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink()
    return path


def fetch_in_job(url: str, digest: str) -> Path:
    """As `fetch`; where a process group of several is up, rank 0 alone downloads while the others wait.

    To be called by all ranks.

    Raises:
        UserError: On every rank, what `fetch` raised on rank 0; or the cache of rank 0 is not this node's.
    """
    path = cache_folder() / url.rsplit("/", 1)[1]
    return in_job(lambda: fetch(url, digest), lambda: path if path.is_file() else None, str(path))


def in_job(download: Callable[[], Path], find: Callable[[], Path | None], what: str) -> Path:
    """Downloads on rank 0 alone and finds on the others what it put into the cache; to be called by all ranks.

    Args:
        download: Fetches what is not there yet and says where it is.
        find: Where it is, or None.
        what: Its path or name, for the message.

    Raises:
        UserError: On every rank, what `download` raised on rank 0; or the cache of rank 0 is not this node's.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return download()
    told: list[str | None] = [None]
    if dist.get_rank() == 0:
        try:
            download()
        except UserError as error:
            told = [str(error)]
    dist.broadcast_object_list(told, src=0)
    if told[0] is not None:
        raise UserError(told[0])
    path = find()
    if path is None:
        raise UserError(
            f"rank 0 has {Path(what).name} in its cache, and {what} is not there on this node: set TORCH_HOME to a "
            "folder that all nodes see, or run tools/fetch_weights.py on each"
        )
    return path


def fetch_file(url: str, path: Path) -> None:
    """Downloads a file whose hash is not known beforehand, written beside and renamed when it is whole.

    It is held against the length and, where the host sends one (the Hugging Face hub for large files), the SHA-256.

    Raises:
        NotThereError: The host has no such file, or not for everybody.
        UserError: The address cannot be reached, the cache not written, or the file is cut short.
    """
    if path.is_file():
        return
    make_folder(path.parent)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    expected = _Expected()
    try:
        hashed, received = hashlib.sha256(), 0
        with user_errors(path), part.open("xb") as file:
            for chunk in _download(url, path, expected):
                hashed.update(chunk)
                received += len(chunk)
                file.write(chunk)
        if (expected.size or received) != received or (
            expected.sha256 and expected.sha256 != hashed.hexdigest()
        ):
            raise UserError(
                f"what {url} sent is cut short or damaged: start again, or {_by_hand(path)}"
            )
        with user_errors(path):
            os.replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink()


class NotThereError(UserError):
    """The host answers, and has no such file."""


@dataclass
class _Expected:
    """What a host says of a file before it sends it."""

    size: int = 0
    sha256: str | None = None


class _Redirects(HTTPRedirectHandler):
    """Follows redirects and keeps the hash that the Hugging Face hub sends with the one to its large files."""

    def __init__(self, expected: _Expected) -> None:
        self.expected = expected

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        tag = str(headers.get("X-Linked-Etag") or "").strip('"')
        if re.fullmatch("[0-9a-f]{64}", tag):
            self.expected.sha256 = tag
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _by_hand(path: Path) -> str:
    published = path.suffix == ".pth"  # else one of a Hugging Face repository's two files
    put = f"the file at {path}" if published else f"config.json and the weights into {path.parent}"
    return (
        f"run tools/fetch_weights.py where there is network, put {put}, or train from scratch with "
        "--cfg-options pretrained=None"
    )


def _download(url: str, path: Path, expected: _Expected | None = None) -> Iterator[bytes]:
    expected = expected or _Expected()
    try:
        opener = build_opener(_Redirects(expected))
        request = Request(url, headers={"User-Agent": "spark_seg"})
        with opener.open(request, timeout=_TIMEOUT) as reply:
            expected.size = size = int(reply.headers.get("Content-Length") or 0)
            with Progress(round(size / 1e6), f"download {path.name}", "MB") as bar:
                received = 0
                while chunk := reply.read(_CHUNK):
                    before, received = received, received + len(chunk)
                    bar.update(round(received / 1e6) - round(before / 1e6))
                    yield chunk
    except (HTTPError, URLError, http.client.HTTPException, OSError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        code = f"{error.code} " if isinstance(error, HTTPError) else ""
        told = " ".join(f"{code}{reason}".split())
        kind = NotThereError if code.strip() in ("401", "403", "404") else UserError
        raise kind(f"cannot download {url} ({told}): {_by_hand(path)}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
