"""Run: a plan goes through the queue, and its rows into the index; what arrives is counted, shown and measured.
Knows plans, recipes and rows of images; how a batch gets to a worker and back is the queue's."""

import collections
import functools
from typing import Any

import pyarrow as pa
import pyarrow.compute

from actors import hub
from actors.errors import ModelError, ModelNeedsMemory
from actors.recipe import Recipe
from ray_app.cluster.capacity import Request
from ray_app.errors import ModelRefused, OutputRefused
from ray_app.generation.metrics import METRICS
from ray_app.generation.options import Generate
from ray_app.generation.plan import Plan
from ray_app.generation.worker import ImageWorker
from ray_app.generation.writer import UNWRITTEN, write_images
from ray_app.index.runs import Record
from ray_app.index.writer import IndexWriter
from ray_app.interrupts import Interrupts
from ray_app.messages import LOG
from ray_app.output.output import Writer
from ray_app.progress import Progress
from ray_app.work_queue import fetch
from ray_app.work_queue.in_flight import Terms
from ray_app.work_queue.metrics import Metrics
from ray_app.work_queue.queue import Pool, Queue, Work

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute

OVERLAPPED = frozenset({"cuda"})
"""Devices that generate a batch while the files of the last one are encoded: on CPUs both would want the same core."""
TERMS = Terms(item="prompt", timeout_error="DenoiseTimeout", timeout_flag="--denoise_timeout")


class Run:
    """One run of a plan. Ray must be connected.

    Args:
        plan, recipe, options: what to generate, and how.
        writer: writes into the output; its run id names the run.
        record: its heartbeat is written during the run.
        interrupts: tells when to stop.
        worker: what the actors run; an `ImageWorker` whose generator may be replaced.
    """

    def __init__(
        self,
        plan: Plan,
        recipe: Recipe,
        options: Generate,
        writer: Writer,
        record: Record,
        interrupts: Interrupts,
        worker: type[ImageWorker] = ImageWorker,
    ):
        self.plan, self.recipe, self.options, self.writer = plan, recipe, options, writer
        self.record, self.interrupts, self.worker = record, interrupts, worker
        self.counts: collections.Counter[str] = collections.Counter()
        """Images "ok", "failed" and "truncated", "denoises" and their "steps", batches "replayed" after a death."""
        self.notices: list[str] = []
        """What workers and writers had to say, such as GPUs that are left out."""
        self.index = IndexWriter(writer, recipe)
        self._shrunk: set[str] = set()

    def run(self) -> None:
        """Generate and index. Every row that reached the driver is committed and counted on every exit path.

        Raises:
            KeyboardInterrupt: a signal arrived; the index is consistent.
            Refused: the model can't be loaded, or the output not be written.
        """
        self.metrics = Metrics(METRICS, {"model": self.recipe.model_type})
        self.queue = Queue(self._work(), self._pool(), list(self.plan.batches(self.recipe.batch_size)))
        self._fetch()
        self.progress = Progress(self.plan.images_requested, self.plan.images_existing)
        with self.interrupts.deferred(), self.index:
            try:
                self.queue.run(self._take, self._tick)
            finally:
                self.counts["replayed"] = self.queue.replays
                self.notices += self.queue.notices
                self.progress.close()

    def _fetch(self) -> None:
        """Download what is of the hub to every node."""
        recipe = self.recipe
        for path, commit, files_of in (
            (recipe.model_path, recipe.hub_revision, hub.files_of),
            (recipe.vae_path, recipe.vae_hub_revision, hub.files_of_vae),
        ):
            if path and commit:
                of_recipe = functools.partial(files_of, recipe)
                fetch.everywhere(path, of_recipe, self.options.gpus() > 0, meanwhile=self.record.beat)

    def _work(self) -> Work:
        recipe = self.recipe
        threads = 1 if recipe.device == "cpu" else None
        return Work(
            worker=self.worker,
            arguments=(recipe, self.plan.captures, threads),
            batch_size=recipe.batch_size,
            write=functools.partial(write_images, writer=self.writer, model_type=recipe.model_type),
            name=recipe.model_path,
            terms=TERMS,
            timeout=self.options.denoise_timeout,
            fatal=(ModelError, ModelNeedsMemory),
            refusal=ModelRefused,
        )

    def _pool(self) -> Pool:
        return Pool(
            Request(self.options.gpus(), self.options.worker_bounds()),
            overlapped=self.recipe.device in OVERLAPPED,
            files_anywhere=self.options.shared_filesystem or self.writer.output.reachable_from_all_nodes,
        )

    def _tick(self) -> None:
        if self.interrupts.requested:
            raise KeyboardInterrupt
        self.index.commit_if_due()
        self.record.beat(counts=dict(self.counts))
        if self.progress.is_due():
            self.progress.show(self.queue.state())

    def _take(self, rows: pa.Table) -> None:
        """Index, count and show the rows of a batch.

        Raises:
            Refused: an image of it could not be written.
        """
        unwritten = rows.filter(pc.equal(rows["status"], UNWRITTEN))
        rows = rows.filter(pc.not_equal(rows["status"], UNWRITTEN))
        ok = pc.sum(pc.equal(rows["status"], "ok")).as_py() or 0
        self.metrics.observe(rows)
        self.index.append(rows)
        denoises = rows.group_by(["denoise_id", "num_inference_steps"]).aggregate([("step", "max")])
        self.counts += collections.Counter(
            ok=ok,
            failed=rows.num_rows - ok,
            truncated=pc.sum(rows["prompt_truncated"]).as_py() or 0,
            denoises=denoises.num_rows,
            steps=pc.sum(denoises["step_max"]).as_py() or 0,
        )
        self.progress.add(ok, rows.num_rows - ok)
        self._report_shrunk(rows)
        if unwritten.num_rows:
            first = unwritten.slice(0, 1).to_pylist()[0]
            path = self.writer.output.display_path(first["path"])
            raise OutputRefused(f"{path}: {first['error_message']}", path=path, transient=True)

    def _report_shrunk(self, rows: pa.Table) -> None:
        """Warn once per actor that it ran out of memory, and generates smaller batches from then on."""
        smaller = rows.filter(pc.less(rows["batch_size"], self.recipe.batch_size))
        for actor, size in zip(smaller["actor_id"].to_pylist(), smaller["batch_size"].to_pylist(), strict=True):
            if actor not in self._shrunk:
                self._shrunk.add(actor)
                line = (
                    f"worker {actor[:8]} ran out of memory at {self.recipe.batch_size} prompts; it generates"
                    f" {size} at a time from now on (low bits may differ); use a smaller --batch_size"
                )
                LOG.warning(line)
                self.notices.append(line)
