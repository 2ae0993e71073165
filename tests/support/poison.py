"""Workers that really die and hang: by a word in the prompt, in the middle of a batch."""

import ctypes
import os
import signal
import time
from collections.abc import Sequence
from typing import Any

from actors.recipe import Capture, Recipe
from tests.support.synthetic import Row, SyntheticGenerator, SyntheticWorker


class PoisonedGenerator(SyntheticGenerator):
    """Generates as any, until it comes to a prompt with one of the words."""

    def _row(self, prompt: str, seed: int, capture: Capture) -> Row:
        if "SEGFAULT" in prompt:
            ctypes.string_at(0)
        if "SIGKILL" in prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        if "HANG" in prompt:
            time.sleep(10_000)
        return super()._row(prompt, seed, capture)


class PoisonedWorker(SyntheticWorker):
    """Its process dies of some prompts, and hangs with others."""

    def load(self, recipe: Recipe, captures: Sequence[Capture], threads: int | None) -> Any:
        return PoisonedGenerator(recipe, captures)


class DyingLoader(SyntheticWorker):
    """Dies while it loads, as a process does that the kernel ends for its memory."""

    def load(self, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)
