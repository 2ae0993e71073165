"""Chosen queries as the page shows them: the reference, the proxy at each step, and the best images.
Knows rankings and image files; nothing of how they look on the page."""

from typing import Any

from ray_app.evaluation import page
from ray_app.evaluation.gallery_vectors import Gallery
from ray_app.evaluation.group import Group
from ray_app.evaluation.options import Evaluate
from ray_app.evaluation.scoring import Entry
from ray_app.output.output import Output

SHOWN_QUERIES = 3
TOP = 10
"""Images of a ranking that the page shows."""


def find_examples(
    options: Evaluate, output: Output, gallery: Gallery, group: Group, photos: page.Photos
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
                _step(options, output, gallery, group, photos, method, places[query_id], step)
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


def _step(
    options: Evaluate,
    output: Output,
    gallery: Gallery,
    group: Group,
    photos: page.Photos,
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
