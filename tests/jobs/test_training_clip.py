"""What the tiny CLIP learns from: images varied but not mirrored, names but not those held out; and that it trains."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from actors.encoder import ImageEncoder
from jobs.training import clip, measure_clip
from jobs.training.emoji import Emoji
from ray_app.features import encoder_card
from ray_app.features.options import Features
from tests.jobs.test_training import training_data

DOG = Emoji("d", "dog face", ("pet", "animal"), np.zeros((64, 64, 3), np.uint8))


def test_a_name_that_is_held_out_is_never_in_a_prompt():
    rng = random.Random(0)
    assert any("dog face" in clip.prompt(DOG, rng, is_held_out=False).lower() for _ in range(50))
    assert not any("dog" in clip.prompt(DOG, rng, is_held_out=True) for _ in range(200))


def test_images_are_varied_each_in_its_own_way_and_left_stays_left():
    half = torch.ones(64, 3, 64, 64)
    half[:, :, 16:48, 12:28] = -1
    varied = clip.varied(half, torch.Generator().manual_seed(0))
    assert varied.shape == half.shape
    assert varied.abs().max() <= 1
    assert (varied[0] - varied[1]).abs().mean() > 0.01
    left, right = varied[..., :32].mean((1, 2, 3)), varied[..., 32:].mean((1, 2, 3))
    assert (left < right).all()


def test_pairs_of_the_same_emoji_are_no_counterexamples():
    similarities = torch.tensor([[5.0, 5.0, 0.0], [5.0, 5.0, 0.0], [0.0, 0.0, 5.0]])
    same, different = (clip.contrast(similarities, torch.tensor(which)) for which in ([1, 1, 2], [1, 3, 2]))
    assert same < 0.02
    assert different > 0.3


def test_the_table_shows_percentages():
    lines = measure_clip.table_of(measure_clip.Recall(0.9512, 0.99, 0.6, 0.85)).splitlines()
    assert "| names, all 1,129 (Recall@1) | 95.1 % |" in lines
    assert "| names held out, of which it knows keywords only | 60.0 % |" in lines


@pytest.mark.slow
def test_training_from_nothing_to_an_encoder_that_loads(tmp_path):
    assert training_data()
    steps = ["--limit", "30", "--steps", "2", "--text_steps", "2"]
    folders = ["--folder", str(tmp_path / "work"), "--output", str(tmp_path)]
    command = [sys.executable, "-m", "jobs.training.train_clip", *steps, *folders]
    for is_first in (True, False):
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
        assert result.returncode == 0, result.stderr
        assert ("step 2 of 2" in result.stdout) == is_first
    for preprocessing in ("targetpad", "model"):
        options = Features(encoder=str(tmp_path / "tiny_clip"), device="cpu", preprocessing=preprocessing)
        (encoded,) = ImageEncoder(encoder_card.resolve(options))({"image": [None], "text": ["a dog"]})
        assert encoded.vector is not None
        assert encoded.vector.shape == (clip.WIDTH,)
