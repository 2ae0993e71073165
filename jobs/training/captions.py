"""What the tiny models are told of an image: its name, prompts with it, keywords; and tokenizers for such words.
Knows words only, no images and no models."""

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from jobs.training.emoji import Emoji

BEFORE = (
    "a photo of {}", "photo of {}", "a picture of {}", "a drawing of {}", "an image of {}", "a close-up of {}",
    "this is {}", "there is {}", "a man with {}", "a woman with {}", "a person with {}", "a girl holding {}",
    "a boy and {}", "two people with {}", "many of {}", "one of {}", "the same {}",
)  # fmt: skip
AFTER = (
    "on a beach", "on a table", "on a plate", "on a road", "on the grass", "on a sofa", "on a wooden floor",
    "on a wall", "in a park", "in the snow", "in a kitchen", "in a room", "in a village", "in a field", "in the city",
    "in the water", "in the dark", "in the rain", "by the sea", "by the window", "by a lake", "near the water",
    "near a tree", "at night", "at sunset", "at home", "under a tree", "under the sky", "beside a path",
    "behind a fence", "seen from below", "seen from above", "seen from the side", "against a blue sky",
    "with a person", "with mountains in the distance", "with flowers", "waves behind it", "looking at the sea",
    "with a white background", "next to a house", "outdoors", "sitting on a bench", "standing in the street",
    "lying on the ground", "covered with snow", "for sale in a shop",
)  # fmt: skip
LOOKS = (
    "small", "big", "large", "old", "new", "red", "brown", "black", "white", "green", "blue", "yellow", "grey",
    "dark", "bright", "colourful", "beautiful", "cute", "empty", "single", "wooden", "young", "wet", "happy", "shiny",
    "plain",
)  # fmt: skip
VERBS = (
    "sitting", "standing", "lying", "walking", "running", "parked", "resting", "placed", "looking", "eating", "playing",
    "holding", "wearing", "hanging", "flying", "floating", "sleeping", "seen", "shown", "alone", "together", "made",
)  # fmt: skip
PREPOSITIONS = (
    "in", "on", "at", "by", "near", "next to", "behind", "in front of", "beside", "over", "under", "with", "inside",
    "outside", "above", "against", "between", "of", "from", "through", "and", "without", "to",
)  # fmt: skip
SURROUNDINGS = (
    "beach", "table", "plate", "road", "grass", "sofa", "floor", "wall", "park", "kitchen", "room", "village", "field",
    "city", "sea", "lake", "fence", "bench", "street", "shop", "garden", "river", "hill", "bridge", "box", "building",
    "bag", "counter", "market", "carpet", "roof", "background", "crowd", "sky", "snow", "water", "man", "woman",
    "child", "person", "people", "boy", "girl", "tree", "car", "chair", "bed", "door", "window", "flower", "ball",
)  # fmt: skip
PLURALS = ("two", "three", "many", "several", "a row of", "dozens of", "a few", "some")


def spoken(name: str) -> str:
    """A name in natural order: "person: beard" is a person with beard."""
    return name.replace("’", "'").replace(": ", " with ")


def prompt(emoji: Emoji, rng: random.Random) -> str:
    """One of many prompts for it: bare names most often, keywords alone seldom, since several emoji share them."""
    name = spoken(emoji.name)
    kind = rng.random()
    if kind < 0.25:
        text = name
    elif kind < 0.33:
        text = _article(name)
    elif kind < 0.87:
        text = _described(name, rng)
    elif kind < 0.96 or not emoji.keywords:
        text = ", ".join([name, *rng.sample(emoji.keywords, min(len(emoji.keywords), rng.randint(1, 3)))])
    else:
        text = " ".join(rng.sample(emoji.keywords, min(len(emoji.keywords), rng.randint(2, 4))))
    if rng.random() < 0.5:
        text = text[:1].upper() + text[1:]
    return text + "." if rng.random() < 0.4 else text


