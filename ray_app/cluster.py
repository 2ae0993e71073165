"""Ray: start or join it, its nodes that are up, and this run's place among them.
Knows nodes and actors; how many actors a cluster can have is in `capacity`."""

import contextlib
import dataclasses
import glob
import logging
import os
import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actors import memory
from ray_app.errors import ClusterRefused, one_line
from ray_app.interrupts import handlers_kept

LOCAL_IP = "127.0.0.1"
HEAD = "node:__internal_head__"
"""A resource that Ray gives to the head's node alone."""
CONNECT_SECONDS = 10.0
PROJECT = Path(__file__).resolve().parent.parent
LEAST_MEMORY = 800e6
"""Bytes that a driver, Ray's own processes and one worker of a tiny model take together, about."""
IDLE_SECONDS = 600
"""For which a Ray of this machine alone keeps a process without a task. Its own second would end the writers' after
each batch, and a new one takes a core for a second to start."""


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Join the cluster at `address` or RAY_ADDRESS, or start Ray on this machine alone; leave it at the end.

    Raises:
        Refused: no cluster answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # else a thread that outlives an interrupted run starts Ray anew
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else its C++ side writes warnings into the progress
    memory.share_heaps()  # before Ray's threads are there
    import ray
    import ray._private.worker

    if ray.is_initialized():  # somebody else's, who also ends it
        yield
        return
    ray._private.worker.print_to_stdstream = lambda *_, **__: None  # warnings of raylets, into the plan on stdout
    flag = "--address" if address else "RAY_ADDRESS"
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    options: dict[str, Any] = {}
    if address == "local":
        patient = {"idle_worker_killing_time_threshold_ms": IDLE_SECONDS * 1000}
        options = {"include_dashboard": False, "_system_config": patient}
        _check_memory()
        _give_token()
    elif _check_answers(address, flag) == LOCAL_IP:  # or Ray would look for it at this machine's other address
        options = {"_node_ip_address": LOCAL_IP}
    try:
        with _silent_stderr(), _in_project(), handlers_kept():  # Ray takes SIGTERM for itself
            ray.init(address=address, **options, **quiet)
    except Exception as error:  # Ray raises many kinds
        why = f"{flag} {address}: {_not_joined(error)}" if address != "local" else _not_started(error)
        raise ClusterRefused(why) from None
    try:
        yield
    finally:
        if "ray.data" in sys.modules:
            stop_data()
        ray.shutdown()


def _check_memory() -> None:
    """Raise Refused where the system would end Ray, or this process, a moment after the start."""
    from ray._common.utils import get_system_memory

    if (there := get_system_memory()) < LEAST_MEMORY:
        raise ClusterRefused(
            f"Ray can't be started here: this machine or container has {there / 1e6:,.0f} MB of memory; give it"
            f" {LEAST_MEMORY / 1e6:,.0f} MB at least"
        )


def _not_started(error: Exception) -> str:
    """Why Ray could not be started on this machine, and what to do."""
    why, mend = one_line(error, 200), "look into Ray's logs, session_latest/logs in /tmp/ray or RAY_TMPDIR"
    if "AF_UNIX" in why:
        why, mend = "the paths of its sockets would have over 107 bytes", "set RAY_TMPDIR to a short folder, /tmp say"
    elif isinstance(error, OSError) and error.filename:
        why, mend = f"{error.filename}: {error.strerror}", "set RAY_TMPDIR to a folder that can be written"
    elif "/dev/shm" in why:
        mend = "give the container more shared memory (--shm-size)"
    return f"Ray can't be started here: {why}; {mend}"


def _not_joined(error: Exception) -> str:
    """Why a cluster could not be joined; what all of Ray's own messages leave out is a token."""
    why = one_line(error, 300)
    if "Version mismatch" in why:
        return f"{why}; install what the cluster has here, or send the run there with proxyqueue submit"
    return f"no Ray cluster answers there: {why[:200]}; if it wants a token, set RAY_AUTH_MODE=token"


def _give_token() -> None:
    """A token for a Ray of this machine alone, where Ray could not keep one in HOME."""
    if os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        return
    try:
        folder = Path.home() / ".ray"
        folder.mkdir(exist_ok=True)
        can_be_kept = os.access(folder, os.W_OK) or (folder / "auth_token").is_file()
    except (OSError, RuntimeError):  # no home at all
        can_be_kept = False
    if not can_be_kept:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(16)


def stop_data() -> None:
    """End what Ray Data still runs in this process: a thread that uses Ray while it shuts down ends the process."""
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

    for thread in threading.enumerate():
        if isinstance(thread, StreamingExecutor):
            thread.shutdown(force=True)


def _check_answers(address: str, flag: str = "--address") -> str | None:
    """The host of a cluster's address, None for "auto". Refused if nothing listens: Ray would wait for minutes.

    Raises:
        Refused: nothing answers there, or it is no address of a cluster.
    """
    if "://" in address:
        raise ClusterRefused(
            f"{flag} {address}: is no address that a driver can join; give HOST:PORT of the cluster (port 6379"
            " where nothing else was said), or send the run there with proxyqueue submit --address http://HEAD:8265"
        )
    told = f"{flag} {address}"
    if address == "auto":
        from ray._common.utils import get_ray_address_file
        from ray._private.services import get_ray_address_from_environment

        try:
            address = get_ray_address_from_environment("auto", None)
        except ConnectionError:  # none was found: Ray says so at once
            return None
        told += f" ({address}, as {get_ray_address_file(None)} says; remove the file if that cluster is gone)"
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal():
        return None
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterRefused(f"{told}: no Ray cluster answers there: {one_line(error)}") from None
    return host


def last_words() -> str:
    """What the processes that Ray started on this node last said, for a message."""
    from ray._private.worker import _global_node

    folder = _global_node.get_logs_dir_path() if _global_node else ""
    said = []
    for log in sorted(glob.glob(f"{glob.escape(folder)}/worker-*.err"), key=os.path.getmtime):
        with open(log, errors="replace") as opened:
            said += [line.strip() for line in opened if line.strip() and not line.startswith(":")]
    return f"the last one said: {said[-1][:300]}" if said else f"none of them said why; Ray's logs are in {folder}"


@contextlib.contextmanager
def _in_project() -> Iterator[None]:
    """Ray lets workers import from the folder that the driver joins it in: the project, not what lies around there."""
    before = os.open(".", os.O_RDONLY)  # by descriptor: Ray may replace a submitted job's folder meanwhile
    try:
        with contextlib.suppress(OSError):
            os.chdir(PROJECT)
        yield
    finally:
        os.fchdir(before)
        os.close(before)


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


@dataclasses.dataclass(frozen=True)
class LivingNode:
    """A node that is up, and what it offers in all, taken or not. Memory in bytes, the object store's included."""

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
    """How many actors of this job whose class's name has `class_name` in it are alive."""
    import ray
    from ray._private.state import actors  # the public listing wants a dashboard, which a local Ray has not

    job = ray.get_runtime_context().get_job_id()
    return sum(
        actor["State"] == "ALIVE" and actor["JobID"] == job and class_name in actor["ActorClassName"]
        for actor in actors().values()
    )


def quiet_data() -> Any:
    """Ray Data's context of this driver, without bars and log: what it would log is raised too."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    return context


def placed(anywhere: bool) -> dict[str, Any]:
    """Arguments of a Ray Data stage whose tasks may run on any node, or must on the driver's."""
    return {} if anywhere else {"label_selector": {"ray.io/node-id": node_id()}}


def node_id() -> str:
    """The driver's node."""
    import ray

    return ray.get_runtime_context().get_node_id()
