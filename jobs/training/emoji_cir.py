"""`python -m jobs.training.emoji_cir`: make Emoji CIR, a small benchmark of composed image retrieval, from emoji.
Knows the groups of emoji_cir.json, images and names; nothing of models."""

import dataclasses
import io
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray_app
from jobs.training import captions, emoji
from jobs.training.emoji import Emoji
from ray_app.cli import run_module
from ray_app.errors import OK
from ray_app.generation.options import Options

GROUPS = Path(__file__).with_suffix(".json")
FOLDER = Path(ray_app.__file__).with_name("emoji_cir")
IN_DEMO = 32
"""Queries of the demo's part."""
DESCRIBED = ("colour", "object", "direction", "person", "kind")
"""Changes whose words alone say what the right image shows, at least some of it."""
MOST_FROM = 3
"""References of a kind of things, at most."""
NOTICE = "Noto Emoji (googlefonts/noto-emoji), copyright 2013-2017 Google Inc., SIL Open Font License 1.1, made smaller"
QUALITY = 85
"""Of the images, which are WebP: a third of the bytes of PNG."""


@dataclasses.dataclass(frozen=True)
class Change:
    """A reference, what to change of it in words, and the names of all right images."""

    aspect: str
    concept: str
    caption: str
    reference: str
    right: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class EmojiCir(Options):
    """Make Emoji CIR: queries.json, demo.json (a part of them) and images.parquet; the same files every time.

    Needs: apt-get install fonts-noto-color-emoji unicode-cldr-core && pip install 'proxyqueue[train]'
    """

    output: str = str(FOLDER)
    """The folder to write them to."""


def emoji_cir(options: EmojiCir) -> int:
    """Write the files; the exit code."""
    emojis, folder = emoji.read(), Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    made = queries(emojis)
    for name, part in (("queries.json", made), ("demo.json", demo_part(made))):
        text = json.dumps(part, ensure_ascii=False, indent=1)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    (folder / "images.parquet").write_bytes(images(emojis))
    print(f"{folder}: {len(made)} queries, {len(emojis)} images")
    return OK


def image_id(character: str) -> int:
    """What an emoji's image is called: its code point."""
    return ord(character)


def changes() -> list[Change]:
    """All changes of the groups, in their order."""
    groups = json.loads(GROUPS.read_text(encoding="utf-8"))
    return [
        *(change for group in groups["swaps"] for change in _swaps(group)),
        *(change for group in groups["pairs"] for change in _pairs(group)),
        *(change for group in groups["kinds"] for change in _kinds(group)),
    ]


def queries(emojis: Sequence[Emoji]) -> list[dict[str, Any]]:
    """The benchmark in CIRCO's schema."""
    by_name = {one.name: one for one in emojis}
    return [_query(number, change, by_name) for number, change in enumerate(changes())]


def demo_part(made: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Queries at equal distances, so that every kind of change has some."""
    return [made[number * len(made) // IN_DEMO] for number in range(IN_DEMO)]


def images(emojis: Sequence[Emoji]) -> bytes:
    """All images as a Parquet file with the columns `name` (the id), `title` and `image`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "name": [str(image_id(one.character)) for one in emojis],
        "title": [one.name for one in emojis],
        "image": [_webp(one) for one in emojis],
    }
    table = pa.table(columns).replace_schema_metadata({"licence": NOTICE})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _swaps(group: dict[str, Any]) -> Iterator[Change]:
    """Every member is the right one once; its reference is the member before it."""
    members = list(group["looks"].items())
    for number, (name, look) in enumerate(members):
        reference, other = members[number - 1]
        caption = group["caption"].format(look=look, other=other)
        yield Change(group["aspect"], group["concept"], caption, reference, (name,))


def _pairs(group: dict[str, Any]) -> Iterator[Change]:
    for reference, right in group["pairs"].items():
        yield Change(group["aspect"], group["concept"], group["caption"], reference, tuple(right))


def _kinds(group: dict[str, Any]) -> Iterator[Change]:
    """Whatever is of the kind is right, but for the reference."""
    for reference in group.get("from", group["right"])[:MOST_FROM]:
        right = tuple(name for name in group["right"] if name != reference)
        yield Change("kind", group["concept"], group["caption"], reference, right)


def _query(number: int, change: Change, by_name: dict[str, Emoji]) -> dict[str, Any]:
    rng = random.Random(number)
    right = list(change.right)
    rng.shuffle(right)
    ids = [image_id(by_name[name].character) for name in right]
    return {
        "id": number,
        "reference_img_id": image_id(by_name[change.reference].character),
        "target_img_id": ids[0],
        "gt_img_ids": ids,
        "relative_caption": change.caption,
        "shared_concept": change.concept,
        "semantic_aspects": [change.aspect],
        "multi_gpt-3.5_opt": _prompts(change, [by_name[name] for name in right], rng),
        "multi_caption_opt": _captions(change.reference),
    }


def _prompts(change: Change, right: list[Emoji], rng: random.Random) -> list[str]:
    """Five sentences as a language model may write them: most name a right image, one only says what was requested."""
    first, second, third, fourth = (right[number % len(right)] for number in range(4))
    scenes = rng.sample(captions.AFTER, 2)
    look = rng.choice(captions.LOOKS)
    words = [captions.spoken(third.name), *third.keywords]
    return [
        _sentence(_with_article(first.name)),
        _sentence(f"a photo of {_with_article(second.name)}, {scenes[0]}"),
        _sentence(_in_words(change, third)),
        _sentence(", ".join(rng.sample(words, min(3, len(words))))),
        _sentence(f"{_with_article(f'{look} {fourth.name}')}, {scenes[1]}"),
    ]


def _in_words(change: Change, right: Emoji) -> str:
    """What was requested, with what a careless writer leaves in of the reference."""
    if change.aspect not in DESCRIBED:
        return f"{_with_article(right.name)} instead of {_with_article(change.reference)}"
    if "another" in change.caption:
        return f"{change.concept} like {_with_article(change.reference)}, but another one"
    return f"{change.concept} that {change.caption.split(' instead of')[0]}"


def _captions(reference: str) -> list[str]:
    """Descriptions of the reference, one per prompt."""
    name = _with_article(reference)
    return [name, f"a photo of {name}", f"{name} with a white background", f"an image of {name}", f"this is {name}"]


def _with_article(name: str) -> str:
    """A name as a sentence has it; plurals and proper names without an article."""
    name = captions.spoken(name)
    noun = re.split(" with | of | in ", name)[0].split()[-1]
    if name[0].isupper() or (noun.endswith("s") and not noun.endswith(("ss", "us"))):
        return name
    return f"{'an' if re.match('[aeio]|u(?!ni)', name) else 'a'} {name}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _webp(one: Emoji) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(one.pixels).save(buffer, "WEBP", quality=QUALITY, method=6)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(run_module("jobs.training.emoji_cir", EmojiCir, emoji_cir))
