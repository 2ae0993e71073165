"""The annotations: a JSON list of queries in the CIRCO schema is checked and becomes the table of slots.
Knows the file's fields; nothing of the images that exist."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.recipe import MAX_SEED, SeedMode, denoise_id, image_seed
from ray_app.errors import InputRefused
from ray_app.output import layout, remote
from ray_app.suggestions import list_names, suggest, suggest_nearest

INT64_MAX = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Query:
    """One entry of the annotations, with the prompts to generate images of."""

    query_id: int
    reference_img_id: str
    prompts: tuple[str, ...]
    folder: str  # within a step's folder: "combined", or its own if an earlier query has the same reference


@dataclasses.dataclass(frozen=True)
class Annotations:
    """A checked file: the entries in their order, None for one that can't be used, and what to report about them."""

    entries: list[Query | None]
    skipped: list[str]
    warnings: list[str]

    def queries(
        self, query_ids: Sequence[int] = (), limit: int | None = None, idx: int = 0, gpu_num: int = 1
    ) -> list[Query]:
        """The selected queries: of those with these ids the first `limit`, and of these share `idx` of `gpu_num`.

        A share is contiguous and has floor(n / gpu_num) entries; the last one takes the rest. n includes unusable
        entries, so that the shares of a file have the same bounds with any prompt field.

        A share is empty if there are more shares than entries, or if none of its entries can be used.

        Raises:
            Refused: a query id that the file doesn't have.
        """
        entries = self.entries
        if query_ids:
            unknown = set(query_ids) - {query.query_id for query in entries if query}
            if unknown:
                raise InputRefused(
                    f"--query_ids {min(unknown)}: no usable query with this id in the annotations", flag="query_ids"
                )
            entries = [query for query in entries if query and query.query_id in set(query_ids)]
        entries = entries[:limit]
        size = len(entries) // gpu_num
        first = idx * size
        end = len(entries) if idx == gpu_num - 1 else first + size
        return [query for query in entries[first:end] if query]


def load(path: str, prompt_field: str, num_prompts: int, strict: bool = False) -> Annotations:
    """Read and check the annotations.

    Args:
        path: a JSON file, a list of objects with `id`, `reference_img_id` and the prompts under `prompt_field`.
        num_prompts: how many of each query's prompts are used.
        strict: refuse the whole file for a query that would otherwise be reported and skipped.

    Raises:
        Refused: a file that can't be read as a list of objects, an id that is not a plain name, no usable query at all.
    """
    queries: list[Query | None] = []
    skipped: list[str] = []
    warnings: list[str] = []
    ids: set[int] = set()
    references: set[str] = set()
    entries = _read_entries(path)
    _check_field_exists(path, entries, prompt_field)
    for position, entry in enumerate(entries):
        try:
            query = _query(path, position, entry, prompt_field, num_prompts, ids, references)
        except _Unusable as problem:
            if strict:
                raise InputRefused(f"{problem} (--strict)") from None
            skipped.append(f"{problem}; skipped")
            queries.append(None)
            continue
        ids.add(query.query_id)
        references.add(query.reference_img_id)
        queries.append(query)
        warnings += _warnings(path, query, prompt_field, num_prompts)
    if not ids:
        raise InputRefused(f"{path}: no usable query: {skipped[0]}", path=path)
    return Annotations(queries, skipped, warnings)


def read_entries(path: str) -> list[dict[str, Any]]:
    """The file's objects as they are, unchecked.

    Raises:
        Refused: a file that can't be read as a list of objects.
    """
    return _read_entries(path)


def captions(path: str) -> dict[int, tuple[str, str]]:
    """Each query's relative caption and shared concept, "" where it has none; entries without an id are skipped.

    Raises:
        Refused: a file that can't be read as a list of objects.
    """
    texts_by_id = {}
    for entry in _read_entries(path):
        query_id = str(entry.get("id"))
        if query_id.isdecimal() and len(query_id) < 20:
            texts = [entry.get(name) for name in ("relative_caption", "shared_concept")]
            texts_by_id[int(query_id)] = tuple(text if isinstance(text, str) else "" for text in texts)
    return texts_by_id


