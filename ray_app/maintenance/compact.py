"""The command `compact`: rewrites the many small parts of each model's index as few sorted ones.
Knows what to report; how parts are replaced is in `rewrite`."""

from ray_app.errors import OK, OutputRefused
from ray_app.index import runs
from ray_app.maintenance.options import Compact
from ray_app.maintenance.rewrite import rewrite
from ray_app.messages import LOG, summarize
from ray_app.output import layout
from ray_app.output.open import open_output
from ray_app.progress import working


def compact(options: Compact) -> int:
    """Replace the parts of each model by few sorted ones; the exit code.

    Raises:
        Refused: the output has no index, or another process is rewriting it.
    """
    output = open_output(options.output_base_path)
    model_types = layout.model_types(options.model_type)
    model_types = [name for name in model_types if output.list_names(layout.index_folder(name), "*.parquet")]
    if not model_types:
        raise OutputRefused(f"{output.display_path(layout.INDEX)}: no index; set --output_base_path")
    output.check_writable()
    with output.writing(runs.new_id()) as writer:
        for model_type in model_types:
            with working("compacting the index"):
                rewritten = rewrite(writer, model_type)
            for name, reason in rewritten.damaged.items():
                LOG.warning(f"{output.display_path(name)}: not compacted, can't be read: {reason}")
            summarize(
                f"{model_type:<16} {rewritten.rows_before:,} rows in {rewritten.parts_before:,} parts are now"
                f" {rewritten.rows:,} in {rewritten.parts:,}"
            )
    return OK
