"""The feature caches that retrieval scripts write beside a step's images and read again, from the vectors of features.
Knows the files' names and shapes; torch is imported when they are written."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from actors import encoders
from ray_app import text_table
from ray_app.annotations import circo
from ray_app.errors import OK, PROBLEMS, OutputRefused
from ray_app.export.options import Export
from ray_app.features import parts
from ray_app.features.parts import FeatureParts
from ray_app.index.rows import find_newest, read_rows
from ray_app.index.schema import KEY
from ray_app.output import layout
from ray_app.output.output import Output

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute

WRITES_FOLDER = True
MOST_NAMED = 20

Vectors = dict[str, np.ndarray]


def export(output: Output, options: Export) -> int:
    """Write EXPORT/STEP_FOLDER/aug_features_NAME.npz and source_features_NAME.npz, and EXPORT/DATASET_NAME.npz.

    Raises:
        Refused: the output has no vectors of the encoder, or the folder can't be written.
    """
    encoder = encoders.full_name(str(options.encoder))
    path = str(Path(encoder).expanduser().resolve()) if Path(encoder).expanduser().is_dir() else encoder
    table = _ok_rows(output, path, options.preprocessing)
    label = encoders.short_name(path)
    by_sha256, by_text = _vectors(table, "sha256"), _vectors(table, "text")
    photos = _photos(table)
    prompts = _prompts(options)
    problems: list[str] = []
    with options.new_folder() as folder:
        for model_type in layout.model_types(options.model_type):
            for name, rows in _step_folders(output, model_type, options).items():
                combined = _combined(name, rows, by_sha256, problems)
                query_of = {row["reference_img_id"]: row["query_id"] for row in rows}
                texts = _texts(name, query_of, prompts, by_text, problems)
                ids = {reference: image_id(reference) for reference in combined}
                sources = {reference: photos[photo][None] for reference, photo in ids.items() if photo in photos}
                (folder / name).mkdir()
                _save(folder / name / f"aug_features_{label}.npz", {"combined": combined, "txt": texts})
                if sources:
                    _save(folder / name / f"source_features_{label}.npz", sources)
                print(f"{name}: {len(combined):,} references, {len(sources):,} with a photo, {len(texts):,} with texts")
        if photos:
            content = {"feature": np.stack(list(photos.values())), "name": list(photos)}
            _save(folder / f"{options.dataset}_{label}.npz", content)
            print(f"{options.dataset}_{label}.npz: {len(photos):,} images")
    for line in text_table.first(problems, MOST_NAMED, " like these"):
        print(line)
    return PROBLEMS if problems else OK


def image_id(name: str) -> str:
    """An image's id as annotations have it: COCO's files have leading zeros."""
    return str(int(name)) if name.isdecimal() and len(name) < 20 else name


def _ok_rows(output: Output, encoder: str, preprocessing: str) -> pa.Table:
    """The rows with vectors of the newest revision of an encoder."""
    features = FeatureParts.of(output, encoder)
    is_of_encoder = (pc.field("encoder") == encoder) & (pc.field("preprocessing") == preprocessing)
    table = features.read(only=is_of_encoder & (pc.field("status") == parts.OK))
    if not table.num_rows:
        raise OutputRefused(
            f"{output.display_path(features.folder)}: no vectors of {encoder} with {preprocessing};"
            " `proxyqueue features` encodes them"
        )
    return table.filter(pc.equal(table["revision"], table["revision"][-1]))


def _vectors(table: pa.Table, key: str) -> Vectors:
    """Each image's or text's vector, float32 (D,)."""
    rows = table.filter(pc.is_valid(table[key]))
    return dict(zip(rows[key].to_pylist(), parts.to_numpy(rows["vector"]), strict=True))


def _photos(table: pa.Table) -> Vectors:
    """Vectors of the images that are not the output's own, by id."""
    names = table.filter(pc.is_valid(table["name"]))
    is_own = [layout.parse_step_folder(name.split("/")[0]) is not None for name in names["name"].to_pylist()]
    photos = names.filter(pc.invert(pa.array(is_own, pa.bool_())))
    return {image_id(name): vector for name, vector in _vectors(photos, "name").items()}


def _prompts(options: Export) -> dict[int, tuple[str, ...]]:
    """Each query's prompts, all of them; none without annotations."""
    if options.json_file is None:
        return {}
    annotations = circo.load(options.json_file, options.prompt_field, num_prompts=2**31)
    return {query.query_id: query.prompts for query in annotations.queries()}


def _step_folders(output: Output, model_type: str, options: Export) -> dict[str, list[dict[str, Any]]]:
    """The rows of each step's `combined` folder, in the order of their numbers."""
    rows = read_rows(output, model_type, [*KEY, "reference_img_id", "k", "path", "status", "sha256"])
    rows = rows.take(pa.array(find_newest(rows)))
    folders: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows.to_pylist(), key=lambda row: (row["step"], row["query_id"], row["k"])):
        is_step = not options.steps or row["step"] in options.steps
        is_snapshot = options.snapshot in (None, row["snapshot"])
        folder, subfolder = row["path"].split("/")[:2]
        if is_step and is_snapshot and subfolder == layout.COMBINED:
            folders.setdefault(folder, []).append(row)
    return folders


def _combined(folder: str, rows: list[dict[str, Any]], by_sha256: Vectors, problems: list[str]) -> Vectors:
    """Each reference's vectors, (1, N, D); references that lack one are left out and told."""
    of_reference: dict[str, list[np.ndarray | None]] = {}
    for row in rows:
        vector = by_sha256.get(row["sha256"] or "") if row["status"] == "ok" else None
        of_reference.setdefault(row["reference_img_id"], []).append(vector)
    combined = {}
    for reference, vectors in of_reference.items():
        missing = sum(vector is None for vector in vectors)
        if missing:
            problems.append(f"{folder}: reference {reference}: {missing} of {len(vectors)} images have no vector")
        else:
            combined[reference] = np.stack([vector for vector in vectors if vector is not None])[None]
    return combined


def _texts(
    folder: str, query_of: dict[str, int], prompts: dict[int, tuple[str, ...]], by_text: Vectors, problems: list[str]
) -> Vectors:
    """Each reference's vectors of its query's prompts, (n, D); those that lack one are left out and told."""
    texts = {}
    for reference, query in query_of.items():
        vectors = [by_text.get(prompt) for prompt in prompts.get(query, ())]
        missing = sum(vector is None for vector in vectors)
        if missing:
            problems.append(f"{folder}: query {query}: {missing} of {len(vectors)} prompts have no vector")
        elif vectors:
            texts[reference] = np.stack([vector for vector in vectors if vector is not None])
    return texts


def _save(path: Path, content: dict[str, Any]) -> None:
    """As scripts do: torch.save, whatever the suffix."""
    import torch

    buffer = io.BytesIO()
    torch.save(_as_tensors(content), buffer)
    path.write_bytes(buffer.getvalue())


def _as_tensors(value: Any) -> Any:
    import torch

    if isinstance(value, dict):
        return {name: _as_tensors(one) for name, one in value.items()}
    return torch.tensor(value) if isinstance(value, np.ndarray) else value
