"""Ray: start or join it, its nodes that are up, and this run's place among them.
Knows nodes and actors; how many actors a cluster can have is in `capacity`."""

import contextlib
import dataclasses
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actors import memory
from ray_app.cluster import ray_workarounds
from ray_app.errors import ClusterRefused, one_line
from ray_app.interrupts import handlers_kept

LOCAL_IP = "127.0.0.1"
HEAD = "node:__internal_head__"
"""A resource that Ray gives to the head's node alone."""
CONNECT_SECONDS = 10.0
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
LEAST_MEMORY = 800e6
"""Bytes that a driver, Ray's own processes and one worker of a tiny model take together, about."""
IDLE_SECONDS = 600
"""How long a Ray of this machine alone keeps an idle process. Ray's default of one second would end the writers'
processes after each batch, and a new one takes a core for a second to start."""


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Join the cluster at `address` or RAY_ADDRESS, or start Ray on this machine alone; leave it at the end.

    Raises:
        Refused: no cluster answers there.
    """
    memory.share_heaps()  # before Ray starts its threads
    with contextlib.ExitStack() as undone:
        undone.enter_context(ray_workarounds.environment(RAY_USAGE_STATS_ENABLED="0"))
        undone.enter_context(ray_workarounds.no_automatic_start())
        undone.enter_context(ray_workarounds.quiet_backend())
        import ray

        if ray.is_initialized():  # by a caller, who also shuts it down
            yield
            return
        undone.enter_context(ray_workarounds.quiet_node_messages())
        undone.callback(ray.shutdown)
        undone.callback(ray_workarounds.stop_data)
        flag = "--address" if address else "RAY_ADDRESS"
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        if address == "local":
            undone.enter_context(_token())
            _start()
        else:
            _join(address, flag)
        yield


def _start() -> None:
    """Start Ray on this machine alone.

    Raises:
        Refused: why that is not possible.
    """
    import ray

    _check_memory()
    settings = {"idle_worker_killing_time_threshold_ms": IDLE_SECONDS * 1000}
    try:
        with _undisturbed():
            ray.init(address="local", include_dashboard=False, _system_config=settings, **QUIET)
    except Exception as error:  # Ray raises many kinds
        raise ClusterRefused(_explain_start(error)) from None


def _join(address: str, flag: str) -> None:
    """Join a running cluster.

    Raises:
        Refused: nothing answers there, or the cluster refuses.
    """
    import ray

    options: dict[str, Any] = {}
    if _check_answers(address, flag) == LOCAL_IP:  # or Ray would look for it at this machine's other address
        options["_node_ip_address"] = LOCAL_IP
    try:
        with _undisturbed():
            ray.init(address=address, **options, **QUIET)
    except Exception as error:  # Ray raises many kinds
        raise ClusterRefused(f"{flag} {address}: {_explain_join(error)}") from None


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """While Ray starts: no line on stderr, workers import from the project, and SIGTERM stays the command's."""
    # Ray installs a handler of its own for SIGTERM, see https://github.com/ray-project/ray/issues/17745
    with ray_workarounds.silent_stderr(), ray_workarounds.in_project_folder(), handlers_kept():
        yield


def _check_memory() -> None:
    """Raise Refused where the system would end Ray, or this process, a moment after the start."""
    if (size := ray_workarounds.find_system_memory()) < LEAST_MEMORY:
        raise ClusterRefused(
            f"Ray can't be started here: this machine or container has {size / 1e6:,.0f} MB of memory; give it"
            f" {LEAST_MEMORY / 1e6:,.0f} MB at least"
        )


