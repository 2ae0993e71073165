"""Prompts' embeddings: encoded one by one and kept, on a GPU also ahead, on a stream of their own.
Knows threads and streams; how a prompt is encoded is the model's."""

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
    """A prompt's embeddings by the name of the pipeline's argument, each of batch size 1.

    Attributes:
        is_truncated: whether an encoder reads less than the whole prompt.
        is_done: the CUDA event after which they have their values; None: they were made on the stream that reads them.
    """

    embeddings: dict[str, torch.Tensor]
    is_truncated: bool
    is_done: Any = None


class PromptCache:
    """The prompts that were used last. Two threads may call it at a time; one of them encodes.

    Args:
        encode: encodes a prompt on the current stream. A prompt is encoded alone: a batch would change low bits.
        kept: how many prompts are kept.
        device: "cuda" or "cpu".
    """

    def __init__(self, encode: Callable[[str], EncodedPrompt], kept: int, device: str):
        self._encode, self._kept = encode, kept
        self._prompts: OrderedDict[str, EncodedPrompt] = OrderedDict()
        self._access = threading.Lock()
        self._encoding = threading.Lock()
        """Of encoders and tokenizers: the latter raise if two threads use them at a time."""
        self._ahead: Any = None
        if device == "cuda":
            self._ahead = torch.cuda.Stream()
            self._ahead.wait_stream(torch.cuda.current_stream())  # which copies the weights

    def get(self, prompt: str) -> EncodedPrompt:
        """The prompt, for work on the current stream; encoded now if it is not kept."""
        encoded = self._find(prompt)
        if encoded is None:
            with self._encoding:
                encoded = self._find(prompt) or self._keep(prompt, self._encode(prompt))
        if encoded.is_done is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(encoded.is_done)  # the GPU waits, not this thread
            for tensor in encoded.embeddings.values():
                tensor.record_stream(stream)  # its memory is not used again before this stream has read it
        return encoded

    def encode_ahead(self, prompts: Sequence[str]) -> None:
        """Encode the prompts that are not kept, while another stream of the GPU works. Does nothing on CPUs.

        An error ends it silently: `get` raises it again, where the batch can be made smaller or taken apart.
        """
        if self._ahead is None:
            return
        try:
            for prompt in prompts:
                with self._encoding, torch.cuda.stream(self._ahead):
                    if self._find(prompt) is None:
                        encoded = self._encode(prompt)
                        self._keep(prompt, dataclasses.replace(encoded, is_done=self._ahead.record_event()))
        except Exception:
            return

    def _find(self, prompt: str) -> EncodedPrompt | None:
        with self._access:
            if prompt in self._prompts:
                self._prompts.move_to_end(prompt)
            return self._prompts.get(prompt)

    def _keep(self, prompt: str, encoded: EncodedPrompt) -> EncodedPrompt:
        with self._access:
            self._prompts[prompt] = encoded
            if len(self._prompts) > self._kept:
                self._prompts.popitem(last=False)
        return encoded
