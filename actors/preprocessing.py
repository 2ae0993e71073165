"""An image file becomes what an encoder sees, as retrieval scripts prepare it or as the model's own processor does.
Knows pixels; nothing of models' weights or of batches."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

TARGET_RATIO = 1.25
"""Of the longer to the shorter side: images that are longer are padded to it."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Prepare = Callable[[Image.Image], np.ndarray]


class BadImage(Exception):
    """A file that is not an image, or not a whole one."""


def decode(data: bytes) -> Image.Image:
    """An RGB image.

    Raises:
        BadImage: it can't be decoded, in words.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except UnidentifiedImageError:
        raise BadImage("not an image of a known format") from None
    except Exception as error:  # a damaged file can make Pillow raise nearly anything
        raise BadImage(f"can't be decoded: {' '.join(str(error).split())[:200] or type(error).__name__}") from None


def target_pad(image: Image.Image, ratio: float = TARGET_RATIO) -> Image.Image:
    """The image with black bars along its longer sides, so that longer / shorter side is at most `ratio`.

    Both bars have the same whole number of pixels, rounded down. An image that is not longer is returned as it is.
    """
    width, height = image.size
    if max(width, height) / min(width, height) < ratio:
        return image
    shorter_side = max(width, height) / ratio
    across, down = (max(int((shorter_side - side) / 2), 0) for side in (width, height))
    padded = Image.new(image.mode, (width + 2 * across, height + 2 * down))
    padded.paste(image, (across, down))
    return padded


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """The centre, `size` x `size` pixels, of the image with its shorter side resized to `size`, bicubic."""
    width, height = image.size
    shorter = min(width, height)
    resized = image.resize((size * width // shorter, size * height // shorter), Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in resized.size)
    return resized.crop((left, top, left + size, top + size))


def as_scripts(size: int) -> Prepare:
    """Target pad, resize, centre crop: uint8 (3, size, size), to be normalised with the encoder's mean and std."""

    def prepare(image: Image.Image) -> np.ndarray:
        cropped = resize_and_crop(target_pad(image), size)
        return np.ascontiguousarray(np.asarray(cropped).transpose(2, 0, 1))

    return prepare


def as_model(processor: Any) -> Prepare:
    """The pixel values of a processor of transformers: float32 (3, height, width), normalised."""

    def prepare(image: Image.Image) -> np.ndarray:
        return np.asarray(processor(images=image, return_tensors="np")["pixel_values"][0], np.float32)

    return prepare
