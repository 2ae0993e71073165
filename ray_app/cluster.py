"""Ray: start or join it, and what it offers this run.
Knows resources and actors; nothing of plans or images."""

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

from ray_app.errors import Refused, one_line

LOCAL_IP = "127.0.0.1"
CONNECT_SECONDS = 10.0


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Join the cluster at `address` or RAY_ADDRESS, or start Ray on this machine alone; leave it at the end.

    Raises:
        Refused: no cluster answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # else a thread that outlives an interrupted run starts Ray anew
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else its C++ side writes warnings into the progress
    import ray

    if ray.is_initialized():  # somebody else's, who also ends it
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    options: dict[str, Any] = {}
    if address == "local":  # of no use to other machines: it listens on the loopback address alone, without a dashboard
        options = {"_node_ip_address": LOCAL_IP, "include_dashboard": False}
    elif _check_answers(address) == LOCAL_IP:  # or Ray would look for it at this machine's other address
        options = {"_node_ip_address": LOCAL_IP}
    try:
        with _silent_stderr():
            ray.init(address=address, **options, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        token = "; if it wants a token, set RAY_AUTH_MODE=token"  # all that Ray's own message leaves out
        raise Refused(f"--address {address}: no Ray cluster answers there: {one_line(error, 200)}{token}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> str | None:
    """The host of a cluster's address, None for "auto". Refused if nothing listens: Ray would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return None
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise Refused(f"--address {address}: no Ray cluster answers there: {one_line(error)}") from None
    return host


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Ray's C++ side announces its log level there, past Python's logging. What goes wrong is raised."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def actor_bounds(asked: tuple[int, int] | None, device: str, gpus_per_actor: float, tasks: int) -> tuple[int, int]:
    """(min, max) actors of the pool: what was asked for, or all that fit; never more than there are tasks.

    Raises:
        Refused: the model wants a GPU and this cluster has none.
    """
    import ray

    resources = ray.cluster_resources()
    if device == "cuda":
        gpus = resources.get("GPU", 0.0)
        if gpus < gpus_per_actor:
            raise Refused(
                f"--device cuda: the cluster offers {gpus:g} GPUs and an actor wants {gpus_per_actor:g};"
                " join one with --address, try the run with --model_path tiny, or draw on CPUs with --device cpu"
            )
        fit = int(gpus / gpus_per_actor)
    else:
        fit = int(resources.get("CPU", 1))
    low, high = asked or (1, max(1, fit))
    high = max(1, min(high, tasks))
    return min(low, high), high


def actors_up(class_name: str) -> int:
    """How many actors of this job whose class's name has `class_name` in it are alive."""
    import ray
    from ray._private.state import actors  # the public listing wants a dashboard, which a local Ray has not

    job = ray.get_runtime_context().get_job_id()
    return sum(
        actor["State"] == "ALIVE" and actor["JobID"] == job and class_name in actor["ActorClassName"]
        for actor in actors().values()
    )


def nodes() -> int:
    """How many nodes the cluster has now."""
    import ray

    return sum(node["Alive"] for node in ray.nodes())


def node_id() -> str:
    """The driver's node."""
    import ray

    return ray.get_runtime_context().get_node_id()
