"""The image encoder without Ray: its vectors are those of transformers, and a bad file costs no other."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from actors import checksums, encoders, preprocessing, weights
from actors.encoder import ImageEncoder
from actors.encoders import Encoder
from actors.errors import DeviceLost, ModelError
from tests.support.encoders import IMAGE_SIZE, VECTOR_SIZE, save_clip, save_siglip


def encoder_of(folder: Path, kind: str = "clip", **changes) -> Encoder:
    revision = checksums.of_folder(folder, encoders.names_read(weights.names_in(folder)))
    known = Encoder(str(folder), revision, kind, IMAGE_SIZE, VECTOR_SIZE, "targetpad", "cpu", "float32", 4)
    return dataclasses.replace(known, **changes)


def jpg(seed: int, width: int = 60, height: int = 40) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.repeat(4, 0).repeat(4, 1)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory) -> Path:
    return save_siglip(tmp_path_factory.mktemp("siglip") / "siglip")


def vectors(encoder: ImageEncoder, images: list[bytes]) -> np.ndarray:
    results = encoder({"image": images, "text": [None] * len(images)})
    assert [result.error_type for result in results] == [None] * len(images)
    return np.stack([result.vector for result in results])


def expected(folder: Path, kind: str, pixel_values: torch.Tensor) -> np.ndarray:
    import transformers

    model = getattr(transformers, encoders.KINDS[kind]).from_pretrained(folder)
    with torch.inference_mode():
        return model.get_image_features(pixel_values=pixel_values).pooler_output.numpy()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_with_the_models_own_preprocessing_vectors_are_those_of_transformers(kind, request):
    from transformers import AutoImageProcessor

    folder = request.getfixturevalue(kind)
    images = [jpg(0), jpg(1, 40, 100), jpg(2, 32, 32)]
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    opened = [Image.open(io.BytesIO(image)) for image in images]
    pixels = torch.cat([processor(images=image, return_tensors="pt")["pixel_values"] for image in opened])
    encoder = ImageEncoder(encoder_of(folder, kind, preprocessing="model"), 1)
    assert np.allclose(vectors(encoder, images), expected(folder, kind, pixels), atol=1e-4)


def test_with_target_pad_vectors_are_those_of_the_padded_image(clip):
    """The model's own preprocessing of the padded image is the same: it resizes and crops it likewise."""
    image = jpg(0, 80, 32)
    padded = preprocessing.target_pad(preprocessing.decode(image))
    assert padded.size == (80, 64)
    cropped = np.asarray(preprocessing.resize_and_crop(padded, IMAGE_SIZE), np.float32).transpose(2, 0, 1)
    mean, std = (
        np.array(value, np.float32)[:, None, None] for value in (preprocessing.CLIP_MEAN, preprocessing.CLIP_STD)
    )
    pixels = torch.from_numpy((cropped / 255 - mean) / std)[None]
    encoder = ImageEncoder(encoder_of(clip), 1)
    assert np.allclose(vectors(encoder, [image]), expected(clip, "clip", pixels), atol=1e-4)
    unpadded = ImageEncoder(encoder_of(clip, preprocessing="model"), 1)
    assert not np.allclose(vectors(encoder, [image]), vectors(unpadded, [image]), atol=0.1)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_texts_are_encoded_as_transformers_does(kind, request, caplog):
    import transformers

    folder = request.getfixturevalue(kind)
    texts = ["a dog", "", "a very long sentence " * 50]
    results = ImageEncoder(encoder_of(folder, kind), 1)({"image": [None] * 3, "text": texts})
    model = getattr(transformers, encoders.KINDS[kind]).from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text, result in zip(texts, results, strict=True):
        tokens = tokenizer([text], padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            vector = model.get_text_features(**tokens).pooler_output[0].numpy()
        assert np.allclose(result.vector, vector, atol=1e-4)


def test_a_bad_file_costs_no_other_and_texts_mix_with_images(clip):
    truncated = jpg(1)[:700]
    images = [jpg(0), None, truncated, b"text", None, *map(jpg, range(5))]
    texts = [None, "a dog", *[None] * 8]
    results = ImageEncoder(encoder_of(clip), 1)({"image": images, "text": texts})
    assert [result.error_type for result in results] == [None, None, "BadImage", "BadImage", "BadImage", *[None] * 5]
    assert "not an image of a known format" in (results[3].error_message or "")
    alone = vectors(ImageEncoder(encoder_of(clip), 1), [jpg(4)])
    assert np.allclose(results[9].vector, alone[0], atol=1e-4)


def test_a_vector_that_is_not_finite_is_a_failure(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_clip(tmp_path / "clip")
    tensors = load_file(folder / "model.safetensors")
    tensors["visual_projection.weight"][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (result,) = ImageEncoder(encoder_of(folder), 1)({"image": [jpg(0)], "text": [None]})
    assert (result.vector, result.error_type) == (None, "NonFiniteVector")


def test_a_folder_that_changed_since_the_run_began_is_refused(tmp_path):
    folder = save_clip(tmp_path / "clip")
    encoder = encoder_of(folder)
    (folder / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ModelError, match="its files on this machine are not those that the run began with"):
        ImageEncoder(encoder, 1)


def test_weights_that_lack_a_part_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_clip(tmp_path / "clip")
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"its weights lack visual_projection\.weight and 0 more"):
        ImageEncoder(encoder_of(folder), 1)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("openai/clip-vit-large-patch14", "openai--clip-vit-large-patch14"),
        ("/data/my models/clip é", "clip__"),
        ("/data/.hidden", "hidden"),
    ],
)
def test_an_encoders_folder_has_a_safe_name(path, name):
    assert encoders.folder_name(path) == name


def test_a_lost_device_fails_no_image(clip):
    """The error that torch raises in the model: a device that still answers costs that image alone."""
    encoder = ImageEncoder(encoder_of(clip), 1)

    def fail(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700)

    encoder.model.vision_model.register_forward_pre_hook(fail)
    images = {"image": [jpg(0), jpg(1)], "text": [None, None]}
    assert [result.error_type for result in encoder(images)] == ["AcceleratorError"] * 2
    encoder.probe = fail
    with pytest.raises(DeviceLost, match="illegal memory access"):
        encoder(images)
