"""Queue: batches become a Ray Dataset, go through reading, a pool of workers and writing, and come back as rows.
Knows Ray Data, and what to do when a worker dies, hangs or never loads; neither images nor models."""

import contextlib
import dataclasses
import functools
import gc
import math
import queue
import re
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import pyarrow as pa

from ray_app.cluster import autoscaling, connection, node_probe, ray_workarounds
from ray_app.cluster.capacity import Capacity, PoolWatch, Request
from ray_app.errors import ClusterRefused, Refused, one_line
from ray_app.messages import LOG
from ray_app.progress import PoolState
from ray_app.work_queue import file_processes, in_flight
from ray_app.work_queue.cards import Holders
from ray_app.work_queue.in_flight import Terms
from ray_app.work_queue.watchdog import Watchdog
from ray_app.work_queue.worker import Worker

TASKS_IN_FLIGHT = 2
"""Batches at an actor: one being processed and one waiting, so that none waits for the driver."""
INIT_DEATHS = 2
"""Actors that may fail to load, one after another, before the run ends: another process may free a GPU's memory."""
FILE_TASKS = 2
"""Reading tasks, and writing tasks, at a time on each node that reads and writes files."""
POLL_SECONDS = 0.2
FETCHER = "proxyqueue results"
"""Name of the thread that waits for Ray Data."""
STOP_SECONDS = 20.0
"""How long a run that ends early waits for Ray Data's threads: they take a second."""
FIRST_SECONDS = 120.0
"""How long the first process may take to start: a second or two, longer on a busy disk or machine."""
FIRST_WORKER_SECONDS = 60.0
"""After this long without a first worker, although the cluster has room for one, a run looks for the reason."""
LOOK_SECONDS = 20.0
"""How long the nodes may take to answer then."""
NOT_CREATED = "died because of an error raised in its creation task"
"""In the text of Ray's error of an actor whose class or constructor failed."""

Read = Callable[[pa.Table], pa.Table]
"""Called with a batch; gives the batch that a worker gets, with as many rows: with the bytes of its files, say.

Runs in a process of its own, and again for the same batch if that dies: it must then give the same."""
Write = Callable[..., pa.Table]
"""Called with a table of a worker's rows and `notice`, which takes a line and its topic; returns the rows to collect.

Runs in a process of its own, and again for the same rows if that dies: it must then write the same."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What is done with each batch.

    Args:
        worker: what each actor runs.
        arguments: of the worker's `load`.
        batch_size: rows of a full batch.
        write: what is done with a worker's rows; None: they come back as they are.
        name: what the workers load, for messages.
        terms: how messages name the parts of the work.
        timeout: seconds that a batch may take; None for a multiple of the median.
        fatal: errors of a worker that end the run; their message is what `refusal` says.
        refusal: what the run raises then.
        read: what is done with a batch before a worker gets it; None: nothing.
    """

    worker: type[Worker]
    arguments: tuple[Any, ...]
    batch_size: int
    write: Write | None
    name: str
    terms: Terms
    timeout: float | None = None
    fatal: tuple[type[Exception], ...] = ()
    refusal: type[Refused] = ClusterRefused
    read: Read | None = None


@dataclasses.dataclass(frozen=True)
class Pool:
    """Where batches are processed.

    Args:
        request: how many actors, and what each reserves.
        overlapped: an actor finishes one batch while it processes the next: on CPUs both would need the same core.
        writes_anywhere: every node reaches the output; else only the driver's node writes.
    """

    request: Request
    overlapped: bool = False
    files_anywhere: bool = False

    @property
    def resources(self) -> dict[str, Any]:
        """What each actor reserves, as arguments of Ray."""
        # a GPU actor reserves no CPU: nodes have fewer CPUs than such actors would want, and it needs one only briefly
        gpus = self.request.gpus_per_actor
        return {"num_gpus": gpus, "num_cpus": 0} if gpus else {"num_cpus": 1}


