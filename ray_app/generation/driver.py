"""The driver: the plan becomes a Ray Dataset, goes through the actors and the writer, and its rows into the index.
Knows Ray Data; nothing of annotations or of what a pixel is."""

import collections
import contextlib
import functools
import gc
import queue
import re
import threading
import time
from collections.abc import Generator
from typing import Any

import pyarrow as pa
import pyarrow.compute

from actors.errors import ModelError, ModelNeedsMemory
from actors.recipe import Recipe
from ray_app.cluster import autoscaling, connection, node_probe, ray_workarounds
from ray_app.cluster.capacity import Capacity, PoolWatch, Request
from ray_app.errors import ClusterRefused, ModelRefused, OutputRefused, one_line
from ray_app.generation import fetch
from ray_app.generation.options import Generate
from ray_app.generation.plan import Plan
from ray_app.generation.worker import Worker
from ray_app.generation.writer import UNWRITTEN, write_images
from ray_app.index.runs import Record
from ray_app.index.writer import IndexWriter
from ray_app.interrupts import Interrupts
from ray_app.messages import LOG
from ray_app.output.output import Writer
from ray_app.progress import Progress
from ray_app.work_queue.in_flight import start as start_ledger
from ray_app.work_queue.metrics import Metrics
from ray_app.work_queue.watchdog import Watchdog

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute

TASKS_IN_FLIGHT = 2
"""Batches at an actor: one being drawn and one waiting, so that none waits for the driver."""
OVERLAPPED = frozenset({"cuda"})
"""Devices that draw a batch while the files of the last one are encoded: on CPUs both would want the same core."""
INIT_DEATHS = 2
"""Actors that may lack the memory to load, one after another, before the run ends: another process may leave a GPU."""
WRITERS = 2
"""Writer tasks at a time on each node that writes."""
POLL_SECONDS = 0.2
FETCHER = "proxyqueue results"
"""Name of the thread that waits for Ray Data."""
STOP_SECONDS = 20.0
"""For which a run that ends early waits for Ray Data's threads: they take a second."""
FIRST_SECONDS = 120.0
"""For which the first process may take to come up: a second or two, more where the disk or the machine is busy."""
NOT_CREATED = "died because of an error raised in its creation task"
"""In the text of Ray's error of an actor whose class or constructor failed."""
MODEL_ERROR = re.compile(rf"\b(?:{ModelError.__name__}|{ModelNeedsMemory.__name__}): (.+)")
"""How the traceback in an error of Ray's, a text, ends where a model could not be loaded or used."""


