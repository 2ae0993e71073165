"""The command `convergence`: how similar each step's image is to the last step's, measured by Ray Data tasks.
Knows which images are compared, and the table; `image_similarity` measures, `convergence_plot` plots."""

import functools
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute

from actors import families
from ray_app import extras, text_table
from ray_app.cluster import connection, ray_workarounds
from ray_app.errors import OK, PROBLEMS, ClusterRefused, OutputRefused
from ray_app.evaluation import convergence_plot, image_similarity
from ray_app.evaluation.convergence_plot import Line, Spread
from ray_app.evaluation.options import Convergence
from ray_app.index import part_writer, runs
from ray_app.index.schema import SLOT_KEY
from ray_app.index.trajectories import OK as IS_OK
from ray_app.index.trajectories import Trajectories
from ray_app.messages import summarize
from ray_app.output import layout
from ray_app.output.open import open_output
from ray_app.output.output import Output
from ray_app.progress import Checked

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute

PAIRS_A_TASK = 64
MOST_NAMED = 10
NO_SCIKIT_IMAGE = "No module named 'skimage"
"""In the text of Ray's error of a task that could not import it."""

COLUMNS = {
    "model": (pa.string(), families.listed()),
    "query_id": (pa.int64(), "the slot, as in the index"),
    "prompt_index": (pa.int16(), "the slot"),
    "image_index": (pa.int16(), "the slot"),
    "snapshot": (pa.string(), "xt or x0"),
    "step": (pa.int16(), "whose image is compared"),
    "last_step": (pa.int16(), "with whose image"),
    "psnr": (pa.float32(), "in dB; infinite where the images are equal, null where one can't be read"),
    "ssim": (pa.float32(), "at most 1; null like psnr"),
    "problem": (pa.string(), "why psnr and ssim are null, else null"),
}
SCHEMA = pa.schema([(name, kind) for name, (kind, _) in COLUMNS.items()])


def convergence(options: Convergence) -> int:
    """Measure, write and print; the exit code.

    Raises:
        Refused: nothing to compare, a place that can't be written, or a package of the extra `plot` that is missing.
    """
    extras.PLOT.check("convergence", "skimage", "matplotlib")
    output = open_output(options.output_base_path)
    output.check_writable()
    shown = Trajectories(output, layout.model_types(options.model_type), options.steps, options.snapshot)
    compared = pa.concat_tables([pairs(shown.rows(model_type), model_type) for model_type in shown.models])
    if not compared.num_rows:
        raise OutputRefused(
            f"{output.display_path(layout.INDEX)}: no slot has two steps' images of one denoise; nothing to compare"
        )
    with connection.connected(options.address):
        table = _measure_all(output, compared, options.shared_filesystem)
    lines = summary(table)
    with output.writing(runs.new_id()) as writer:
        writer.write(layout.CONVERGENCE_TABLE, part_writer.to_parquet(table))
        writer.write(layout.CONVERGENCE_PLOT, convergence_plot.png(lines))
    print("\n".join(_format_table(lines)))
    summarize(f"table            {output.display_path(layout.CONVERGENCE_TABLE)}")
    summarize(f"plot             {output.display_path(layout.CONVERGENCE_PLOT)}")
    return _tell_problems(table)


def pairs(rows: pa.Table, model_type: str) -> pa.Table:
    """A model's images, each with its slot's image at the last step; slots in the order of their keys.

    Slots without an image at the last step are left out, and images of another denoise than that image's.
    """
    rows = rows.filter(pc.equal(rows["status"], IS_OK))
    last_step = pc.max(rows["step"])
    key = [*SLOT_KEY, "denoise_id"]
    # After the last step x0 equals xt: where both exist, both kinds of snapshots are compared with the file of xt.
    last = rows.filter(pc.equal(rows["step"], last_step)).sort_by([("snapshot", "descending")])
    last = last.group_by(key, use_threads=False).aggregate([("path", "first")])
    last = last.rename_columns([*key, "last_path"])
    earlier = rows.filter(pc.less(rows["step"], last_step)).select([*key, "snapshot", "step", "path"])
    joined = earlier.join(last, key, join_type="inner")
    joined = joined.sort_by([(name, "ascending") for name in (*SLOT_KEY, "snapshot", "step")])
    joined = joined.append_column("last_step", pa.repeat(last_step.cast(pa.int16()), joined.num_rows))
    return joined.append_column("model", pa.repeat(pa.scalar(model_type), joined.num_rows)).combine_chunks()


