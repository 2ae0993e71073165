"""Metrics: what Prometheus finds at a real Ray's own endpoint is what was drawn."""

import collections
import json
import time
import urllib.request

from ray_app import index, metrics
from ray_app.errors import SOME_FAILED
from ray_app.generate import generate
from ray_app.options import Generate
from ray_app.storage import open_storage
from tests.conftest import SAMPLE

STEPS = ("6", "7")
"""Steps that no other test draws: the endpoint has what every test of this Ray drew."""


def scraped() -> dict[str, dict[tuple, float]]:
    """Our metrics by name; each with its value by (snapshot, step, node), or by (node,) for those that have no step."""
    import ray
    from prometheus_client.parser import text_string_to_metric_families as parse

    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text = urllib.request.urlopen(url, timeout=30).read().decode()
    found = collections.defaultdict(dict)
    for family in parse("\n".join(line for line in text.splitlines() if "proxyqueue" in line) + "\n"):
        for sample in family.samples:
            labels = sample.labels
            if labels.get("step") in STEPS and not sample.name.endswith("_bucket"):
                key = labels["snapshot"], int(labels["step"]), labels["node"]
                found[sample.name][key] = found[sample.name].get(key, 0) + sample.value
            elif "step" not in labels:
                found[sample.name][labels["node"],] = sample.value
    return found


def test_prometheus_finds_what_was_drawn(ray_local, models, tmp_path):
    entries = json.loads(SAMPLE.read_text())
    entries[1]["multi_gpt-3.5_opt"][1] = "~"  # latents that are not finite
    (tmp_path / "test.json").write_text(json.dumps(entries))
    flags = {
        "batch_size": 6,
        "max_inference_steps": 7,
        "save_steps": STEPS,
        "snapshot": "both",
        "num_workers": "1",
        "num_prompts": 3,
    }
    options = Generate(
        json_file=str(tmp_path / "test.json"),
        output_base_path=str(tmp_path / "out"),
        model_path=models["sdxl_poison"],
        device="cpu",
        **flags,
    )
    assert generate(options) == SOME_FAILED
    names = ["snapshot", "step", "node_id", "status", "decode_seconds"]
    rows = index.read(open_storage(str(tmp_path / "out")), "sdxl", names).to_pylist()
    drawn = collections.Counter((row["snapshot"], row["step"], row["node_id"]) for row in rows if row["status"] == "ok")
    failed = collections.Counter((r["snapshot"], r["step"], r["node_id"]) for r in rows if r["status"] != "ok")
    assert (drawn.total(), failed.total()) == (68, 4)

    deadline = time.monotonic() + 90  # Ray sends every ten seconds
    while (found := scraped())["ray_proxyqueue_images_total"] != drawn and time.monotonic() < deadline:
        time.sleep(0.5)
    assert found["ray_proxyqueue_images_total"] == drawn
    assert found["ray_proxyqueue_failures_total"] == failed
    batches = dict.fromkeys(drawn, 3)  # 18 prompts, 6 at a time
    for name in metrics.SECONDS:
        assert found[f"ray_proxyqueue_{name}_count"] == batches
    (node,) = {key[2] for key in drawn}
    assert 0 < found["ray_proxyqueue_idle_seconds_total"][node,] < 600