def texts(path: str, fields: Sequence[str]) -> list[str]:
    """The different texts of these fields, strings or lists of strings, in the order of the file.

    Raises:
        Refused: a file that can't be read as a list of objects, or a field in which no entry has a text.
    """
    entries = _read_entries(path)
    found: dict[str, None] = {}
    for field in fields:
        of_field = [text for entry in entries for text in _texts_of(entry.get(field))]
        if not of_field:
            known = sorted({name for entry in entries for name in entry if list(_texts_of(entry[name]))})
            raise InputRefused(
                f"{path}: no text in any {field!r} (--texts); fields with texts: {', '.join(known) or 'none'}",
                path=path,
                field=field,
            )
        found |= dict.fromkeys(of_field)
    return list(found)


def _texts_of(value: Any) -> list[str]:
    """The strings of a field's value that can be stored: half a surrogate pair can't."""
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text.encode(errors="replace").decode() == text]


def slots(queries: Sequence[Query], img_per_prompt: int, seed: int, seed_mode: SeedMode, image_format: str) -> pa.Table:
    """The requested images, one row each in the order of the queries.

    Columns: query_id, reference_img_id, prompt_index, image_index, k, prompt, seed, denoise_id, and `file`, its path
    within every step's folder.
    """
    if seed + img_per_prompt - 1 > MAX_SEED:
        raise InputRefused(
            f"--seed {seed}: with {img_per_prompt} images per prompt seeds would pass {MAX_SEED}; take a smaller one"
        )
    rows: dict[str, list[Any]] = {field.name: [] for field in SLOT_SCHEMA}
    for query in queries:
        for prompt_index, prompt in enumerate(query.prompts):
            for image_index in range(img_per_prompt):
                k = prompt_index * img_per_prompt + image_index
                own_seed = image_seed(seed_mode, seed, query.query_id, prompt_index, image_index)
                rows["query_id"].append(query.query_id)
                rows["reference_img_id"].append(query.reference_img_id)
                rows["prompt_index"].append(prompt_index)
                rows["image_index"].append(image_index)
                rows["k"].append(k)
                rows["prompt"].append(prompt)
                rows["seed"].append(own_seed)
                rows["denoise_id"].append(denoise_id(prompt, own_seed))
                rows["file"].append(layout.image_file(query.folder, query.reference_img_id, k, image_format))
    return pa.table(rows, schema=SLOT_SCHEMA)


SLOT_SCHEMA = pa.schema(
    {
        "query_id": pa.int64(),
        "reference_img_id": pa.string(),
        "prompt_index": pa.int16(),
        "image_index": pa.int16(),
        "k": pa.int32(),
        "prompt": pa.string(),
        "seed": pa.int64(),
        "denoise_id": pa.string(),
        "file": pa.string(),
    }
)


class _Unusable(Exception):
    """One query can't be used; the message names file, query and field."""


def _read_entries(path: str) -> list[dict[str, Any]]:
    if not path.strip():
        raise InputRefused(f"--json_file {path!r}: not the name of a file", flag="json_file")
    try:
        data = remote.read_file(path) if remote.is_remote(path) else Path(os.path.expanduser(path)).read_bytes()
        entries = json.loads(data.decode("utf-8-sig"))
    except FileNotFoundError:
        raise InputRefused(f"{path}: no such file; name the annotations with --json_file", path=path) from None
    except OSError as error:
        reason = error.strerror if remote.is_remote(path) else f"can't be read: {error.strerror}"
        raise InputRefused(f"{path}: {reason}", path=path) from None
    except UnicodeDecodeError as error:
        raise InputRefused(f"{path}: not UTF-8 text at byte {error.start}", path=path) from None
    except (ValueError, RecursionError) as error:
        raise InputRefused(f"{path}: not JSON{_why_no_json(error)}", path=path) from None
    if not isinstance(entries, list):
        raise InputRefused(f"{path}: {_json_type(entries)}, not a list of queries", path=path)
    if not entries:
        raise InputRefused(f"{path}: an empty list; it needs at least one query", path=path)
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InputRefused(f"{path}: entry {position} is {_json_type(entry)}, not an object", path=path)
    return entries


def _check_field_exists(path: str, entries: list[dict[str, Any]], prompt_field: str) -> None:
    """Raise Refused if no query has the prompts' field, with the fields that hold lists."""
    if any(entry.get(prompt_field) is not None for entry in entries):
        return
    with_lists = list(dict.fromkeys(name for entry in entries for name in entry if isinstance(entry[name], list)))
    near = suggest_nearest(prompt_field, with_lists)
    listed = f" (fields with lists: {list_names(with_lists)})" if near and len(with_lists) > 1 else ""
    raise InputRefused(
        f"{path}: no query has the field {prompt_field!r} (--prompt_field){suggest(prompt_field, with_lists)}{listed}",
        path=path,
        field=prompt_field,
        flag="prompt_field",
    )