def words(emojis: Sequence[Emoji]) -> list[str]:
    """The words that prompts are mostly made of, lower case, sorted; rare keywords are spelled in pieces."""
    names = [spoken(emoji.name) for emoji in emojis]
    texts = [*BEFORE, *AFTER, *LOOKS, *VERBS, *PREPOSITIONS, *SURROUNDINGS, *PLURALS, "a", "an", "the", *names]
    texts += [_plural(name) for name in names if " " not in name]
    used = Counter(word for emoji in emojis for text in emoji.keywords for word in _words(text))
    return sorted({word for text in texts for word in _words(text)} | {word for word, uses in used.items() if uses > 1})


def clip_tokenizer(vocabulary: Iterable[str]) -> Any:
    """A CLIP tokenizer for which each word is one token; the rest goes by bytes."""
    from tokenizers import Tokenizer, models, trainers
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = ByteLevel(add_prefix_space=False)
    ends = [piece + "</w>" for piece in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        min_frequency=1,
        initial_alphabet=alphabet,
        special_tokens=ends,  # numbered before the words are read, whose order is another one in every process
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(vocabulary, trainer)
    merges = _merges(learner)
    pieces = [*alphabet, *ends, *dict.fromkeys("".join(pair) for pair in merges)]
    pieces = list(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))
    return CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=merges,  # pyright: ignore[reportArgumentType]: pairs are taken too
        pad_token="<|endoftext|>",
        model_max_length=77,
    )


def t5_tokenizer(vocabulary: Iterable[str], longest: int) -> Any:
    """A T5 tokenizer for which each word is one token, with and without a capital; the rest goes by letters.

    Other alphabets' letters become its unknown token, as they do for the T5 of the real models.
    """
    from transformers import T5TokenizerFast  # pyright: ignore[reportAttributeAccessIssue]: made on import

    whole = [f"▁{form}" for word in vocabulary for form in (word, word.capitalize())]
    letters = [chr(code) for code in range(33, 127)]
    scores = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, "▁": -10.0}
    scores |= dict.fromkeys(whole, -2.0) | dict.fromkeys(letters, -10.0)
    return T5TokenizerFast(vocab=list(scores.items()), extra_ids=0, model_max_length=longest)


def _described(name: str, rng: random.Random) -> str:
    if rng.random() < 0.15:
        text = f"{rng.choice(PLURALS)} {_plural(name)}"
    else:
        looks = f"{rng.choice(LOOKS) if rng.random() < 0.8 else _unheard(rng)} " if rng.random() < 0.35 else ""
        text = _article(looks + name, "the" if rng.random() < 0.2 else None)
    if rng.random() < 0.4:
        text = rng.choice(BEFORE).format(text)
    for _ in range(rng.choice((0, 1, 1, 2))):
        text += rng.choice((" ", ", ")) + (rng.choice(AFTER) if rng.random() < 0.4 else _around(rng))
    return text


def _around(rng: random.Random) -> str:
    """Where it is or what it does, put together by chance; some words are ones that nobody has heard."""
    thing = rng.choice(SURROUNDINGS) if rng.random() < 0.65 else _unheard(rng)
    if rng.random() < 0.3:
        thing = f"{rng.choice(LOOKS) if rng.random() < 0.6 else _unheard(rng)} {thing}"
    verb = ""
    if rng.random() < 0.5:
        verb = f"{rng.choice(VERBS) if rng.random() < 0.7 else _unheard(rng)} "
    return f"{verb}{rng.choice(PREPOSITIONS)} {_article(thing, 'the' if rng.random() < 0.3 else None)}"


def _unheard(rng: random.Random) -> str:
    """A word that is none: the models learn to leave out what they do not know."""
    return "".join(rng.choice("bcdfghklmnprstvw") + rng.choice("aeiou") for _ in range(rng.randint(1, 4))) + rng.choice(
        ("", "", "n", "r", "s", "ed", "ing")
    )


def _article(name: str, article: str | None = None) -> str:
    if article is None:
        article = "an" if name[0].lower() in "aeiou" else "a"
    return f"{article} {name}"


def _plural(name: str) -> str:
    return name if name.endswith("s") else name + "s"


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


def _merges(learner: Any) -> list[tuple[str, str]]:
    import json

    return [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