def _explain_start(error: Exception) -> str:
    """Why Ray could not be started on this machine, and what to do."""
    why, advice = one_line(error, 200), "look into Ray's logs, session_latest/logs in /tmp/ray or RAY_TMPDIR"
    if "AF_UNIX" in why:
        why, advice = "the paths of its sockets would have over 107 bytes", "set RAY_TMPDIR to a short folder, /tmp say"
    elif isinstance(error, OSError) and error.filename:
        why, advice = f"{error.filename}: {error.strerror}", "set RAY_TMPDIR to a folder that can be written"
    elif "/dev/shm" in why:
        advice = "give the container more shared memory (--shm-size)"
    return f"Ray can't be started here: {why}; {advice}"


def _explain_join(error: Exception) -> str:
    """Why a cluster could not be joined; none of Ray's own messages mentions a missing token."""
    why = one_line(error, 300)
    if "Version mismatch" in why:
        return f"{why}; install what the cluster has here, or send the run there with proxyqueue submit"
    return f"no Ray cluster answers there: {why[:200]}; if it wants a token, set RAY_AUTH_MODE=token"


@contextlib.contextmanager
def _token() -> Iterator[None]:
    """A token for a Ray of this machine alone, where Ray could not keep one in HOME."""
    if os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        yield
        return
    try:
        folder = Path.home() / ".ray"
        folder.mkdir(exist_ok=True)
        can_be_kept = os.access(folder, os.W_OK) or (folder / "auth_token").is_file()
    except (OSError, RuntimeError):  # no home at all
        can_be_kept = False
    if can_be_kept:
        yield
        return
    with ray_workarounds.environment(RAY_AUTH_TOKEN=secrets.token_hex(16)):
        yield


def _check_answers(address: str, flag: str = "--address") -> str | None:
    """The host of a cluster's address, None for "auto". Refused if nothing listens: Ray would wait for minutes.

    Raises:
        Refused: nothing answers there, or it is not the address of a cluster.
    """
    if "://" in address:
        raise ClusterRefused(
            f"{flag} {address}: is not an address that a driver can join; give HOST:PORT of the cluster (port 6379"
            " by default), or send the run there with proxyqueue submit --address http://HEAD:8265"
        )
    told = f"{flag} {address}"
    if address == "auto":
        found_address, file = ray_workarounds.find_address()
        if found_address is None:  # Ray says so at once
            return None
        address = found_address
        told += f" ({address}, as {file} says; remove the file if that cluster is gone)"
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal():
        return None
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterRefused(f"{told}: no Ray cluster answers there: {one_line(error)}") from None
    return host


@dataclasses.dataclass(frozen=True)
class LivingNode:
    """A node that is up, and what it offers in total, in use or not. Memory in bytes, including the object store's."""

    node_id: str
    name: str
    cpus: float
    gpus: float
    memory: float
    is_head: bool


def living_nodes() -> list[LivingNode]:
    """The nodes of the cluster that are up."""
    import ray

    return [_living_node(node) for node in ray.nodes() if node["Alive"]]


def _living_node(node: dict[str, Any]) -> LivingNode:
    offers = node["Resources"]
    return LivingNode(
        node_id=node["NodeID"],
        name=node["NodeManagerAddress"],
        cpus=offers.get("CPU", 0.0),
        gpus=offers.get("GPU", 0.0),
        memory=offers.get("memory", 0.0) + offers.get("object_store_memory", 0.0),
        is_head=HEAD in offers,
    )


def count_actors(class_name: str) -> int:
    """How many actors of this job are alive whose class name contains `class_name`."""
    import ray

    job = ray.get_runtime_context().get_job_id()
    return sum(
        actor["State"] == "ALIVE" and actor["JobID"] == job and class_name in actor["ActorClassName"]
        for actor in ray_workarounds.list_actors()
    )


def placement_options(anywhere: bool) -> dict[str, Any]:
    """Arguments of a Ray Data stage whose tasks may run on any node, or must on the driver's."""
    return {} if anywhere else {"label_selector": {"ray.io/node-id": node_id()}}


def node_id() -> str:
    """The driver's node."""
    import ray

    return ray.get_runtime_context().get_node_id()
