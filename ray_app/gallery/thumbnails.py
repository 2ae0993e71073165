"""Thumbnails of images. Knows Pillow and bytes; nothing of where they come from or who shows them."""

import io

from PIL import Image

JPEG_QUALITY = 82


def small(data: bytes, size: int) -> Image.Image:
    """The image with its longer side at most `size` pixels, in RGB.

    Raises:
        OSError: it can't be decoded.
    """
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (size, size))  # jpgs are decoded at a fraction of their size: several times faster
        thumbnail = image.convert("RGB")
    thumbnail.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return thumbnail


def to_jpeg(image: Image.Image) -> bytes:
    """The bytes of a jpg of moderate quality: a page may show thousands."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return buffer.getvalue()
