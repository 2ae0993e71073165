"""Run: a plan of features goes through the queue, and its rows into parts; what arrives is counted, shown and measured.
Knows plans and rows of vectors; how a batch gets to a worker and back is the queue's."""

import collections
import functools
from typing import Any

import pyarrow as pa
import pyarrow.compute

from actors import encoders
from actors.encoders import Encoder
from actors.errors import ModelError, ModelNeedsMemory
from ray_app.cluster.capacity import Request
from ray_app.errors import ModelRefused
from ray_app.features import parts
from ray_app.features.metrics import METRICS
from ray_app.features.options import Features
from ray_app.features.parts import FeaturesWriter
from ray_app.features.plan import Plan
from ray_app.features.worker import FeatureWorker, read_batch
from ray_app.index.runs import Record
from ray_app.interrupts import Interrupts
from ray_app.output.output import Output
from ray_app.progress import Progress
from ray_app.work_queue import fetch
from ray_app.work_queue.in_flight import Terms
from ray_app.work_queue.metrics import Metrics
from ray_app.work_queue.queue import Pool, Queue, Work

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute

OVERLAPPED = frozenset({"cuda"})
"""Devices that encode a batch while the images of the next one are decoded: on CPUs both would want the same core."""
TERMS = Terms(item="image or text", timeout_error="BatchTimeout", timeout_flag="--batch_timeout")


class Run:
    """One run of a plan. Ray must be connected.

    Args:
        plan, encoder, options: what to encode, and how.
        places: the outputs that the plan's items count.
        parts: takes the rows.
        record: its heartbeat is written during the run.
        interrupts: tells when to stop.
        worker: what the actors run.
    """

    def __init__(
        self,
        plan: Plan,
        encoder: Encoder,
        options: Features,
        places: list[Output],
        parts: FeaturesWriter,
        record: Record,
        interrupts: Interrupts,
        worker: type[FeatureWorker] = FeatureWorker,
    ):
        self.plan, self.encoder, self.options, self.places = plan, encoder, options, places
        self.parts, self.record, self.interrupts, self.worker = parts, record, interrupts, worker
        self.counts: collections.Counter[str] = collections.Counter()
        """Rows "ok" and "failed", images and texts "encoded", batches "replayed" after a death."""

    def run(self) -> None:
        """Encode and commit. Every row that reached the driver is committed and counted on every exit path.

        Raises:
            KeyboardInterrupt: a signal came.
            Refused: the encoder can't be loaded, or the output not be written.
        """
        encoder = self.encoder
        self.metrics = Metrics(METRICS, {"encoder": encoders.folder_name(encoder.path)})
        self.queue = Queue(self._work(), self._pool(), self.plan.batches(encoder.batch_size))
        if encoder.is_of_hub:
            files_of = functools.partial(encoders.files_of, encoder)
            fetch.everywhere(encoder.path, files_of, self.options.gpus() > 0, meanwhile=self.record.beat)
        self.progress = Progress(self.plan.vectors, self.plan.existing, "vectors")
        with self.interrupts.deferred(), self.parts:
            try:
                self.queue.run(self._take, self._tick)
            finally:
                self.counts["replayed"] = self.queue.replays
                self.progress.close()

    def _work(self) -> Work:
        return Work(
            worker=self.worker,
            arguments=(self.encoder, 1 if self.encoder.device == "cpu" else None),
            batch_size=self.encoder.batch_size,
            read=functools.partial(read_batch, places=self.places),
            write=None,
            name=self.encoder.path,
            terms=TERMS,
            timeout=self.options.batch_timeout,
            fatal=(ModelError, ModelNeedsMemory),
            refusal=ModelRefused,
        )

    def _pool(self) -> Pool:
        are_reachable = all(place.reachable_from_all_nodes for place in self.places)
        return Pool(
            Request(self.options.gpus(), self.options.worker_bounds()),
            overlapped=self.encoder.device in OVERLAPPED,
            files_anywhere=self.options.shared_filesystem or are_reachable,
        )

    def _tick(self) -> None:
        if self.interrupts.requested:
            raise KeyboardInterrupt
        self.parts.commit_if_due()
        self.record.beat(vectors=dict(self.counts))
        if self.progress.is_due():
            self.progress.show(self.queue.state())

    def _take(self, rows: pa.Table) -> None:
        """Commit, count and show the rows of a batch."""
        ok = pc.sum(pc.equal(rows["status"], parts.OK)).as_py() or 0
        self.metrics.observe(rows)
        self.parts.append(rows)
        is_ok = rows.filter(pc.equal(rows["status"], parts.OK))
        encoded = pc.count_distinct(pc.coalesce(is_ok["sha256"], is_ok["text"])).as_py()
        self.counts += collections.Counter(ok=ok, failed=rows.num_rows - ok, encoded=encoded)
        self.progress.add(ok, rows.num_rows - ok)