class Queue:
    """Batches on their way through the pool. Ray must be connected.

    Raises:
        Refused: no process comes up on this node, or the cluster can never have such actors.
    """

    def __init__(self, work: Work, pool: Pool, batches: list[pa.Table]):
        gc.collect()  # or actors of a run that failed in this process would keep the CPUs that this one waits for
        self.work, self.pool, self.batches = work, pool, batches
        self.replays = 0
        """Batches that were restarted after a worker died with them; counted when the run ends."""
        self._tracker = in_flight.start(connection.node_id(), work.terms, Holders(work.worker, pool.resources))
        check_comes_up(self._tracker)
        self._watchdog = Watchdog(self._tracker, work.timeout, work.name, work.terms)
        self._autoscaler = autoscaling.find() if pool.request.gpus_per_actor else None
        capacity = Capacity(connection.living_nodes(), self._autoscaler)
        self._actors = capacity.choose_pool_size(pool.request, len(batches))
        self._watch = PoolWatch(self._actors, self._count_actors, self._count_places, self._autoscaler)
        self._next_look_for_worker = math.inf
        self._file_processes: list[Any] = []

    def run(self, on_rows: Callable[[pa.Table], object], on_tick: Callable[[], object]) -> None:
        """Process every batch, and call `on_rows` with the rows of each; `on_tick` is called several times a second.

        Whatever either raises ends the run, and what is not processed yet is given up.

        Raises:
            Refused: an error of a worker that is fatal, workers that die while they load, or no card that works.
        """
        results = Results(self._dataset(), self.work)
        self._next_look_for_worker = time.monotonic() + FIRST_WORKER_SECONDS
        try:
            with contextlib.closing(results.tables()) as tables:
                for rows in tables:
                    on_tick()
                    if rows is not None:
                        on_rows(rows)
                    self._watchdog.tick()
                    self._check_cards()
                    self._start_file_processes()
                    self._look_for_first_worker()
        finally:
            self.replays = self._watchdog.count_replays()

    @property
    def notices(self) -> list[str]:
        """What workers and writers had to say so far, each line once."""
        return self._watchdog.notices

    def state(self) -> PoolState:
        """How many actors are up, and what the run waits for."""
        return self._watch.state()

    def _check_cards(self) -> None:
        """Raise Refused if every card that a worker could have is left out."""
        left_out = self._watchdog.left_out
        if not left_out or not self._watchdog.is_idle:
            return
        nodes = connection.living_nodes()
        alive = {node.node_id for node in nodes}
        lost = sum(len(card.ids) for card in left_out if card.node_id in alive)
        if Capacity(nodes, self._autoscaler).actors_ever_without(lost, self.pool.request.gpus_per_actor) > 0:
            return
        card, error = [*left_out.items()][-1]
        which = "its only GPU" if len(left_out) == 1 else f"all its {len(left_out)} GPUs"
        raise ClusterRefused(f"the run has left out {which}; the last was {card}: {error}", transient=True)

    def _start_file_processes(self) -> None:
        """Start the processes that will write, on the driver's node, as soon as a worker loads; once."""
        if self._file_processes or not self._watchdog.has_worker or self.work.write is None or self.pool.files_anywhere:
            return
        count = min(FILE_TASKS, len(self.batches))
        self._file_processes = file_processes.start(self.work.write, count, connection.placement_options(False))

    def _look_for_first_worker(self) -> None:
        """Find out why no worker's process comes up: Ray starts it again and again, without a word.

        Raises:
            Refused: what workers import can't be imported on a node.
        """
        if self._watchdog.has_worker or time.monotonic() < self._next_look_for_worker:
            return
        self._next_look_for_worker = time.monotonic() + FIRST_WORKER_SECONDS
        if not self._count_places():
            return  # a node has yet to join
        nodes = node_probe.probe_nodes(seconds=LOOK_SECONDS)
        if reason := node_probe.why_no_actor(nodes):
            raise ClusterRefused(reason)
        silent_nodes = node_probe.describe_silent_nodes(nodes)
        LOG.warning(
            f"no worker has started in {FIRST_WORKER_SECONDS:.0f} s{silent_nodes}; the run keeps waiting, and"
            " Ray's logs on the nodes say why: session_latest/logs/worker-*.err"
        )

    def _count_actors(self) -> int:
        return connection.count_actors(self.work.worker.__name__)

    def _count_places(self) -> int:
        return Capacity(connection.living_nodes()).actors_now(self.pool.request.gpus_per_actor)

    def _dataset(self) -> Any:
        """One block per batch: a task that a killed actor leaves is replayed whole and gives the same rows again."""
        ray_workarounds.import_data()
        _configure()

        work, overlapped = self.work, self.pool.overlapped
        batches = ray_workarounds.make_dataset(self.batches)
        if work.read is not None:
            batches = self._map_files(batches, work.read)
        processed = batches.map_batches(
            work.worker,
            fn_constructor_args=(self._tracker, *work.arguments),
            batch_size=work.batch_size,  # as the blocks are; Ray Data requires it where actors take GPUs
            batch_format="pyarrow",
            # of one size: Ray Data gives up actors that wait for a node, and takes its time to request them again. At
            # the tail it lets each go that has nothing left to do
            **ray_workarounds.pool_options(
                calls=1 + overlapped,
                size=self._actors,
                max_tasks_in_flight_per_actor=tasks_in_flight(len(self.batches), self._actors, overlapped),
                enable_true_multi_threading=overlapped,
            ),
            **self.pool.resources,
        )
        if work.write is None:
            return processed
        return self._map_files(processed, functools.partial(work.write, notice=in_flight.Notices(self._tracker)))

    def _map_files(self, dataset: Any, function: Callable[[pa.Table], pa.Table]) -> Any:
        """Call a function that reads or writes files with each block, where the files can be reached."""
        from ray.data import TaskPoolStrategy

        # no CPU for these tasks either, or on a laptop they would wait for the actors that wait for them
        anywhere = self.pool.files_anywhere
        nodes = len(connection.living_nodes()) if anywhere else 1
        return dataset.map_batches(
            function,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=0,
            compute=TaskPoolStrategy(size=min(FILE_TASKS * nodes, len(self.batches))),
            **connection.placement_options(anywhere),
        )


