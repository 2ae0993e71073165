"""The queries that are scored: their texts and, where the annotations have it, what is right.
Knows the annotations' fields; nothing of images or vectors."""

import dataclasses
from typing import Any

from ray_app.annotations import circo
from ray_app.errors import InputRefused
from ray_app.evaluation.features import image_key


@dataclasses.dataclass(frozen=True)
class ScoredQuery:
    """One entry of the annotations. Images are named by `image_key`."""

    query_id: int
    reference: str
    caption: str
    """The relative caption, "" where it has none."""
    prompts: tuple[str, ...]
    captions: tuple[str, ...]
    """Descriptions of the reference photo, as many as prompts or none."""
    relevant: tuple[str, ...]
    """Every right image (`gt_img_ids`); empty without ground truth."""
    target: str | None
    """The one image that the query was written for (`target_img_id`)."""
    aspects: tuple[str, ...]


def load(path: str, prompt_field: str, caption_field: str) -> list[ScoredQuery]:
    """The queries of a file, in its order; entries without a usable id are skipped.

    Raises:
        Refused: no query at all, or ground truth that some queries have and others don't.
    """
    queries = []
    for entry in circo.read_entries(path):
        query_id = str(entry.get("id"))
        if query_id.isdecimal() and len(query_id) < 19:
            queries.append(_query(path, int(query_id), entry, prompt_field, caption_field))
    if not queries:
        raise InputRefused(f"{path}: no query with an 'id'", path=path)
    without = [query.query_id for query in queries if not query.relevant]
    if without and len(without) < len(queries):
        raise InputRefused(
            f"{path}: query {without[0]}: no 'gt_img_ids', which other queries have; remove the entry or complete it",
            path=path,
            field="gt_img_ids",
        )
    return queries


def have_ground_truth(queries: list[ScoredQuery]) -> bool:
    """Whether these queries can be scored here: all or none of a file can."""
    return bool(queries and queries[0].relevant)


def _query(path: str, query_id: int, entry: dict[str, Any], prompt_field: str, caption_field: str) -> ScoredQuery:
    where = f"{path}: query {query_id}"
    relevant = tuple(image_key(name) for name in _list(where, entry, "gt_img_ids") if name not in ("", None))
    target = entry.get("target_img_id")
    caption = entry.get("relative_caption")
    return ScoredQuery(
        query_id,
        image_key(entry.get("reference_img_id", "")),
        caption if isinstance(caption, str) else "",
        tuple(text for text in _list(where, entry, prompt_field) if isinstance(text, str)),
        tuple(text for text in _list(where, entry, caption_field) if isinstance(text, str)),
        tuple(dict.fromkeys(relevant)),
        None if target is None or target == "" else image_key(target),
        tuple(str(aspect) for aspect in _list(where, entry, "semantic_aspects")),
    )


def _list(where: str, entry: dict[str, Any], field: str) -> list[Any]:
    value = entry.get(field)
    if value is None:
        return []
    if not isinstance(value, list):
        raise InputRefused(f"{where}: '{field}' is not a list", field=field)
    return value
