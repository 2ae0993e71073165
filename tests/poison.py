"""Workers that really die, hang and run out of memory: by a word in the prompt, in the middle of real work."""

import ctypes
import os
import signal
import time
from typing import Any

from ray_app.worker import Worker

LEGAL = "a dog"


class PoisonedWorker(Worker):
    """Draws as any worker, until it is to encode a prompt with one of the words."""

    def load(self, *arguments: Any) -> Any:
        generator = super().load(*arguments)
        encode = generator.family.encode

        def encode_or_die(prompt: str) -> Any:
            if "SEGFAULT" in prompt:
                ctypes.string_at(0)
            if "SIGKILL" in prompt:
                os.kill(os.getpid(), signal.SIGKILL)
            if "HANG" in prompt:
                time.sleep(10_000)
            return encode(prompt)

        generator.family.encode = encode_or_die
        return generator


class DyingLoader(Worker):
    """Dies while it loads, as a process does that the kernel ends for its memory."""

    def load(self, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)
