"""`export --format imagefolder`: a metadata.parquet in each step's folder, so that an image is loaded with its row.
Knows what the datasets library expects of such a file; copies no image."""

import pyarrow as pa

from ray_app.errors import OK, OutputRefused
from ray_app.export.options import Export
from ray_app.index import existing, part_writer, runs
from ray_app.index.rows import find_newest, is_of_capture, read_rows
from ray_app.index.schema import SCHEMA
from ray_app.messages import summarize
from ray_app.output import layout
from ray_app.output.output import Output
from ray_app.progress import working

LEFT_OUT = ("path", "status", "error_type", "error_message")

WRITES_FOLDER = False


def export(output: Output, options: Export) -> int:
    """Write the metadata file of every step's folder; the exit code."""
    output.check_writable()
    written = 0
    with working("writing the metadata"), output.writing(runs.new_id()) as writer:
        for model_type in layout.model_types(options.model_type):
            rows = read_rows(output, model_type, SCHEMA.names)
            rows = rows.take(pa.array(find_newest(rows)))
            rows = rows.filter(pa.array(existing.mask_rows_with_files(output, model_type, rows)))
            for folder in output.step_folders(model_type):
                if options.steps and folder.step not in options.steps:
                    continue
                if options.snapshot not in (None, folder.snapshot):
                    continue
                of_folder = rows.filter(pa.array(is_of_capture(rows, folder.snapshot, folder.step)))
                if of_folder.num_rows:
                    name = f"{folder.name}/{layout.METADATA}"
                    writer.write(name, part_writer.to_parquet(_metadata(of_folder, folder)))
                    summarize(f"{output.display_path(name)}: {of_folder.num_rows:,} images")
                    written += 1
    if not written:
        raise OutputRefused(f"{output.display_path(layout.INDEX)}: has no such image; set --output_base_path")
    return OK


def _metadata(rows: pa.Table, folder: layout.StepFolder) -> pa.Table:
    """The rows, with `file_name`, the path of each image within the step's folder."""
    files = [path.removeprefix(f"{folder.name}/") for path in rows["path"].to_pylist()]
    rows = rows.drop_columns(list(LEFT_OUT)).append_column("model", pa.repeat(folder.model_type, rows.num_rows))
    return rows.add_column(0, "file_name", pa.array(files, pa.string())).replace_schema_metadata(None)
