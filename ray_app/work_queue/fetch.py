"""Downloads the weights of a hub model to every node before its actors start, once per node, with a progress line.
Knows Ray's nodes; the caller knows the files, and how a file is downloaded is in `actors.hub`."""

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

from actors import hub
from actors.errors import ModelError
from ray_app.errors import ModelRefused
from ray_app.messages import LOG
from ray_app.progress import Bytes

POLL_SECONDS = 0.5
ALONGSIDE = {"num_cpus": 0, "max_concurrency": 2}
FilesOf = Callable[[hub.Tell], hub.Files]
"""Gives a model's files; lines to show are passed to its argument. Runs on each node."""


class Fetcher:
    """On a node: `fetch` in one thread, `progress` in another."""

    def __init__(self, files_of: FilesOf):
        self._files_of = files_of
        self._files: Any = None
        self._before = self._missing = 0
        self._lines: list[str] = []

    def fetch(self) -> str | None:
        """Download what is missing; why that can't be done."""
        try:
            files = self._files_of(self._lines.append)
            self._before, self._missing = files.arrived(), files.missing()
            self._files = files
            files.fetch()
        except ModelError as error:
            return str(error)
        return None

    def progress(self) -> tuple[int, int, list[str]]:
        """Bytes downloaded, bytes that were missing, and lines to show since the last call."""
        lines, self._lines[:] = list(self._lines), []
        came = self._files.arrived() - self._before if self._missing else 0
        return max(0, min(came, self._missing)), self._missing, lines


def everywhere(name: str, files_of: FilesOf, takes_gpus: bool, meanwhile: Callable[[], None]) -> None:
    """Fetch on every node that has room for an actor; a node that joins later fetches when its actors load.

    Args:
        name: the model's, for messages.
        meanwhile: called several times a second; may raise.

    Raises:
        Refused: the weights can't be downloaded, or a node has no room for them.
    """
    import ray
    from ray.exceptions import RayError

    resource = "GPU" if takes_gpus else "CPU"
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(resource)]
    fetcher: Any = ray.remote(Fetcher)
    places = {node["NodeID"]: node["NodeManagerAddress"] for node in nodes}
    on = {
        node: fetcher.options(label_selector={"ray.io/node-id": node}, **ALONGSIDE).remote(files_of) for node in places
    }
    under_way = {actor.fetch.remote(): node for node, actor in on.items()}
    with contextlib.closing(Bytes(f"of {name} fetched")) as shown:
        while under_way:
            ready, _ = ray.wait(list(under_way), timeout=POLL_SECONDS)
            meanwhile()
            answers: list[tuple[int, int, list[str]]] = []
            with contextlib.suppress(RayError):  # a node that goes away is not waited for
                answers += ray.get([actor.progress.remote() for actor in on.values()])
            lines = itertools.chain.from_iterable(new_lines for _, _, new_lines in answers)
            for line in dict.fromkeys(lines):  # each once, whichever nodes say it
                LOG.warning(line)
            shown.show(sum(came for came, _, _ in answers), sum(missing for _, missing, _ in answers))
            for reference in ready:
                node = under_way.pop(reference)
                with contextlib.suppress(RayError):
                    if why := ray.get(reference):
                        where = f"node {places[node]}: " if len(places) > 1 else ""
                        raise ModelRefused(f"{where}{why}")