def summary(table: pa.Table) -> list[Line]:
    """Medians and quartiles of the table per model, snapshot and step, xt before x0."""
    table = table.filter(pc.is_valid(table["psnr"]))
    groups = table.group_by(["model", "last_step", "snapshot", "step"]).aggregate([]).to_pylist()
    lines = []
    for group in sorted(groups, key=_order):
        is_of_group = functools.reduce(pc.and_, [pc.equal(table[name], value) for name, value in group.items()])
        rows = table.filter(is_of_group)
        lines.append(Line(**group, images=rows.num_rows, psnr=_spread(rows["psnr"]), ssim=_spread(rows["ssim"])))
    return lines


def _order(group: dict[str, Any]) -> tuple[int, bool, int]:
    """Families in their order, xt before x0, steps as they come."""
    return list(families.FAMILIES).index(group["model"]), group["snapshot"] != "xt", group["step"]


def _spread(values: pa.ChunkedArray) -> Spread:
    return Spread(*pc.quantile(values, [0.25, 0.5, 0.75], interpolation="nearest").to_pylist())


def _measure_all(output: Output, compared: pa.Table, shared: bool) -> pa.Table:
    """The table of all pairs, measured by tasks of `PAIRS_A_TASK` pairs each; image bytes stay in the tasks.

    Raises:
        Refused: a node on which the tasks run lacks scikit-image.
    """
    import ray.data
    from ray.exceptions import RayTaskError

    ray_workarounds.quiet_data()
    starts = range(0, compared.num_rows, PAIRS_A_TASK)
    tasks = ray.data.from_arrow([compared.slice(start, PAIRS_A_TASK) for start in starts])
    measured = tasks.map_batches(
        functools.partial(_measure, output=output),
        batch_size=None,
        batch_format="pyarrow",
        **connection.placement_options(shared or output.reachable_from_all_nodes),
    )
    blocks: Any = measured.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    progress, measured_blocks = Checked(compared.num_rows, "compared"), []
    try:
        for block in blocks:
            measured_blocks.append(block)
            progress.add(block.num_rows)
    except RayTaskError as error:
        if NO_SCIKIT_IMAGE not in str(error):
            raise
        raise ClusterRefused(f"a node lacks scikit-image; on every node: {extras.PLOT.install}") from None
    finally:
        progress.close()
    order = [(name, "ascending") for name in ("model", *SLOT_KEY, "snapshot", "step")]
    return pa.concat_tables(measured_blocks).sort_by(order).combine_chunks()


def _measure(rows: pa.Table, output: Output) -> pa.Table:
    """A task: the rows of `SCHEMA` for some pairs."""
    results = list(_compare_each(rows.to_pylist(), output))
    columns = {name: rows[name] for name in SCHEMA.names if name in rows.column_names}
    for name in results[0]:
        columns[name] = pa.array([result[name] for result in results], SCHEMA.field(name).type)
    return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def _compare_each(rows: list[dict[str, Any]], output: Output) -> Iterator[dict[str, Any]]:
    # one reference is enough: a slot's rows are adjacent
    read = functools.lru_cache(maxsize=1)(lambda path: image_similarity.decode(output.read(path)))
    for row in rows:
        path = row["last_path"]
        try:
            reference = read(path)
            path = row["path"]
            psnr, ssim = image_similarity.compare(image_similarity.decode(output.read(path)), reference)
            yield {"psnr": psnr, "ssim": ssim, "problem": None}
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error).split("<")[0].strip()
            yield {"psnr": None, "ssim": None, "problem": f"{path}: {reason or type(error).__name__}"}


def _format_table(lines: list[Line]) -> list[str]:
    """The table as it is printed: medians, and the range of the middle half of the slots."""
    table = [["model", "snapshot", "step", "images", "PSNR", "half within", "SSIM", "half within"]]
    for line in lines:
        psnr, ssim = line.psnr, line.ssim
        table.append(
            [
                line.model,
                line.snapshot,
                f"{line.step} of {line.last_step}",
                f"{line.images:,}",
                f"{psnr.median:.1f} dB",
                f"{psnr.low:.1f} to {psnr.high:.1f}",
                f"{ssim.median:.3f}",
                f"{ssim.low:.3f} to {ssim.high:.3f}",
            ]
        )
    return text_table.align(table, right=(3, 4, 6))


def _tell_problems(table: pa.Table) -> int:
    problems = table["problem"].drop_null().unique().to_pylist()
    lines = (f"not compared: {problem}" for problem in problems)
    for line in text_table.first(lines, MOST_NAMED, ", in the table's column problem"):
        print(line)
    return PROBLEMS if problems else OK
