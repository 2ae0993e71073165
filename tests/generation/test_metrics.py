"""Metrics: what Prometheus finds at a real Ray's own endpoint is what was generated, and how long it took."""

import collections
import json
import urllib.request

import pyarrow as pa
import pytest

from ray_app.errors import SOME_FAILED
from ray_app.generation.generate import generate
from ray_app.generation.metrics import METRICS
from ray_app.generation.options import Generate
from ray_app.index.rows import read_rows
from ray_app.index.schema import SCHEMA
from ray_app.output.open import open_output
from ray_app.work_queue.metrics import Metrics
from tests.conftest import SAMPLE
from tests.support.processes import wait_for
from tests.support.synthetic import FAILS, SyntheticWorker

STEPS = ("6", "7")
"""Steps that no other test generates: the endpoint has what every test of this Ray generated."""
NODE = "a-node-of-this-test"

Samples = list[tuple[str, dict[str, str], float]]
"""Name, labels and value."""


def scraped() -> Samples:
    """Our metrics, as Prometheus reads them."""
    import ray
    from prometheus_client.parser import text_string_to_metric_families as parse

    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text = urllib.request.urlopen(url, timeout=30).read().decode()
    families = parse("\n".join(line for line in text.splitlines() if "proxyqueue" in line) + "\n")
    prefix = "ray_proxyqueue_"
    return [(one.name.removeprefix(prefix), one.labels, one.value) for family in families for one in family.samples]


def by_step(samples: Samples, name: str) -> dict[tuple, float]:
    """Values of the steps of this test, by (model, snapshot, step, node)."""
    found: dict[tuple, float] = collections.defaultdict(float)
    for sample, labels, value in samples:
        if sample == name and labels.get("step") in STEPS:
            found[labels["model"], labels["snapshot"], int(labels["step"]), labels["node"]] += value
    return found


def buckets(samples: Samples, name: str, step: int, node: str) -> dict[float, float]:
    """How many observations of a histogram were at most this many seconds."""
    found: dict[float, float] = collections.defaultdict(float)
    for sample, labels, value in samples:
        if sample == f"{name}_bucket" and (labels["step"], labels["node"]) == (str(step), node):
            found[float(labels["le"])] += value
    return found


def observe_known_seconds() -> None:
    """One batch of Flux: two slots of one denoise at step 6, and one that failed at step 7."""
    same = {"node_id": NODE, "snapshot": "xt", "step": 6, "status": "ok"}
    seconds = {"denoise_seconds": 5.0, "decode_seconds": 0.2, "encode_seconds": 0.02, "write_seconds": 0.002}
    failed = {**same, **dict.fromkeys(seconds), "step": 7, "status": "failed", "idle_seconds": 0.25}
    rows = [{**same, **seconds, "idle_seconds": 1.5}, {**same, **seconds, "idle_seconds": 0.0}, failed]
    schema = pa.schema(
        [*(SCHEMA.field(name) for name in ("node_id", "snapshot", "step", "status")),
         *(pa.field(name, pa.float32()) for name in (*seconds, "idle_seconds"))]
    )  # fmt: skip
    Metrics(METRICS, {"model": "flux"}).observe(pa.Table.from_pylist(rows, schema))


@pytest.mark.slow
def test_prometheus_finds_what_was_generated(ray_local, tmp_path):
    entries = json.loads(SAMPLE.read_text())
    entries[1]["multi_gpt-3.5_opt"][1] = FAILS
    (tmp_path / "test.json").write_text(json.dumps(entries))
    flags = {"max_inference_steps": 7, "save_steps": STEPS, "snapshot": "both", "num_prompts": 3, "num_workers": "1"}
    places = {"json_file": str(tmp_path / "test.json"), "output_base_path": str(tmp_path / "out")}
    assert generate(Generate(**places, model_path="tiny", batch_size=6, **flags), SyntheticWorker) == SOME_FAILED
    rows = read_rows(open_output(str(tmp_path / "out")), "sdxl", ["snapshot", "step", "node_id", "status"])
    counts: dict[str, collections.Counter] = {"ok": collections.Counter(), "failed": collections.Counter()}
    for row in rows.to_pylist():
        counts[row["status"]]["sdxl", row["snapshot"], row["step"], row["node_id"]] += 1
    assert (counts["ok"].total(), counts["failed"].total()) == (68, 4)
    observe_known_seconds()
    made = {("flux", "xt", 6, NODE): 2}

    all_images = {**counts["ok"], **made}
    wait_for("the rows of the index at the endpoint", lambda: by_step(scraped(), "images_total") == all_images, 90)
    found = scraped()
    assert by_step(found, "failures_total") == {**counts["failed"], ("flux", "xt", 7, NODE): 1}
    batches = dict.fromkeys(counts["ok"], 3)  # 18 prompts, 6 at a time
    for name in METRICS.seconds:
        assert by_step(found, f"{name}_count") == {**batches, ("flux", "xt", 6, NODE): 1}
    idle = {labels["node"]: (labels["model"], value) for name, labels, value in found if name == "idle_seconds_total"}
    assert idle[NODE] == ("flux", 1.75)
    (node,) = {key[3] for key in counts["ok"]}
    assert 0 < idle[node][1] < 600
    for name, below, at_most in (
        ("denoise_seconds", 4, 8), ("decode_seconds", 0.1, 0.3), ("encode_seconds", 0.01, 0.03),
        ("write_seconds", 0.001, 0.003),
    ):  # fmt: skip
        observed = buckets(found, name, 6, NODE)
        assert (observed[below], observed[at_most]) == (0, 1), name
