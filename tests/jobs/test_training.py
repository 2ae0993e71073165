"""The training of the tiny models resumes where it was stopped, and its words are whole tokens."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from actors import families, pipelines
from jobs.training import captions, emoji, fitting
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

        fitting.fit("part", module, loss, 20, 0.2, folder, report=lambda _: None)
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


@pytest.mark.slow
def test_training_from_nothing_to_pipelines_that_load(tmp_path):
    pytest.importorskip("fontTools", reason="the extra `train` is not installed")
    if not (emoji.FONT.is_file() and emoji.NAMES.is_file()):
        pytest.skip(f"the training data is not installed: {emoji.INSTALL}")
    steps = ["--vae_steps", "4", "--encoder_steps", "2", "--denoiser_steps", "2", "--limit", "30"]
    folders = ["--folder", str(tmp_path / "work"), "--output", str(tmp_path)]
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
