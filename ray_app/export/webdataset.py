"""`export --format webdataset`: tar shards of images with their rows as JSON, written by Ray Data.
Knows Ray Data and what the webdataset library reads; a task has one shard in memory."""

import functools
import json
from typing import Any

import pyarrow as pa

from ray_app.cluster import connection, ray_workarounds
from ray_app.errors import OK
from ray_app.export.options import Export
from ray_app.index.trajectories import OK as IS_OK
from ray_app.index.trajectories import Trajectories
from ray_app.messages import summarize
from ray_app.output import layout
from ray_app.output.output import Output
from ray_app.progress import working

IN_JSON = ("query_id", "reference_img_id", "prompt_index", "image_index", "k", "prompt", "seed", "denoise_id",
           "snapshot", "step", "width", "height", "path")  # fmt: skip

WRITES_FOLDER = True


def export(output: Output, options: Export) -> int:
    """Write shards of --shard_images images, the steps of a slot one after the other; the exit code."""
    shown = Trajectories(output, layout.model_types(options.model_type), options.steps, options.snapshot)
    rows = []
    for trajectory in shown.of(shown.query_ids):
        for row in trajectory.images.values():
            if row["status"] == IS_OK:
                rows.append({**{name: row[name] for name in IN_JSON}, "model": trajectory.model})
    samples = pa.Table.from_pylist(rows)
    starts = range(0, samples.num_rows, options.shard_images)
    shards = [samples.slice(start, options.shard_images) for start in starts]
    with working("writing the shards"), options.new_folder() as folder, connection.connected(options.address):
        _write_shards(output, shards, str(folder), options.shared_filesystem)
    summarize(f"{options.export_path}: {samples.num_rows:,} images in {len(shards):,} shards")
    return OK


def key(row: dict[str, Any]) -> str:
    """A sample's name. It has no dot: webdataset ends a name at the first one."""
    slot = f"q{row['query_id']}_p{row['prompt_index']}_i{row['image_index']}"
    return f"{row['model']}_{slot}_{row['snapshot']}_step{row['step']:05d}"


def _write_shards(output: Output, shards: list[pa.Table], folder: str, shared: bool) -> None:
    import ray.data
    from ray.data.datasource import FilenameProvider

    class Numbered(FilenameProvider):
        """shard-000000.tar: users name shards by braces."""

        def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
            return f"shard-{task_index:06d}.tar"

        def get_filename_for_block(self, block: Any, write_uuid: str, task_index: int, block_index: int) -> str:
            return f"shard-{task_index:06d}.tar"

    ray_workarounds.quiet_data()
    where = connection.placement_options(shared)
    images = ray.data.from_arrow(shards).map_batches(
        functools.partial(_read_samples, output=output), batch_size=None, batch_format="pyarrow", **where
    )
    images.write_webdataset(folder, encoder=None, filename_provider=Numbered(), ray_remote_args=where)


def _read_samples(rows: pa.Table, output: Output) -> pa.Table:
    """A shard's samples: name, image, row as JSON."""
    samples = rows.to_pylist()
    extension = samples[0]["path"].rsplit(".", 1)[1]
    return pa.table(
        {
            "__key__": [key(row) for row in samples],
            extension: pa.array([output.read(row["path"]) for row in samples], pa.large_binary()),
            "json": [json.dumps(row, ensure_ascii=False) for row in samples],
        }
    )
