"""The shipped tiny CLIP is small, an encoder like any other, and finds images by their names."""

import numpy as np
import pytest
from safetensors import safe_open

from actors import encoders, tiny
from actors.encoders import Encoder
from jobs.training import measure_clip
from ray_app.errors import Refused
from ray_app.features import encoder_card
from ray_app.features.options import Features


def test_it_is_3_mb_of_float16_that_transformers_saved():
    files = {file.name: file.stat().st_size for file in tiny.folder(tiny.CLIP).iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"} <= files.keys()
    assert sum(files.values()) <= 3e6
    with safe_open(tiny.folder(tiny.CLIP) / "model.safetensors", "pt") as opened:
        assert {opened.get_slice(key).get_dtype() for key in opened.keys()} <= {"F16", "I64"}  # noqa: SIM118


def test_its_short_name_is_an_encoder_for_cpus():
    options = Features(encoder="tiny")
    encoder = encoder_card.resolve(options)
    assert encoder == Encoder(
        path="tiny", revision=tiny.revision("clip"), kind="clip", image_size=64, vector_size=96,
        preprocessing="targetpad", device="cpu", dtype="float32", batch_size=32,
    )  # fmt: skip
    assert options.gpus() == 0
    assert not encoder.is_of_hub
    assert encoders.folder_of(encoder, print) == tiny.folder("clip")
    assert encoders.folder_name(encoder.path) == "tiny"
    with pytest.raises(Refused, match="--revision main: tiny is not a hub id; leave it out"):
        encoder_card.resolve(Features(encoder="tiny", revision="main"))


def test_it_finds_images_by_their_names():
    recall = measure_clip.measure(threads=1)
    assert recall.names >= 0.9
    assert recall.learned_names >= 0.95
    assert recall.held_out_names >= 0.2
    assert recall.sentences >= 0.8
    assert np.isclose(recall.names, (1017 * recall.learned_names + 112 * recall.held_out_names) / 1129, atol=1e-3)