class Driver:
    """One run of a plan. Ray must be connected.

    Args:
        plan, recipe, options: what to draw, and how.
        writer: writes into the output; its run id names the run.
        record: beaten while the run goes on.
        interrupts: tells when to stop.
        worker: what the actors run; a `Worker` whose generator may be another.
    """

    def __init__(
        self,
        plan: Plan,
        recipe: Recipe,
        options: Generate,
        writer: Writer,
        record: Record,
        interrupts: Interrupts,
        worker: type[Worker] = Worker,
    ):
        self.plan, self.recipe, self.options, self.writer = plan, recipe, options, writer
        self.record, self.interrupts, self.worker = record, interrupts, worker
        self.counts: collections.Counter[str] = collections.Counter()
        """Images "ok", "failed" and "truncated", "denoises" and their "steps", batches "replayed" after a death."""
        self.index = IndexWriter(writer, recipe)
        self._shrunk: set[str] = set()

    def run(self) -> None:
        """Draw and index. Every row that reached the driver is committed and counted on every way out.

        Raises:
            KeyboardInterrupt: a signal came; the index is true.
            Refused: the model can't be loaded, or the output not be written.
        """
        gc.collect()  # or actors of a run that failed in this process would keep the CPUs that this one waits for
        self.metrics = Metrics(self.recipe.model_type)
        ledger = start_ledger(connection.node_id())
        _check_comes_up(ledger)
        watchdog = Watchdog(ledger, self.options.denoise_timeout, self.recipe.model_path)
        gpus, batches = self.options.gpus(), list(self.plan.batches(self.recipe.batch_size))
        autoscaler = autoscaling.find() if gpus else None
        capacity = Capacity(connection.living_nodes(), autoscaler)
        actors = capacity.choose_pool_size(Request(gpus, self.options.worker_bounds()), len(batches))
        fetch.everywhere(self.recipe, takes_gpus=gpus > 0, meanwhile=self.record.beat)
        results = _Results(self._dataset(batches, actors, ledger))
        pool = PoolWatch(actors, self._count_actors, self._count_places, autoscaler)
        progress = Progress(self.plan.images_wanted, self.plan.images_there)
        with self.interrupts.deferred(), self.index, contextlib.closing(results.tables()) as tables:
            try:
                for rows in tables:
                    if self.interrupts.requested:
                        raise KeyboardInterrupt
                    if rows is not None:
                        self._take(rows, progress)
                    self.index.commit_if_due()
                    self.record.beat(counts=dict(self.counts))
                    watchdog.tick()
                    if progress.is_due():
                        progress.show(pool.state())
            finally:
                self.counts["replayed"] = watchdog.count_replays()
                progress.close()

    def _count_actors(self) -> int:
        return connection.count_actors(self.worker.__name__)

    def _count_places(self) -> int:
        return Capacity(connection.living_nodes()).actors_now(self.options.gpus())

    def _take(self, rows: pa.Table, progress: Progress) -> None:
        unwritten = rows.filter(pc.equal(rows["status"], UNWRITTEN))
        rows = rows.filter(pc.not_equal(rows["status"], UNWRITTEN))
        ok = pc.sum(pc.equal(rows["status"], "ok")).as_py() or 0
        self.metrics.observe(rows)
        self.index.append(rows)
        runs = rows.group_by(["denoise_id", "num_inference_steps"]).aggregate([("step", "max")])  # of a whole batch
        self.counts += collections.Counter(
            ok=ok,
            failed=rows.num_rows - ok,
            truncated=pc.sum(rows["prompt_truncated"]).as_py() or 0,
            denoises=runs.num_rows,
            steps=pc.sum(runs["step_max"]).as_py() or 0,
        )
        progress.add(ok, rows.num_rows - ok)
        self._report_shrunk(rows)
        if unwritten.num_rows:
            first = unwritten.slice(0, 1).to_pylist()[0]
            path = self.writer.output.display_path(first["path"])
            raise OutputRefused(f"{path}: {first['error_message']}", path=path, transient=True)

    def _report_shrunk(self, rows: pa.Table) -> None:
        """Say once an actor that it ran out of memory and draws smaller batches since."""
        smaller = rows.filter(pc.less(rows["batch_size"], self.recipe.batch_size))
        for actor, size in zip(smaller["actor_id"].to_pylist(), smaller["batch_size"].to_pylist(), strict=True):
            if actor not in self._shrunk:
                self._shrunk.add(actor)
                LOG.warning(
                    f"worker {actor[:8]} ran out of memory at {self.recipe.batch_size} prompts; it draws"
                    f" {size} at a time from now on (low bits may differ); give a smaller --batch_size"
                )

    def _dataset(self, batches: list[pa.Table], actors: int, ledger: Any) -> Any:
        """One block a batch: a task that a killed actor leaves is replayed whole and gives the same rows again."""
        data = ray_workarounds.import_data()
        _configure()
        from ray.data import ActorPoolStrategy, TaskPoolStrategy

        recipe, options = self.recipe, self.options
        # a GPU actor asks for no CPU: nodes have fewer CPUs than such actors would want, and it needs one only briefly
        resources: dict[str, Any] = {"num_gpus": options.gpus(), "num_cpus": 0} if options.gpus() else {"num_cpus": 1}
        overlapped = recipe.device in OVERLAPPED
        drawn = data.from_arrow(batches).map_batches(
            self.worker,
            fn_constructor_args=(ledger, recipe, self.plan.captures, 1 if recipe.device == "cpu" else None),
            batch_size=recipe.batch_size,  # as the blocks are; Ray Data wants it said where actors take GPUs
            batch_format="pyarrow",
            # of one size: Ray Data gives up actors that wait for a node, and takes its time to ask for them again. At
            # the tail it lets each go that has nothing left to draw
            compute=ActorPoolStrategy(
                size=actors,
                max_tasks_in_flight_per_actor=TASKS_IN_FLIGHT + overlapped,
                max_concurrent_calls_per_actor=1 + overlapped,
                enable_true_multi_threading=overlapped,
            ),
            **resources,
        )
        # no CPU for writers either, or on a laptop they would wait for the actors that wait for them
        anywhere = options.shared_filesystem or self.writer.output.reachable_from_all_nodes
        nodes = len(connection.living_nodes()) if anywhere else 1
        return drawn.map_batches(
            functools.partial(write_images, writer=self.writer, model_type=recipe.model_type, notice=_Noticing(ledger)),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=0,
            compute=TaskPoolStrategy(size=min(WRITERS * nodes, len(batches))),
            **connection.placed(anywhere),
        )


