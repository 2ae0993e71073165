"""Real clusters for tests: raylets of their own on the loopback address, started and ended by process id."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.nodes import answers, free_port, node_environment, short_folder
from tests.support.processes import comes_true, commands

TOKEN = "0123456789abcdef0123456789abcdef"


class Cluster:
    """A head node with a dashboard, and more nodes as requested; each a process that can be killed.

    Args:
        folder: of `short_folder`, which kills the nodes at its end.
        token: whether Ray's ports want TOKEN.
        flags: of `ray start` of the head.
        environment: variables of all nodes.
    """

    def __init__(self, folder: Path, *flags: str, token: bool = False, **environment: str):
        self.folder = folder
        port, dashboard = free_port(), free_port()
        self.address, self.dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
        inherited = node_environment(folder)
        self.environment = {
            # a job's `python` is this one; nothing of this checkout but what is shipped
            **{name: value for name, value in inherited.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            **auth(token),
            **environment,
        }
        self.log = folder / "nodes.log"
        self.processes: list[subprocess.Popen] = []
        self.start("--head", f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1",
                   f"--temp-dir={folder}", *flags)  # fmt: skip
        up = comes_true(lambda: listens(port) and listens(dashboard), 90)
        assert up, f"no Ray head on ports {port} and {dashboard} after 90 s: {self.log.read_text()[-2000:]}"

    def start(self, *flags: str, within: Sequence[str] = (), **environment: str) -> subprocess.Popen:
        """Start a node, by way of another command where one is given."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address=127.0.0.1"]
        # where jobs are started: one fixed port a machine, and nodes of many tests share this one
        command += [f"--dashboard-agent-listen-port={free_port()}", *flags]
        with self.log.open("a") as log:
            self.processes.append(
                subprocess.Popen([*within, *command], env={**self.environment, **environment}, stdout=log, stderr=log)
            )
        return self.processes[-1]


def auth(token: bool) -> dict[str, str]:
    """Variables of a shell that has the cluster's token, or of one that has none."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN} if token else {"RAY_AUTH_MODE": "disabled"}


@contextlib.contextmanager
def cluster(*flags: str, token: bool = False, **environment: str) -> Iterator[Cluster]:
    """A cluster that is killed at the end: a head that is asked to end drains for half a minute."""
    with short_folder() as folder:
        yield Cluster(folder, *flags, token=token, **environment)


class Tunnel:
    """Forwards a port of this machine to another one, until it is cut; what comes after that is forwarded again."""

    def __init__(self, to: int):
        self.to = to
        self._sockets: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self.to))
                self._sockets += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._forward, args=(one, other), daemon=True).start()

    def _forward(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Break all connections that there are."""
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._sockets.clear()

    def close(self) -> None:
        self._listening.close()
        self.cut()


def pids(marker: str) -> list[int]:
    """Processes that have the marker in their command line."""
    return [process for process, line in commands().items() if marker in line and process != os.getpid()]


def listens(port: int) -> bool:
    return answers(f"127.0.0.1:{port}")
