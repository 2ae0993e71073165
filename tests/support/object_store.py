"""A real S3-speaking server of its own process, behind a proxy that counts requests and makes faults."""

import collections
import contextlib
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.nodes import answers
from tests.support.processes import wait_for

BUCKET = "bucket"
SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)

Fault = Callable[[str, str, int], str | None]
"""From method, path and the request's number since `begin`: "503", "cut", "cut after", "slow", or None for no fault."""


class ObjectStore:
    """The store as tests see it: its environment, what was asked of it, and the fault to make."""

    def __init__(self, port: int, backend: int):
        self.backend = backend
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.slow_seconds = 3.5
        self._lock = threading.Lock()
        self.begin()

    def begin(self, fault: Fault = lambda method, path, number: None) -> None:
        """Count from zero, and from now on make this fault."""
        self.fault = fault
        self.requests: list[tuple[str, str]] = []
        self.faults = 0

    def counts(self) -> dict[str, int]:
        """How many requests of each method there were."""
        return dict(collections.Counter(method for method, _ in self.requests))

    def note(self, method: str, path: str) -> str | None:
        with self._lock:
            self.requests.append((method, path))
            fault = self.fault(method, path, len(self.requests))
            self.faults += fault is not None
            return fault


def _handler(store: ObjectStore) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or an answer's body waits 40 ms for the acknowledgement of its head

        def answer(self) -> None:
            body = self._body()
            fault = store.note(self.command, self.path)
            if fault == "slow":
                time.sleep(store.slow_seconds)
            if fault == "503":
                return self._send(503, [], SLOW_DOWN)
            if fault != "cut":
                status, headers, content = self._forward(body)
            if fault in ("cut", "cut after"):
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)
                return None
            return self._send(status, headers, content)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            del self.headers["Transfer-Encoding"]
            self.headers["Content-Length"] = str(len(body))
            return body

        def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", store.backend)
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            return answer.status, answer.getheaders(), content

        def _send(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            with contextlib.suppress(OSError):  # the client has given up
                self.send_response(status)
                kept = {name.lower(): value for name, value in headers}
                length = kept.pop("content-length", None) if self.command == "HEAD" else None
                for name in ("content-length", "connection", "transfer-encoding", "date", "server"):
                    kept.pop(name, None)
                for name, value in kept.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", length or str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            """Quiet."""

    return Handler


@contextlib.contextmanager
def running() -> Iterator[ObjectStore]:
    """A store with one empty bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        backend = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(backend)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    proxy.daemon_threads = True
    store = ObjectStore(proxy.server_address[1], backend)
    proxy.RequestHandlerClass = _handler(store)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        wait_for("the S3 server answers", lambda: answers(f"127.0.0.1:{backend}"), 60)
        _make_bucket(backend)
        yield store
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.kill()
        server.wait()


def _make_bucket(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("PUT", f"/{BUCKET}")
    assert connection.getresponse().status == 200
    connection.close()


@contextlib.contextmanager
def in_environment(store: ObjectStore) -> Iterator[None]:
    """This process's environment has what reaches the store."""
    before = dict(os.environ)
    os.environ.update(store.environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
