"""Pictures made small. Knows Pillow and bytes; nothing of where they come from or who shows them."""

import io

from PIL import Image

JPEG_QUALITY = 82


def small(data: bytes, size: int) -> Image.Image:
    """The picture with its longer side at most `size` pixels, in RGB.

    Raises:
        OSError: it can't be decoded.
    """
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (size, size))  # jpgs are decoded at a fraction of their size: several times faster
        picture = image.convert("RGB")
    picture.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return picture


def to_jpeg(picture: Image.Image) -> bytes:
    """Small enough for thousands on a page."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return buffer.getvalue()
