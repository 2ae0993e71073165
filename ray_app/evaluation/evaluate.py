"""The command `evaluate`: how well each step's proxies retrieve, beside controls, as a table, plots and a page.
Knows the order of things and where they are written; vectors, methods, metrics and texts are modules of their own."""

from typing import Any

import pyarrow as pa

from ray_app import extras, text_table
from ray_app.errors import OK, InputRefused, OutputRefused
from ray_app.evaluation import (
    evaluation_plot,
    examples,
    gallery_vectors,
    page,
    proxies,
    queries,
    scores_table,
    server,
    verdict,
)
from ray_app.evaluation import features as feature_files
from ray_app.evaluation.features import Features
from ray_app.evaluation.gallery_vectors import Gallery
from ray_app.evaluation.group import Group, score_group
from ray_app.evaluation.options import Evaluate
from ray_app.evaluation.scoring import Entry
from ray_app.index import part_writer, runs
from ray_app.messages import LOG
from ray_app.output import layout
from ray_app.output.open import open_output
from ray_app.output.output import Output, Writer


def evaluate(options: Evaluate) -> int:
    """Score, write and print; the exit code.

    Raises:
        Refused: no features or images, vectors that don't fit, a gallery without the right images, bad files.
    """
    output = open_output(options.output_base_path)
    output.check_writable()
    requested = queries.load(options.json_file, options.prompt_field, options.caption_field)
    if options.results and queries.have_ground_truth(requested):
        raise InputRefused("--results: goes with annotations without ground truth", flag="results")
    unknown = set(options.show_queries) - {query.query_id for query in requested}
    if unknown:
        raise InputRefused(
            f"--show_queries {min(unknown)}: no query with this id in the annotations", flag="show_queries"
        )
    results = server.read_results(options.results) if options.results else []
    photos = page.Photos(options.images)
    features = feature_files.read(output, options.encoder)
    indexes = {name: proxies.read_index(output, name) for name in layout.model_types(options.model_type)}
    gallery = gallery_vectors.build(features, proxies.own_images(output), options.gallery)
    gallery_vectors.check_ground_truth(gallery, requested, options.json_file)
    groups = []
    for model_type, rows in indexes.items():
        for slots in proxies.group(rows, model_type, features, options.steps, options.snapshot, options.num_prompts):
            groups.append(score_group(options, requested, features, gallery, slots))
    if not groups:
        raise OutputRefused(
            f"{output.display_path(layout.INDEX)}: no image of this selection in it; set --output_base_path"
        )
    _write(options, output, features, gallery, groups, photos, results)
    return OK


def _write(
    options: Evaluate,
    output: Output,
    features: Features,
    gallery: Gallery,
    groups: list[Group],
    photos: page.Photos,
    results: list[server.Result],
) -> None:
    tables = [
        scores_table.to_table(group.slots.model, group.slots.snapshot, features.encoder, group.rows) for group in groups
    ]
    with output.writing(runs.new_id()) as writer:
        if not queries.have_ground_truth(groups[0].vectors.queries):
            submitted = _write_submissions(writer, gallery, groups)
            print(f"submissions      {len(submitted):,} files in {output.display_path(layout.SUBMISSIONS)}")
            tables += _server_rows(results, submitted, features.encoder)
        found = {group.name: group.found for group in groups}
        plots = _plots(found)
        for path, png in plots.values():
            writer.write(path, png)
        writer.write(layout.EVALUATION_TABLE, part_writer.to_parquet(pa.concat_tables(tables)))
        pngs = {title: png for title, (_, png) in plots.items()}
        text = _page(options, output, features, gallery, groups, pngs, photos)
        writer.write(layout.EVALUATION_PAGE, text.encode())
    for group in groups:
        table = verdict.report(group.found, group.slots.model, group.slots.snapshot)
        print("\n".join(text_table.align(table, right=(4, 5, *range(7, len(table[0]))))))
        print("\n".join(verdict.sentences(group.found)))
    print(f"table            {output.display_path(layout.EVALUATION_TABLE)}")
    print(f"page             {output.display_path(layout.EVALUATION_PAGE)}")


def _plots(found: evaluation_plot.Groups) -> dict[str, tuple[str, bytes]]:
    """File and PNG of each plot by its title; none, with a warning, where matplotlib is not installed."""
    if not extras.is_installed("matplotlib"):
        LOG.warning(f"no plots: matplotlib is not installed ({extras.PLOT.install})")
        return {}
    plots = {"Score by step": (layout.EVALUATION_PLOTS["step"], evaluation_plot.by_step(found))}
    by_weight = evaluation_plot.by_weight(found)
    if by_weight:
        plots["Score by weight"] = (layout.EVALUATION_PLOTS["weight"], by_weight)
    return plots


def _write_submissions(writer: Writer, gallery: Gallery, groups: list[Group]) -> dict[str, tuple[Group, Entry]]:
    """A file per ranking of the queries' own proxies; what each is of, by its name."""
    submitted = {}
    for group in groups:
        for entry, best in group.rankings.items():
            if entry.control == "none":
                path = layout.submission_file(
                    group.slots.model, group.slots.snapshot, entry.step, entry.method, entry.weight
                )
                writer.write(path, server.submission(group.vectors.queries, gallery, best))
                submitted[path.rsplit("/", 1)[-1]] = (group, entry)
    return submitted


def _server_rows(
    results: list[server.Result], submitted: dict[str, tuple[Group, Entry]], encoder: str
) -> list[pa.Table]:
    """The server's scores as rows.

    Raises:
        Refused: one names a submission that this evaluation does not have.
    """
    tables = []
    for result in results:
        if result.file not in submitted:
            raise InputRefused(f"{result.where}: {result.file!r} is no submission of this evaluation", flag="results")
        group, entry = submitted[result.file]
        row = scores_table.Row(entry, result.metric, None, result.value, None, None, len(group.vectors.queries))
        tables.append(scores_table.to_table(group.slots.model, group.slots.snapshot, encoder, [row]))
    return tables


def _page(
    options: Evaluate,
    output: Output,
    features: Features,
    gallery: Gallery,
    groups: list[Group],
    plots: dict[str, bytes],
    photos: page.Photos,
) -> str:
    shown = []
    chosen: list[Any] = []
    for group in groups:
        head, *rows = verdict.report(group.found, group.slots.model, group.slots.snapshot)
        sentences = verdict.sentences(group.found)
        count = len(group.vectors.queries)
        shown.append(page.GroupShown(group.name, count, len(group.left_out), sentences, head, rows))
        chosen += examples.find_examples(options, output, gallery, group, photos)
    facts = {"title": output.url.rstrip("/").rsplit("/", 1)[-1], "encoder": features.encoder}
    facts |= {"revision": features.recipe["revision"], "gallery": len(gallery.names), "metric": groups[0].found.metric}
    return page.render({**facts, "draws": options.bootstrap, "seed": options.seed}, shown, plots, chosen)
