"""How good is the shipped tiny CLIP? Which of Emoji CIR's images it ranks first for each name and sentence.
Knows the encoder as `features` loads it; nothing of training, and needs no font."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq

from actors import tiny
from actors.encoder import ImageEncoder
from jobs.training import captions, evaluate, stages
from jobs.training.emoji_cir import FOLDER
from ray_app.features import encoder_card
from ray_app.features.options import Features


@dataclasses.dataclass(frozen=True)
class Recall:
    """Shares of texts whose first image is the right one."""

    names: float
    learned_names: float
    held_out_names: float
    sentences: float


def measure(threads: int | None = None) -> Recall:
    """Rank all images by the bare names, and by the sentences that were written down before."""
    table = pq.read_table(FOLDER / "images.parquet")
    titles = table["title"].to_pylist()
    encoder = ImageEncoder(encoder_card.resolve(Features(encoder=tiny.NAME)), threads)
    images = _unit(encoder, table["image"].to_pylist(), [None] * len(titles))
    first = _first(encoder, [captions.spoken(title) for title in titles], images)
    is_right, is_held_out = first == np.arange(len(titles)), stages.held_out(len(titles)).numpy()
    sentences = evaluate.read_sentences()
    shown = _first(encoder, list(sentences), images)
    accepted = [titles[place] in names for place, names in zip(shown, sentences.values(), strict=True)]
    return Recall(
        float(is_right.mean()),
        float(is_right[~is_held_out].mean()),
        float(is_right[is_held_out].mean()),
        float(np.mean(accepted)),
    )


def table_of(recall: Recall) -> str:
    """As docs/tiny-models.md shows it."""
    rows = {
        "names, all 1,129 (Recall@1)": recall.names,
        "names that it learned": recall.learned_names,
        "names held out, of which it knows keywords only": recall.held_out_names,
        "sentences, the sixty above": recall.sentences,
    }
    lines = ["| text | first image is right |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {share * 100:.1f} % |" for name, share in rows.items())])


def _first(encoder: ImageEncoder, texts: Sequence[str], images: np.ndarray) -> np.ndarray:
    """Which image is the most similar to each text."""
    return (_unit(encoder, [None] * len(texts), texts) @ images.T).argmax(1)


def _unit(encoder: ImageEncoder, images: Sequence[bytes | None], texts: Sequence[str | None]) -> np.ndarray:
    encoded = encoder.encode(encoder.prepare(images, texts))
    vectors = np.stack([one.vector for one in encoded if one.vector is not None])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
