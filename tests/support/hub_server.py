"""A model hub on loopback: repositories of commits, from folders, with the faults that hubs and networks have.
Speaks as much of the hub's protocol as its client asks of it here."""

import contextlib
import dataclasses
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

WEIGHTS = ".safetensors"


@dataclasses.dataclass
class Hub:
    """What it serves and how; tests change it while it runs.

    Attributes:
        commits: folders by repository and commit.
        main: the commit that each repository's branch main is at.
        gated: repositories that want the token "good".
        ill: status that requests for weights are answered with, and how many of them; -1 for all.
        api_ill: status of all requests for names and commits.
        page: whether a captive portal answers everything, with a page of its own.
        cut: break off the first download of each file of weights after so many bytes.
        bytes_per_second: of each download of weights.
        got: downloads begun of each file.
    """

    address: str = ""
    commits: dict[str, dict[str, Path]] = dataclasses.field(default_factory=dict)
    main: dict[str, str] = dataclasses.field(default_factory=dict)
    gated: set[str] = dataclasses.field(default_factory=set)
    ill: tuple[int, int] = (0, 0)
    api_ill: int = 0
    page: bool = False
    cut: int = 0
    bytes_per_second: int = 0
    got: Counter[str] = dataclasses.field(default_factory=Counter)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def add(self, repository: str, commit: str, folder: Path) -> None:
        """A commit, which main is at from now on."""
        self.commits.setdefault(repository, {})[commit] = folder
        self.main[repository] = commit

    def falls_ill(self) -> int:
        """The status to answer a request for weights with instead, 0 to serve it."""
        with self.lock:
            status, times = self.ill
            if times:
                self.ill = status, times - 1
            return status if times else 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path).strip("/").split("/")
        if hub.page:
            return self._send(200, b"<html>Please log in</html>", {"Content-Type": "text/html"})
        if path[:2] == ["api", "models"]:
            return self._say(hub, "/".join(path[2:4]), path[4:])
        return self._give(hub, "/".join(path[:2]), *path[3:4], "/".join(path[4:]))

    def _say(self, hub: Hub, repository: str, rest: list[str]) -> None:
        """Names and commits."""
        if hub.api_ill:
            return self._send(hub.api_ill)
        found = self._find(hub, repository, rest[1] if len(rest) > 1 else "main")
        if found is None:
            return None
        commit, folder = found
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        names = [file.relative_to(folder).as_posix() for file in files]
        if rest[:1] == ["tree"]:
            answer = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": _sha1(file)}
                for name, file in zip(names, files, strict=True)
            ]
        else:
            siblings = [{"rfilename": name} for name in names]
            answer = {"id": repository, "sha": commit, "siblings": siblings, "tags": [], "private": False}
            answer |= {"_id": "1", "modelId": repository, "gated": False, "downloads": 0, "likes": 0}
        return self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _give(self, hub: Hub, repository: str, revision: str, name: str) -> None:
        """A file."""
        found = self._find(hub, repository, revision)
        if found is None:
            return None
        commit, folder = found
        file = folder / name
        if not file.is_file():
            return self._refuse(404, "EntryNotFound")
        if name.endswith(WEIGHTS) and (status := hub.falls_ill()):
            return self._send(status)
        data = file.read_bytes()
        tag = f'"{hashlib.sha256(data).hexdigest() if name.endswith(WEIGHTS) else _sha1(file)}"'
        headers = {"ETag": tag, "X-Repo-Commit": commit, "Accept-Ranges": "bytes", "X-Linked-Size": str(len(data))}
        headers |= {"X-Linked-Etag": tag}
        if self.command == "HEAD":
            return self._send(200, b"", {**headers, "Content-Length": str(len(data))})
        start = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        with hub.lock:
            hub.got[name] += 1
            first = hub.got[name] == 1
        return self._stream(hub, data[start:], 206 if start else 200, headers, first and name.endswith(WEIGHTS))

    def _stream(self, hub: Hub, data: bytes, status: int, headers: dict[str, str], may_be_cut: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if hub.cut and may_be_cut and len(data) > hub.cut:
            self.wfile.write(data[: hub.cut])
            self.close_connection = True
            return
        piece = 2**14
        for start in range(0, len(data), piece):
            self.wfile.write(data[start : start + piece])
            if hub.bytes_per_second and may_be_cut:
                time.sleep(piece / hub.bytes_per_second)

    def _find(self, hub: Hub, repository: str, revision: str) -> tuple[str, Path] | None:
        commits = hub.commits.get(repository)
        if commits is None:
            return self._refuse(401, "RepoNotFound")
        if repository in hub.gated and self.headers.get("Authorization") != "Bearer good":
            return self._refuse(403 if "Authorization" in self.headers else 401, "GatedRepo")
        commit = hub.main[repository] if revision == "main" else revision
        if commit not in commits:
            return self._refuse(404, "RevisionNotFound")
        return commit, commits[commit]

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: Hub):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub

    def handle_error(self, request, client_address) -> None:
        """A client that went away."""


def _sha1(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """A hub that answers at its `address` until the end of the block."""
    hub = Hub()
    server = _Server(hub)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
