"""Metrics: what a run does, as Ray's dashboard and Prometheus show it.
Observed on the driver from the rows of each batch, so they equal the index; knows nothing of plans or files."""

from collections.abc import Sequence

import pyarrow as pa

MEASURED = ("encode_seconds", "write_seconds", "idle_seconds")
"""Columns that a batch's rows bring for the metrics alone; the index has none of them."""

COUNTERS = {
    "images": "images drawn and written",
    "failures": "images that could not be drawn",
    "idle_seconds": "seconds that actors had nothing to do, between a batch and the next",
}
SECONDS = {
    "denoise_seconds": "seconds from the batch's start to the step, an image",
    "decode_seconds": "seconds of the VAE, an image",
    "encode_seconds": "seconds of making a jpg, png or webp of the pixels, an image",
    "write_seconds": "seconds of writing the file, an image",
}
"""Histograms: one observation for each batch and step, the mean of its images."""
BUCKETS: Sequence[float] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
PREFIX = "proxyqueue_"
TAGS = ("model", "snapshot", "step", "node")
IDLE_TAGS = ("model", "node")


class Metrics:
    """The metrics of one run. Ray must be connected; it sends them to its node's endpoint every ten seconds."""

    def __init__(self, model_type: str):
        from ray.util.metrics import Counter, Histogram

        self._model = {"model": model_type}
        self._counters = {
            name: Counter(PREFIX + name, text, IDLE_TAGS if name == "idle_seconds" else TAGS)
            for name, text in COUNTERS.items()
        }
        self._seconds = {name: Histogram(PREFIX + name, text, list(BUCKETS), TAGS) for name, text in SECONDS.items()}

    def observe(self, rows: pa.Table) -> None:
        """Rows of a whole batch, ok and failed."""
        groups = rows.group_by(["node_id", "snapshot", "step", "status"]).aggregate(
            [("idle_seconds", "sum"), ("status", "count"), *((name, "mean") for name in SECONDS)]
        )
        for group in groups.to_pylist():
            idle_tags = {**self._model, "node": group["node_id"]}
            tags = {**idle_tags, "snapshot": group["snapshot"], "step": str(group["step"])}
            self._counters["images" if group["status"] == "ok" else "failures"].inc(group["status_count"], tags)
            if group["idle_seconds_sum"]:
                self._counters["idle_seconds"].inc(group["idle_seconds_sum"], idle_tags)
            for name, histogram in self._seconds.items():
                if group[f"{name}_mean"] is not None:
                    histogram.observe(group[f"{name}_mean"], tags)