def _query(
    path: str,
    position: int,
    entry: dict[str, Any],
    prompt_field: str,
    num_prompts: int,
    ids: set[int],
    references: set[str],
) -> Query:
    query_id = _query_id(path, position, entry, ids)
    where = f"{path}: query {query_id}"
    reference = entry.get("reference_img_id")
    if reference is None:
        raise _Unusable(f"{where}: no 'reference_img_id'")
    if isinstance(reference, bool) or not isinstance(reference, int | str):
        raise _Unusable(f"{where}: 'reference_img_id' is {_json_type(reference)}, not a whole number or string")
    reference = _as_text(reference)
    if why := layout.why_not_plain(reference):
        raise InputRefused(
            f"{where}: 'reference_img_id' {reference[:80]!r} {why}; it must be a plain name", field="reference_img_id"
        )
    prompts = _prompts(where, entry, prompt_field, num_prompts)
    return Query(query_id, reference, prompts, layout.query_folder(query_id, reference not in references))


def _query_id(path: str, position: int, entry: dict[str, Any], ids: set[int]) -> int:
    where = f"{path}: entry {position}"
    value = entry.get("id")
    if value is None:
        raise _Unusable(f"{where}: no 'id'")
    if isinstance(value, str):
        if why := layout.why_not_plain(value):
            raise InputRefused(f"{where}: 'id' {value[:80]!r} {why}; it must be a whole number", field="id")
        value = int(value) if value.isdecimal() and len(value) < 20 else value
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _Unusable(f"{where}: 'id' is {_json_type(value)}, not a whole number from 0 to 2^63-1")
    if isinstance(value, str) or not 0 <= value <= INT64_MAX:
        raise _Unusable(f"{where}: 'id' {_as_text(value)[:80]!r} is not a whole number from 0 to 2^63-1")
    if value in ids:
        raise _Unusable(f"{where}: duplicate 'id' {value}")
    return value


def _why_no_json(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f": line {error.lineno} column {error.colno}: {error.msg}"
    if isinstance(error, RecursionError):
        return " that can be read: nested too deeply"
    return f" that can be read: {str(error).split(';')[0]}"  # a number of thousands of digits


def _json_type(value: Any) -> str:
    """What JSON calls a value's type."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list"}
    if value is None:
        return "null"
    return names.get(type(value), "an object")


def _as_text(value: int | str) -> str:
    """A number or string as text; `str` alone refuses whole numbers of thousands of digits."""
    return hex(value) if isinstance(value, int) and abs(value) > 10**100 else str(value)


def _prompts(where: str, entry: dict[str, Any], field: str, num_prompts: int) -> tuple[str, ...]:
    prompts = entry.get(field)
    if prompts is None:
        raise _Unusable(f"{where}: no '{field}'; name the prompts' field with --prompt_field")
    if not isinstance(prompts, list):
        raise _Unusable(f"{where}: '{field}' is {_json_type(prompts)}, not a list of prompts")
    if not prompts:
        raise _Unusable(f"{where}: '{field}' is empty")
    selected = prompts[:num_prompts]
    for index, prompt in enumerate(selected):
        if not isinstance(prompt, str):
            raise _Unusable(f"{where}: '{field}'[{index}] is {_json_type(prompt)}, not a string")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise _Unusable(f"{where}: '{field}'[{index}] is not valid Unicode (half a surrogate pair)") from None
    return tuple(selected)


def _warnings(path: str, query: Query, field: str, num_prompts: int) -> list[str]:
    where = f"{path}: query {query.query_id}"
    warnings = []
    if len(query.prompts) < num_prompts:
        warnings.append(f"{where}: '{field}' has {len(query.prompts)} of {num_prompts} prompts; those are used")
    for index, prompt in enumerate(query.prompts):
        if not prompt.strip():
            warnings.append(f"{where}: '{field}'[{index}] is blank; used as it is")
    if "_" in query.reference_img_id:
        warnings.append(
            f"{where}: 'reference_img_id' {query.reference_img_id!r} has an underscore;"
            " retrieval scripts, which split file names at underscores, read it wrong"
        )
    return warnings
