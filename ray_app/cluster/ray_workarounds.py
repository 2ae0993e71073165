"""What Ray does not let a program choose, or does not report: one function per workaround, with when it can go.
Private names of Ray are imported only here; each function restores what it changes.

Tests have passed with Ray 2.58.0 and 2.60.0; 2.59 is untried. Not with 2.57: Ray Data had no
`max_consecutive_actor_init_deaths` and `execution_no_progress_timeout_s` then, which `work_queue.queue` sets.
"""

import contextlib
import glob
import inspect
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

PROJECT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Environment variables that are not set yet, while Ray is imported and started: it has no arguments for these.

    Can go when `ray.init` takes them.
    """
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def no_automatic_start() -> contextlib.AbstractContextManager[None]:
    """A thread that uses Ray after a run has ended raises, and starts no new Ray of its own.

    Read when Ray is imported. Can go with https://github.com/ray-project/ray/issues/64206.
    """
    return environment(RAY_ENABLE_AUTO_CONNECT="0")


def quiet_backend() -> contextlib.AbstractContextManager[None]:
    """Ray's C++ code writes no warnings into a command's progress: `logging_level` is for Python's only."""
    return environment(RAY_BACKEND_LOG_LEVEL="fatal")


@contextlib.contextmanager
def quiet_node_messages() -> Iterator[None]:
    """Warnings of the cluster's nodes stay out of standard output, where a command's results are.

    Ray prints them there even with `log_to_driver=False`. Can go when that silences them too.
    """
    import ray._private.worker as worker

    print_to_stdstream = worker.print_to_stdstream
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        worker.print_to_stdstream = print_to_stdstream


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Ray's C++ code announces its log level on file descriptor 2 while it starts. What goes wrong is raised.

    Can go when `ray.init(logging_level=…)` keeps that line back.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def in_project_folder() -> Iterator[None]:
    """Workers import from the project, and not from whatever lies in the user's working directory (a `numpy.py` say).

    Ray puts the folder in which the driver calls `ray.init` first on the workers' path, see
    https://github.com/ray-project/ray/issues/43182. Can go when that can be switched off.
    """
    before = os.open(".", os.O_RDONLY)  # by descriptor: Ray may replace a submitted job's folder meanwhile
    try:
        with contextlib.suppress(OSError):
            os.chdir(PROJECT)
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def stop_data() -> None:
    """End what Ray Data still runs in this process: a thread that uses Ray while it shuts down ends the process.

    Can go when `ray.shutdown` does it.
    """
    if "ray.data" not in sys.modules:
        return
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

    for thread in threading.enumerate():
        if isinstance(thread, StreamingExecutor):
            thread.shutdown(force=True)


def make_dataset(tables: list[pa.Table]) -> Any:
    """A Ray Dataset with one block per table. Without a task: `from_arrow` waits until the cluster has a CPU for one.

    Can go when the public functions need no task either.
    """
    import_data()
    from ray.data.read_api import from_blocks

    return from_blocks(tables)


def pool_options(calls: int, **arguments: Any) -> dict[str, Any]:
    """What `map_batches` takes for a pool of actors, each of which runs this number of calls at a time.

    The pool has an argument for that since Ray 2.59, and before it is an option of the actors, which 2.60 deprecates.
    Can go with support for 2.58.

    Args:
        arguments: others of `ActorPoolStrategy`.
    """
    from ray.data import ActorPoolStrategy

    if "max_concurrent_calls_per_actor" in inspect.signature(ActorPoolStrategy).parameters:
        return {"compute": ActorPoolStrategy(max_concurrent_calls_per_actor=calls, **arguments)}
    return {"compute": ActorPoolStrategy(**arguments), "max_concurrency": calls}


def import_data() -> Any:
    """`ray.data`, which requests no nodes of an autoscaler by itself.

    It would keep requesting GPU nodes while a run ends; the actors that have no place yet request enough. It reads
    these when it is imported. Can go when its DataContext has a switch for that, see
    https://github.com/ray-project/ray/issues/59144.
    """
    resources = ("CPU", "GPU", "MEMORY", "OBJECT_STORE_MEMORY")
    never = {f"RAY_DATA_DEFAULT_CLUSTER_SCALING_UP_{name}_UTIL_THRESHOLD": "1e9" for name in resources}
    with environment(**never):
        import ray.data
    return ray.data


def quiet_data() -> Any:
    """Ray Data's context in this process, without progress bars and log: what it would log is also raised."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    return context


def list_actors() -> list[dict[str, Any]]:
    """Every actor that the cluster knows. The public listing needs a dashboard, which a local Ray does not have."""
    from ray._private.state import actors

    return list(actors().values())


def find_system_memory() -> int:
    """Bytes of memory that this machine or container has, as Ray counts it."""
    from ray._common.utils import get_system_memory

    return get_system_memory()


def find_address() -> tuple[str | None, str]:
    """What the address "auto" stands for, None if there is no cluster; and the file that says so."""
    from ray._common.utils import get_ray_address_file
    from ray._private.services import get_ray_address_from_environment

    file = get_ray_address_file(None)
    try:
        return get_ray_address_from_environment("auto", None), file
    except ConnectionError:
        return None, file


def session_name() -> str:
    """The name of the Ray session that this process has joined; public only where the dashboard runs."""
    from ray._private.worker import global_worker

    node: Any = global_worker.node
    return node.session_name


def kubernetes_producer(cluster: str, namespace: str) -> Any:
    """What KubeRay's autoscaler makes its configuration with. Can go when Ray tells a driver an autoscaler's limits."""
    from ray.autoscaler._private.kuberay.autoscaling_config import AutoscalingConfigProducer

    return AutoscalingConfigProducer(cluster, namespace)


def last_words() -> str:
    """What the processes that Ray started on this node last said, for a message."""
    from ray._private.worker import _global_node

    folder = _global_node.get_logs_dir_path() if _global_node else ""
    lines = []
    for log in sorted(glob.glob(f"{glob.escape(folder)}/worker-*.err"), key=os.path.getmtime):
        with open(log, errors="replace") as opened:
            lines += [line.strip() for line in opened if line.strip() and not line.startswith(":")]
    return f"the last one said: {lines[-1][:300]}" if lines else f"none of them said why; Ray's logs are in {folder}"
