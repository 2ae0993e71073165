"""ImageEncoder: the persistent actor's work for features; image files and texts in, vectors out.
A plain class that needs no Ray: call it from a test, a benchmark or a notebook."""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from actors import device, encoders, memory, preprocessing
from actors.encoders import Encoded, Encoder
from actors.errors import DeviceLost, DeviceUnfit, ModelError, ModelNeedsMemory, one_line
from actors.preprocessing import BadImage

LOG = logging.getLogger("proxyqueue")

DECODING_THREADS = 16
"""Most threads that decode images beside a GPU."""
Inputs = list[Any]


Prepared = np.ndarray | str | Encoded
"""An image's pixels (3, size, size), a text, or why an image could not be prepared."""


class ImageEncoder:
    """Holds one loaded encoder and encodes batches of images and texts with it.

    `prepare` wants cores, `encode` the device: two threads may overlap them, one batch's with the next one's. `encode`
    itself is for one thread at a time.

    Args:
        encoder: what to load and how to prepare images.
        threads: CPU threads of torch, and of decoding; None leaves torch's and takes up to 16 to decode.

    Raises:
        ModelError: the encoder can't be loaded; a ModelNeedsMemory if memory is what is missing.
        DeviceUnfit: the device can't encode with any model.
    """

    def __init__(self, encoder: Encoder, threads: int | None = None):
        if threads is not None:
            torch.set_num_threads(threads)
        self.encoder = encoder
        self._sizer = memory.BatchSizer(encoder.batch_size, encoder.device)
        self._decoders = ThreadPoolExecutor(threads or min(DECODING_THREADS, os.cpu_count() or 1))
        self.probe = device.make_probe(encoder.device)
        """Raises if the device no longer answers."""
        try:
            self._load()
        except ModelError:
            raise
        except Exception as error:
            if device.is_device_error(error):
                raise DeviceUnfit(device.describe(error)) from error
            kind = ModelNeedsMemory if memory.is_out_of_memory(error) else ModelError
            raise kind(f"{encoder.path}: can't be loaded as an encoder: {one_line(error)[:500]}") from error

    def _load(self) -> None:
        import transformers

        encoder = self.encoder
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        if encoder.device == "cpu":
            memory.keep_freed()
        folder = encoders.folder_of(encoder, LOG.warning)
        self.model, report = getattr(transformers, encoders.KINDS[encoder.kind]).from_pretrained(
            folder, dtype=getattr(torch, encoder.dtype), use_safetensors=True, local_files_only=True,
            output_loading_info=True,
        )  # fmt: skip
        if missing := sorted(report["missing_keys"]):
            raise ModelError(f"{encoder.path}: its weights lack {missing[0]} and {len(missing) - 1} more")
        self.model.eval().to(encoder.device)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._text_length = self.model.config.text_config.max_position_embeddings
        mean, std = preprocessing.CLIP_MEAN, preprocessing.CLIP_STD
        processor: Any = None
        if (folder / encoders.PROCESSOR).is_file():
            processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
            mean, std = processor.image_mean, processor.image_std
        if encoder.preprocessing == "targetpad":
            self._prepare_image = preprocessing.as_scripts(encoder.image_size)
        elif processor is not None:
            self._prepare_image = preprocessing.as_model(processor)
        else:
            raise ModelError(f"{encoder.path}: no {encoders.PROCESSOR}; take --preprocessing targetpad")
        self._mean, self._std = (torch.tensor(value, device=encoder.device).view(3, 1, 1) for value in (mean, std))

    def __call__(self, batch: dict[str, Sequence[Any]]) -> list[Encoded]:
        """Encode a batch.

        Args:
            batch: columns `image` (a file's bytes, or None) and `text` (or None).

        Returns:
            One result per row; what can't be encoded costs no other row.

        Raises:
            DeviceLost: the device no longer answers; nothing of the batch is encoded.
        """
        return self.encode(self.prepare(batch["image"], batch["text"]))

    def prepare(self, images: Sequence[bytes | None], texts: Sequence[str | None]) -> list[Prepared]:
        """The first half of `__call__`: images are decoded, by several threads."""
        return list(self._decoders.map(self._prepare, images, texts))

    def encode(self, prepared: Sequence[Prepared]) -> list[Encoded]:
        """The second half: everything that the model is needed for."""
        results: list[Encoded] = [one if isinstance(one, Encoded) else Encoded(None) for one in prepared]
        for kind, encode in ((np.ndarray, self.encode_images), (str, self.encode_texts)):
            places = [place for place, one in enumerate(prepared) if isinstance(one, kind)]
            encoded = self._encode_all([prepared[place] for place in places], encode)
            for place, result in zip(places, encoded, strict=True):
                results[place] = result
        return results

    @torch.inference_mode()
    def encode_images(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """Vectors, float32 (n, vector_size), of prepared images: uint8 that is not normalised, or float32 that is."""
        values = torch.from_numpy(np.stack(list(pixels))).to(self.encoder.device)
        if values.dtype == torch.uint8:
            values = (values.float() / 255 - self._mean) / self._std
        return _vectors(self.model.get_image_features(pixel_values=values.to(self.model.dtype)))

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors, float32 (n, vector_size); of a text that is too long its beginning is encoded."""
        self._tell_truncated(texts)
        tokens = self.tokenizer(
            list(texts), padding="max_length", max_length=self._text_length, truncation=True, return_tensors="pt"
        )
        return _vectors(self.model.get_text_features(**tokens.to(self.encoder.device)))

    def give_up(self, rows: int, error_type: str, message: str) -> list[Encoded]:
        """What `encode` would return if none of this number of rows could be encoded, without trying."""
        return [Encoded(None, error_type, message)] * rows

    def _prepare(self, image: bytes | None, text: str | None) -> Prepared:
        if text is not None:
            return text
        try:
            if image is None:
                raise BadImage("no bytes")
            return self._prepare_image(preprocessing.decode(image))
        except Exception as error:
            return Encoded(None, type(error).__name__, one_line(error)[:500])

    def _encode_all(self, inputs: Inputs, encode: Callable[[Inputs], np.ndarray]) -> list[Encoded]:
        """Each input's result, in batches that fit; one that fails costs no other."""
        if not inputs:
            return []
        size = self._sizer.size
        if len(inputs) > size:
            return self._encode_all(inputs[:size], encode) + self._encode_all(inputs[size:], encode)
        try:
            return [_checked(vector) for vector in encode(inputs)]
        except Exception as error:
            if loss := device.find_loss(self.probe):
                raise DeviceLost(device.describe(error)) from loss
            failure = Encoded(None, memory.error_type(error), one_line(error)[:500])
            is_smaller = self._sizer.on_error(error, "batch")
        if is_smaller:
            return self._encode_all(inputs, encode)
        if len(inputs) == 1:
            return [failure]
        return [self._encode_all([one], encode)[0] for one in inputs]

    def _tell_truncated(self, texts: Sequence[str]) -> None:
        # a token is a byte at least, and a text has two more, its beginning and its end
        long = [text for text in texts if len(text.encode()) > self._text_length - 2]
        counts = map(len, self.tokenizer(long, truncation=False, verbose=False)["input_ids"]) if long else ()
        if any(count > self._text_length for count in counts):
            LOG.warning(
                f"texts with more than {self._text_length} tokens: the encoder reads their beginnings, as scripts do"
            )


def _vectors(output: Any) -> np.ndarray:
    """The projected features of an output of transformers."""
    return output.pooler_output.float().cpu().numpy()


def _checked(vector: np.ndarray) -> Encoded:
    if np.isfinite(vector).all():
        return Encoded(vector)
    return Encoded(None, "NonFiniteVector", "the vector is not finite")