def _configure() -> None:
    context = ray_workarounds.quiet_data()
    # a GPU may take hours to come, and a model to load; a batch that hangs is ended anyway
    context.execution_no_progress_timeout_s = -1
    context.max_consecutive_actor_init_deaths = INIT_DEATHS
    context.max_errored_blocks = 0  # more would let a block's remaining images vanish silently


class _Noticing:
    """Tells the ledger; a method of an actor's handle can't be sent to a task by itself."""

    def __init__(self, ledger: Any):
        self._ledger = ledger

    def __call__(self, line: str, topic: str) -> None:
        self._ledger.notice.remote(line, topic)


class _Results:
    """Tables of rows as they arrive, and None several times a second, so that the driver can keep its own clock."""

    def __init__(self, dataset: Any):
        self._dataset = dataset
        self._arrived: queue.Queue[pa.Table | BaseException | None] = queue.Queue(maxsize=16)
        self._closed = threading.Event()
        self._fetcher = threading.Thread(target=self._fetch, daemon=True, name=FETCHER)

    def tables(self) -> Generator[pa.Table | None]:
        """The tables; close it, and what is still being generated is given up."""
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
                    raise _explained(item)
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
        """Hand an item over; False if nobody takes it any more."""
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._arrived.put(item, timeout=POLL_SECONDS)
                return True
        return False


def _check_comes_up(ledger: Any) -> None:
    """Wait for the first process that Ray starts for this run, on the driver's node.

    Raises:
        Refused: none comes up, or what it needs is not there.
    """
    import ray
    from ray.exceptions import RayError

    asked = ledger.finish.remote()
    ready, _ = ray.wait([asked], timeout=FIRST_SECONDS)
    if not ready:
        raise ClusterRefused(
            f"no process of Ray's came up here within {FIRST_SECONDS:.0f} s; {ray_workarounds.last_words()}"
        )
    try:
        ray.get(asked)
    except RayError as error:
        raise ClusterRefused(node_probe.why_no_actor() or f"no actor can start here: {_last_line(error)}") from None


def _explained(error: BaseException) -> BaseException:
    """A Refused where Ray's error is a model's, or of actors that could not start, else the error."""
    if told := MODEL_ERROR.findall(str(error)):
        return ModelRefused(one_line(Exception(told[-1])))
    if NOT_CREATED in str(error):
        return ClusterRefused(node_probe.why_no_actor() or f"actors can't start: {_last_line(error)}")
    return error


def _last_line(error: BaseException) -> str:
    """Of an error of Ray's, which has the worker's whole traceback in it."""
    return str(error).strip().splitlines()[-1][:300]
