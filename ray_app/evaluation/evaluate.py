"""The command `evaluate`: how well each step's proxies retrieve, beside controls, as a table, plots and a page.
Knows the order of things and where they are written; vectors, methods, metrics and texts are modules of their own."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app import text_table
from ray_app.errors import OK, InputRefused, OutputRefused
from ray_app.evaluation import (
    evaluation_plot,
    gallery_vectors,
    page,
    proxies,
    queries,
    scores_table,
    scoring,
    server,
    verdict,
)
from ray_app.evaluation import features as feature_files
from ray_app.evaluation import inputs as method_inputs
from ray_app.evaluation.features import Features
from ray_app.evaluation.gallery_vectors import Gallery
from ray_app.evaluation.methods import METHODS
from ray_app.evaluation.options import Evaluate
from ray_app.evaluation.queries import ScoredQuery
from ray_app.evaluation.scoring import Entry, GroupVectors
from ray_app.evaluation.verdict import Found
from ray_app.index import runs
from ray_app.index import writer as index_writer
from ray_app.messages import LOG
from ray_app.output import layout
from ray_app.output.open import open_output
from ray_app.output.output import Output, Writer

SHOWN_QUERIES = 3
MOST_NAMED = 10
TOP = 10
"""Images of a ranking that the page shows."""


@dataclasses.dataclass
class Group:
    """One model and kind of snapshot, scored."""

    slots: proxies.Slots
    vectors: GroupVectors
    left_out: list[int]
    rankings: dict[Entry, np.ndarray]
    scores: list[scoring.Score]
    rows: list[scores_table.Row]
    found: Found

    @property
    def name(self) -> str:
        """As plots and pages call it."""
        return f"{self.slots.model} {self.slots.snapshot}"


def evaluate(options: Evaluate) -> int:
    """Score, write and print; the exit code.

    Raises:
        Refused: no features or images, vectors that don't fit, a gallery without the right images, bad files.
    """
    output = open_output(options.output_base_path)
    output.check_writable()
    asked = queries.load(options.json_file, options.prompt_field, options.caption_field)
    if options.results and queries.have_ground_truth(asked):
        raise InputRefused("--results: goes with annotations without ground truth", flag="results")
    photos = page.ImageFolder(options.images)
    features = feature_files.read(output, options.encoder)
    indexes = {name: proxies.read_index(output, name) for name in layout.model_types(options.model_type)}
    own_images = {sha256 for rows in indexes.values() for sha256 in rows["sha256"].to_pylist()}
    gallery = gallery_vectors.build(features, own_images, options.gallery)
    gallery_vectors.check_ground_truth(gallery, asked, options.json_file)
    groups = []
    for model_type, rows in indexes.items():
        for slots in proxies.group(rows, model_type, features, options.steps, options.snapshot, options.num_prompts):
            groups.append(_score_group(options, asked, features, gallery, slots))
    if not groups:
        raise OutputRefused(
            f"{output.display_path(layout.INDEX)}: no image of this selection in it; set --output_base_path"
        )
    _write(options, output, features, gallery, groups, photos)
    return OK


def _score_group(
    options: Evaluate, asked: list[ScoredQuery], features: Features, gallery: Gallery, slots: proxies.Slots
) -> Group:
    vectors, left_out = _vectors(options, asked, features, slots)
    methods = _methods(options, vectors)
    weights = options.swept_weights()
    rankings = scoring.rank(vectors, gallery, methods, weights, options.seed)
    scores = scoring.score(vectors, gallery, rankings)
    rows = scores_table.rows(scores, vectors.queries, slots.steps[-1], options.bootstrap, options.seed)
    found = verdict.find(rows, slots.steps, scoring.headline(scores), methods, weights)
    return Group(slots, vectors, left_out, rankings, scores, rows, found)


def _vectors(
    options: Evaluate, asked: list[ScoredQuery], features: Features, slots: proxies.Slots
) -> tuple[GroupVectors, list[int]]:
    """The vectors of the queries that have a text and proxies at every step, and the ids of the others."""
    with_proxies = slots.queries(options.image_index)
    used = [query for query in asked if query.query_id in with_proxies and method_inputs.has_text(query, features)]
    used_ids = [query.query_id for query in used]
    left_out = sorted({query.query_id for query in asked} - set(used_ids))
    name = f"{slots.model} {slots.snapshot}"
    if not used:
        raise InputRefused(
            f"{options.json_file}: no query has vectors of its text and of {name} images at each of the steps"
            f" {' '.join(map(str, slots.steps))}; {feature_files.WRITE_THEM}"
        )
    if left_out:
        named = ", ".join(map(str, left_out[:MOST_NAMED]))
        more = f" and {len(left_out) - MOST_NAMED:,} more" if len(left_out) > MOST_NAMED else ""
        LOG.warning(f"{name}: left out of all steps, for want of vectors of text or images: queries {named}{more}")
    if slots.incomplete:
        LOG.warning(f"{name}: {slots.incomplete:,} slots don't count: some step has no image or no vector")
    other = options.image_index + 1
    has_other_seed = slots.queries(other).issuperset(used_ids)
    vectors = GroupVectors(
        used,
        slots.steps,
        method_inputs.texts(used, features),
        method_inputs.references(used, features),
        method_inputs.directions(used, features),
        {step: slots.proxies(features, step, options.image_index, used_ids) for step in slots.steps},
        {step: slots.proxies(features, step, other, used_ids) for step in slots.steps} if has_other_seed else {},
    )
    return vectors, left_out


def _methods(options: Evaluate, vectors: GroupVectors) -> list[str]:
    """The methods to score, text first; those that lack vectors are refused if they were named."""
    inputs = vectors.inputs(vectors.steps[-1], "none", options.seed)
    methods = []
    for name, method in METHODS.items():
        if name != "text" and options.methods and name not in options.methods:
            continue
        missing = method.missing(inputs)
        if missing is None:
            methods.append(name)
        elif name in options.methods:
            raise InputRefused(f"--methods {name}: needs {missing}; {feature_files.WRITE_THEM}", flag="methods")
        else:
            LOG.warning(f"{name}: not scored, it needs {missing}")
    return methods


def _write(
    options: Evaluate,
    output: Output,
    features: Features,
    gallery: Gallery,
    groups: list[Group],
    photos: page.ImageFolder,
) -> None:
    tables = [
        scores_table.to_table(group.slots.model, group.slots.snapshot, features.encoder, group.rows) for group in groups
    ]
    with output.writing(runs.new_id()) as writer:
        if not queries.have_ground_truth(groups[0].vectors.queries):
            submitted = _write_submissions(writer, gallery, groups)
            print(f"submissions      {len(submitted):,} files in {output.display_path(layout.SUBMISSIONS)}")
            if options.results:
                tables.append(_server_rows(options.results, submitted, features.encoder))
        found = {group.name: group.found for group in groups}
        plots = {"Score by step": (layout.EVALUATION_PLOTS["step"], evaluation_plot.by_step(found))}
        by_weight = evaluation_plot.by_weight(found)
        if by_weight:
            plots["Score by weight"] = (layout.EVALUATION_PLOTS["weight"], by_weight)
        for path, png in plots.values():
            writer.write(path, png)
        writer.write(layout.EVALUATION_TABLE, index_writer.to_parquet(pa.concat_tables(tables)))
        pngs = {title: png for title, (_, png) in plots.items()}
        text = _page(options, output, features, gallery, groups, pngs, photos)
        writer.write(layout.EVALUATION_PAGE, text.encode())
    for group in groups:
        table = verdict.report(group.found, group.slots.model, group.slots.snapshot)
        print("\n".join(text_table.align(table, right=(4, 5, *range(7, len(table[0]))))))
        print("\n".join(verdict.sentences(group.found)))
    print(f"table            {output.display_path(layout.EVALUATION_TABLE)}")
    print(f"page             {output.display_path(layout.EVALUATION_PAGE)}")


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


def _server_rows(path: str, submitted: dict[str, tuple[Group, Entry]], encoder: str) -> pa.Table:
    tables = []
    for name, values in server.read_results(path, list(submitted)).items():
        group, entry = submitted[name]
        count = len(group.vectors.queries)
        rows = [scores_table.Row(entry, metric, None, value, None, None, count) for metric, value in values]
        tables.append(scores_table.to_table(group.slots.model, group.slots.snapshot, encoder, rows))
    return pa.concat_tables([scores_table.SCHEMA.empty_table(), *tables])


def _page(
    options: Evaluate,
    output: Output,
    features: Features,
    gallery: Gallery,
    groups: list[Group],
    plots: dict[str, bytes],
    photos: page.ImageFolder,
) -> str:
    shown = []
    examples: list[Any] = []
    for group in groups:
        head, *rows = verdict.report(group.found, group.slots.model, group.slots.snapshot)
        sentences = verdict.sentences(group.found)
        count = len(group.vectors.queries)
        shown.append(page.GroupShown(group.name, count, len(group.left_out), sentences, head, rows))
        examples += _examples(options, output, gallery, group, photos)
    facts = {"title": output.url.rstrip("/").rsplit("/", 1)[-1], "encoder": features.encoder}
    facts |= {"revision": features.revision, "gallery": len(gallery.names), "metric": groups[0].found.metric}
    return page.render({**facts, "draws": options.bootstrap, "seed": options.seed}, shown, plots, examples)


def _examples(
    options: Evaluate, output: Output, gallery: Gallery, group: Group, photos: page.ImageFolder
) -> list[dict[str, Any]]:
    """The chosen queries' proxies and best images at each step, by the best method at its reported weight."""
    method = group.found.best_method()
    if method is None:
        return []
    places = {query.query_id: place for place, query in enumerate(group.vectors.queries)}
    chosen = options.show_queries or list(places)[:SHOWN_QUERIES]
    examples = []
    for query_id in chosen:
        if query_id in places:
            steps = [
                _example_step(options, output, gallery, group, photos, method, places[query_id], step)
                for step in group.slots.steps
            ]
            query = group.vectors.queries[places[query_id]]
            examples.append(
                {
                    "query_id": query_id,
                    "group": group.name,
                    "method": method,
                    "caption": query.caption,
                    "reference": photos.thumbnail(query.reference),
                    "steps": steps,
                }
            )
    return examples


def _example_step(
    options: Evaluate,
    output: Output,
    gallery: Gallery,
    group: Group,
    photos: page.ImageFolder,
    method: str,
    place: int,
    step: int,
) -> dict[str, Any]:
    query = group.vectors.queries[place]
    entry = Entry(method, step, group.found.weights[method])
    values = [score.values for score in group.scores if (score.entry, score.metric) == (entry, group.found.metric)]
    path = group.slots.first_path(query.query_id, step, options.image_index)
    names = [gallery.names[position] for position in group.rankings[entry][place][:TOP]]
    return {
        "step": step,
        "score": float(values[0][place]) if values else None,
        "proxy": page.thumbnail(lambda: output.read(path)),
        "best": [{"name": name, "right": name in query.relevant, "source": photos.thumbnail(name)} for name in names],
    }
