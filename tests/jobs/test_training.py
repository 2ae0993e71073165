"""The training of the tiny models resumes where it was stopped, its words are whole tokens, its figures are counted."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from actors import families, pipelines
from jobs.training import captions, emoji, evaluate, fitting, muon, report, stages
from ray_app.errors import Refused
from tests.actors.test_tiny import FAMILIES, NAMES


def test_a_stopped_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", -1)

    def run(folder, stop_at=None):
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 3)

        def loss(generator):
            if generator.initial_seed() == stop_at:
                raise KeyboardInterrupt
            batch = torch.randn(8, 3, generator=generator)
            return (module(batch) - batch).square().mean()

        fitting.fit("part", module, loss, 20, folder, learning_rate=0.2, matrix_rate=0.2, report=lambda _: None)
        return module.weight

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop_at=12)
    assert torch.equal(run(tmp_path / "stopped"), whole)
    assert torch.dist(whole, torch.eye(3)) < 1.2


def test_words_of_the_captions_are_whole_tokens():
    words = ["dog", "dogs", "piñata", "umbrella", "beach"]
    clip, t5 = captions.clip_tokenizer(words), captions.t5_tokenizer(words, 48)
    for word in words:
        assert len(clip(word).input_ids) == 3
        assert len(t5(word).input_ids) == len(t5(word.capitalize()).input_ids) == 2
    assert len(clip("zebra").input_ids) > 3


def test_the_same_words_are_the_same_tokens_every_time():
    words = sorted({word for text in (*captions.BEFORE, *captions.AFTER, *NAMES) for word in text.split()})
    first, second = (captions.clip_tokenizer(words).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_missing_training_data_is_one_line_that_says_what_to_install(tmp_path):
    with pytest.raises(
        Refused, match=r"font\.ttf: does not exist; install the training data with: apt-get install fonts-noto"
    ):
        emoji.read(font=tmp_path / "font.ttf")


@pytest.mark.parametrize("shape", [(8, 8), (4, 30), (30, 4)])
def test_muons_steps_are_about_orthogonal(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    strengths = torch.linalg.svdvals(muon.orthogonal(matrix))
    assert strengths.min() > 0.4
    assert strengths.max() < 1.4
    assert (muon.orthogonal(matrix) * matrix).sum() > 0


def test_muon_trains_inner_matrices_only():
    parts = {"conv_in": torch.nn.Conv2d(3, 4, 3), "block": torch.nn.Linear(4, 4), "proj_out": torch.nn.Linear(4, 3)}
    module = torch.nn.ModuleDict({**parts, "words": torch.nn.Embedding(5, 4), "norm": torch.nn.GroupNorm(2, 4)})
    (only,) = muon.inner_matrices(module)
    assert only is parts["block"].weight


def test_codes_tell_images_apart_that_look_alike():
    code = stages.image_code(torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert code.shape == (3, stages.CODE + stages.MARK)
    assert torch.pdist(code[:, stages.CODE :]).min() > 5


def test_every_tenth_image_is_held_out_of_the_autoencoder():
    assert torch.arange(25)[stages.held_out(25)].tolist() == [9, 19]


def test_sentences_count_as_shown_if_the_nearest_image_has_one_of_their_names():
    sentences = evaluate.read_sentences()
    assert len(sentences) == 60
    shown = {sentence: names[-1] for sentence, names in sentences.items()}
    assert evaluate.share_shown(shown) == 1
    assert evaluate.share_shown({**shown, "A pie on a plate.": "dog"}) == 59 / 60


def test_tables_have_the_mean_of_the_seeds_and_their_spread(tmp_path):
    steps = {
        (family, snapshot, step): [0.5, 0.75, 1.0]
        for family in FAMILIES
        for snapshot in evaluate.SNAPSHOTS
        for step in evaluate.STEPS
    }
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- quality -->\nold\n<!-- end -->\nafter\n")
    sentences = {"sdxl": [0.9], "flux": [0.7]}
    sharpness = {"sdxl": evaluate.Sharpness(30.04, 31), "flux": evaluate.Sharpness(24, 25)}
    report.write_table(page, "quality", report.quality_table(steps, sentences, sharpness))
    lines = page.read_text().splitlines()
    assert lines[:2] == ["before", "<!-- quality -->"]
    assert "| names right at step 32 | 75.0 % (50.0 to 100.0) | 75.0 % (50.0 to 100.0) |" in lines
    assert "| sentences that show what they name | 90.0 % (90.0 to 90.0) | 70.0 % (70.0 to 70.0) |" in lines
    assert "| autoencoder, held-out images | 30.0 dB | 24.0 dB |" in lines
    assert lines[-2:] == ["<!-- end -->", "after"]
    assert report.steps_table(steps).splitlines()[0] == (
        "| step | tiny SDXL, xt | tiny SDXL, x0 | tiny Flux, xt | tiny Flux, x0 |"
    )


def test_sentences_name_emoji_that_the_models_learn():
    known = {one.name for one in training_data()}
    assert {name for names in evaluate.read_sentences().values() for name in names} <= known


@pytest.mark.slow
def test_training_from_nothing_to_pipelines_that_load(tmp_path):
    assert training_data()
    steps = [
        "--vae_steps",
        "4",
        "--encoder_steps",
        "2",
        "--unet_steps",
        "2",
        "--transformer_steps",
        "2",
        "--limit",
        "30",
    ]
    folders = ["--limit", "30", "--folder", str(tmp_path / "work"), "--output", str(tmp_path)]
    for reported in ("step 4 of 4", "tiny_flux"):  # the second time everything is there
        command = [sys.executable, "-m", "jobs.training.train", *steps, *folders]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
        assert result.returncode == 0, result.stderr
        assert reported in result.stdout
    assert "step 4 of 4" not in result.stdout
    for kind in FAMILIES:
        pipe = pipelines.pipeline_class(families.FAMILIES[kind]).from_pretrained(
            tmp_path / f"tiny_{kind}", **pipelines.dtype_argument(torch.float32)
        )
        pipe.set_progress_bar_config(disable=True)
        assert np.array(pipe("a dog", num_inference_steps=2, height=64, width=64).images[0]).shape == (64, 64, 3)


def training_data():
    pytest.importorskip("fontTools", reason="the extra `train` is not installed")
    if not (emoji.FONT.is_file() and emoji.NAMES.is_file()):
        pytest.skip(f"the training data is not installed: {emoji.INSTALL}")
    return emoji.read()
