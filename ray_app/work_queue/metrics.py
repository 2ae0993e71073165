"""Metrics of a run, as Ray's dashboard and Prometheus show them.
Observed on the driver from the rows of each batch, so they equal what is stored; callers choose the columns."""

import dataclasses
from collections.abc import Mapping, Sequence

import pyarrow as pa

BUCKETS: Sequence[float] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
"""Upper bounds of the histograms, in seconds."""
PREFIX = "proxyqueue_"


@dataclasses.dataclass(frozen=True)
class Measured:
    """What is measured of rows with the columns `node_id`, `status` and `idle_seconds`.

    Args:
        ok, failed: counters of rows with status "ok" and of all others, as name and meaning.
        idle: counter of the seconds in which actors were idle, likewise.
        seconds: columns of seconds with their meanings; a histogram each, one observation per batch and group, the
            mean of its rows.
        groups: columns whose values become tags of counters and histograms.
    """

    ok: tuple[str, str]
    failed: tuple[str, str]
    idle: tuple[str, str]
    seconds: Mapping[str, str]
    groups: Sequence[str] = ()


class Metrics:
    """The metrics of one run. Ray must be connected; it sends them to its node's endpoint every ten seconds.

    Args:
        measured: what they are.
        tags: what is the same for the whole run.
    """

    def __init__(self, measured: Measured, tags: dict[str, str]):
        from ray.util.metrics import Counter, Histogram

        self._measured, self._tags = measured, tags
        idle_tags = (*tags, "node")
        row_tags = (*tags, *measured.groups, "node")
        self._ok, self._failed = (
            Counter(PREFIX + name, meaning, row_tags) for name, meaning in (measured.ok, measured.failed)
        )
        self._idle = Counter(PREFIX + measured.idle[0], measured.idle[1], idle_tags)
        self._seconds = {
            name: Histogram(PREFIX + name, meaning, list(BUCKETS), row_tags)
            for name, meaning in measured.seconds.items()
        }

    def observe(self, rows: pa.Table) -> None:
        """Rows of a whole batch, ok and failed."""
        means = [(name, "mean") for name in self._seconds]
        groups = rows.group_by(["node_id", *self._measured.groups, "status"]).aggregate(
            [("idle_seconds", "sum"), ("status", "count"), *means]
        )
        for group in groups.to_pylist():
            idle_tags = {**self._tags, "node": group["node_id"]}
            row_tags = idle_tags | {name: str(group[name]) for name in self._measured.groups}
            counter = self._ok if group["status"] == "ok" else self._failed
            counter.inc(group["status_count"], row_tags)
            if group["idle_seconds_sum"]:
                self._idle.inc(group["idle_seconds_sum"], idle_tags)
            for name, histogram in self._seconds.items():
                if group[f"{name}_mean"] is not None:
                    histogram.observe(group[f"{name}_mean"], row_tags)
