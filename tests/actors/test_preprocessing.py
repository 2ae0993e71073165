"""Images as retrieval scripts prepare them: sizes and pixels computed by hand."""

import io

import numpy as np
import pytest
from PIL import Image

from actors import preprocessing
from actors.preprocessing import BadImage


def white(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (255, 255, 255))


@pytest.mark.parametrize(
    ("width", "height", "padded"),
    [
        (100, 100, (100, 100)),
        (124, 100, (124, 100)),  # a ratio of 1.24
        (125, 100, (125, 100)),  # 125 / 1.25 = 100: nothing is missing
        (200, 100, (200, 160)),  # 200 / 1.25 = 160: 30 above and below
        (100, 200, (160, 200)),
        (640, 427, (640, 511)),  # 512 wanted, 85 missing: 42 on each side
        (1000, 1, (1000, 799)),  # 800 wanted, 799 missing: 399 on each side
    ],
)
def test_longer_images_are_padded_to_a_ratio_of_1_25(width, height, padded):
    image = preprocessing.target_pad(white(width, height))
    assert image.size == padded
    across, down = (padded[0] - width) // 2, (padded[1] - height) // 2
    pixels = np.asarray(image)
    expected = np.zeros_like(pixels)
    expected[down : down + height, across : across + width] = 255
    assert (pixels == expected).all()


def test_the_shorter_side_is_resized_and_the_centre_taken():
    """300 x 200 becomes 48 x 32, and 8 columns go on each side: the left third is red to column 16, so 8 are left."""
    image = white(300, 200)
    image.paste((255, 0, 0), (0, 0, 100, 200))
    cropped = preprocessing.resize_and_crop(image, 32)
    assert cropped.size == (32, 32)
    pixels = np.asarray(cropped).astype(int)
    assert (pixels[:, :6] == (255, 0, 0)).all()
    assert (pixels[:, 10:] == (255, 255, 255)).all()
    assert (pixels == np.asarray(image.resize((48, 32), Image.Resampling.BICUBIC))[:, 8:40]).all()


def test_prepared_as_scripts_do_pixels_are_not_normalised_yet():
    pixels = preprocessing.as_scripts(32)(white(200, 100))
    assert (pixels.shape, pixels.dtype) == ((3, 32, 32), np.uint8)
    # 200 x 160 becomes 40 x 32, of which 6 rows above and below are black
    assert (pixels[:, :5] == 0).all()
    assert (pixels[:, 8:24] == 255).all()


def test_images_of_other_modes_become_rgb():
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        buffer = io.BytesIO()
        image = white(8, 8).convert(mode)
        image.save(buffer, "TIFF")
        assert preprocessing.decode(buffer.getvalue()).mode == "RGB"


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"<html></html>"])
def test_what_is_no_image_is_told_in_words(data):
    with pytest.raises(BadImage, match=r"^not an image of a known format$|^can't be decoded: "):
        preprocessing.decode(data)