def tasks_in_flight(batches: int, actors: int, overlapped: bool) -> int:
    """Batches at an actor at a time: no more than its share of them all.

    Otherwise the first actors to load would take all batches of a short run, and the others none. In a longer run each
    batch goes to the actor with the fewest, so that the last ones are spread by itself.
    """
    return min(TASKS_IN_FLIGHT + overlapped, math.ceil(batches / actors))


def _configure() -> None:
    context = ray_workarounds.quiet_data()
    # a GPU may take hours to become available, and a model to load; a batch that hangs is ended anyway
    context.execution_no_progress_timeout_s = -1
    context.max_consecutive_actor_init_deaths = INIT_DEATHS
    context.max_errored_blocks = 0  # more would let a block's remaining rows vanish silently


class Results:
    """Tables of rows as they arrive, and None several times a second, so that the driver can keep its own clock."""

    def __init__(self, dataset: Any, work: Work):
        self._dataset, self._work = dataset, work
        self._arrived: queue.Queue[pa.Table | BaseException | None] = queue.Queue(maxsize=16)
        self._closed = threading.Event()
        self._fetcher = threading.Thread(target=self._fetch, daemon=True, name=FETCHER)

    def tables(self) -> Generator[pa.Table | None]:
        """The tables; close it, and what is still being processed is given up."""
        self._fetcher.start()
        try:
            while True:
                try:
                    item = self._arrived.get(timeout=POLL_SECONDS)
                except queue.Empty:
                    yield None
                    continue
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise _explain(item, self._work)
                yield item
        finally:
            self._closed.set()
            self._stop()

    def _stop(self) -> None:
        """End Ray Data, however far it is, and with it the thread that waits for it."""
        deadline = time.monotonic() + STOP_SECONDS
        while self._fetcher.is_alive() and time.monotonic() < deadline:
            ray_workarounds.stop_data()
            self._fetcher.join(POLL_SECONDS)

    def _fetch(self) -> None:
        try:
            for table in self._dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                if not self._put(table):
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, item: pa.Table | BaseException | None) -> bool:
        """Pass an item on; False if nobody takes it any more."""
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._arrived.put(item, timeout=POLL_SECONDS)
                return True
        return False


def check_comes_up(tracker: Any) -> None:
    """Wait for the first process that Ray starts for this run, on the driver's node.

    Raises:
        Refused: none comes up, or what it needs is not installed.
    """
    import ray
    from ray.exceptions import RayError

    answer = tracker.finish.remote()
    ready, _ = ray.wait([answer], timeout=FIRST_SECONDS)
    if not ready:
        last_words = ray_workarounds.last_words()
        raise ClusterRefused(f"no Ray process started here within {FIRST_SECONDS:.0f} s; {last_words}")
    try:
        ray.get(answer)
    except RayError as error:
        raise ClusterRefused(node_probe.why_no_actor() or f"no actor can start here: {_last_line(error)}") from None


def _explain(error: BaseException, work: Work) -> BaseException:
    """A Refused where Ray's error is a fatal one of a worker, or of actors that could not start; else the error."""
    names = "|".join(kind.__name__ for kind in work.fatal)
    # Ray returns a worker's traceback as text, whose last line has the error's name and message
    fatal = re.findall(rf"\b(?:{names}): (.+)", str(error)) if names else []
    if fatal:
        return work.refusal(one_line(Exception(fatal[-1])))
    if NOT_CREATED in str(error):
        return ClusterRefused(node_probe.why_no_actor() or f"actors can't start: {_last_line(error)}")
    return error


def _last_line(error: BaseException) -> str:
    """Of an error of Ray's, which has the worker's whole traceback in it."""
    return str(error).strip().splitlines()[-1][:300]
