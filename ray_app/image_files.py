"""Image files and their pixels: decoding, and how far two images are apart.
Knows Pillow and arrays; nothing of steps, rows or where files are."""

import io
import math

import numpy as np
from PIL import Image


def decode(data: bytes) -> np.ndarray:
    """An image's pixels, uint8 (height, width, 3).

    Raises:
        OSError: it can't be decoded.
    """
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two images of the same size, uint8, in dB; infinite if they are equal."""
    error = float(np.square(image.astype(np.float64) - reference.astype(np.float64)).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf
