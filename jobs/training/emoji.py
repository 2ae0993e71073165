"""The training images and names of the tiny models: emoji of Noto's font, English names and keywords of CLDR.
Knows two files of Debian packages; nothing of models or captions."""

import dataclasses
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from ray_app.errors import InputRefused

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
"""The edition with PNG images inside (CBDT tables). SIL Open Font License 1.1."""

NAMES = Path("/usr/share/unicode/cldr/common/annotations/en.xml")
"""Unicode licence."""

INSTALL = "apt-get install fonts-noto-color-emoji unicode-cldr-core && pip install 'proxyqueue[train]'"

LEFT_OUT = re.compile(
    r"flag|button|arrow|o’clock|thirty|skin tone|symbol|\bsign\b|square|circle|\bmark\b|Japanese|^input|diamond$"
    r"|triangle|middle finger|(red|curly|white) hair|^bald$|^(no|prohibited|non)\b|currency|eight-|sparkle$|curly"
    r"|wavy|infinity|recycl|trident|horizontal"
)
"""Signs of writing and traffic: unlikely in prompts, and similar to each other."""

FIRST = 0x2600
"""Code points below are arrows, letters and clocks; the zodiac's signs are `ZODIAC`."""

ZODIAC = range(0x2648, 0x2654)


@dataclasses.dataclass(frozen=True)
class Emoji:
    """One training image with its words; `pixels` are uint8 RGB (size, size, 3) on white."""

    character: str
    name: str
    keywords: tuple[str, ...]
    pixels: np.ndarray


def read(size: int = 64, font: Path = FONT, names: Path = NAMES) -> list[Emoji]:
    """Every emoji with a name and an image, in the order of code points.

    Raises:
        Refused: the font, the names or fontTools are not installed.
    """
    for file in (font, names):
        if not file.is_file():
            raise InputRefused(f"{file}: does not exist; install the training data with: {INSTALL}")
    try:
        from fontTools.ttLib import TTFont
    except ImportError:
        raise InputRefused(f"fontTools is not installed; install the training data with: {INSTALL}") from None
    with TTFont(font) as opened:
        if "CBDT" not in opened:
            raise InputRefused(f"{font}: holds no PNG images; use Debian's: {INSTALL}")
        glyphs = opened.getBestCmap() or {}
        strike = opened["CBDT"].strikeData[0]
        words = _words(names)
        known = sorted(code for code in words if glyphs.get(code) in strike)
        return [Emoji(chr(code), *words[code], _decode_png(strike[glyphs[code]].imageData, size)) for code in known]


def _words(file: Path) -> dict[int, tuple[str, tuple[str, ...]]]:
    """Name and keywords by code point, of those that are worth learning."""
    names: dict[str, str] = {}
    keywords: dict[str, tuple[str, ...]] = {}
    for entry in ElementTree.parse(file).iter("annotation"):
        character, text = entry.get("cp", ""), entry.text or ""
        if len(character) != 1 or ord(character) < FIRST or ord(character) in ZODIAC:
            continue
        if entry.get("type") == "tts":
            names[character] = text
        else:
            keywords[character] = tuple(text.split(" | "))
    return {
        ord(character): (name, tuple(word for word in keywords.get(character, ()) if word != name))
        for character, name in names.items()
        if not LEFT_OUT.search(name)
    }


def _decode_png(png: bytes, size: int) -> np.ndarray:
    from PIL import Image

    glyph = Image.open(io.BytesIO(png)).convert("RGBA")
    side = max(glyph.size)
    page = Image.new("RGBA", (side, side), "white")
    page.alpha_composite(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
    return np.asarray(page.convert("RGB").resize((size, size), Image.Resampling.LANCZOS))
