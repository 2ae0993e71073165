"""Other ways to generate a prompt's steps, for comparison: separate runs, the callback script, the bare model.
Knows pipelines and images in a folder; nothing of Ray, of an index, or of what is faster."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from actors import memory, pipelines

LIMIT_DECODES = 2**21
"""Pixels that the bare model decodes at a time on a GPU: what 6.5 GB of activations hold."""

Slot = tuple[int, str, int]
"""A slot's number, prompt and seed."""
Optimization = Callable[[Any], contextlib.AbstractContextManager[Any]]
"""Changes one thing of a loaded model inside a `with`, and restores it."""


class Variant:
    """One way to generate. Made of a loaded model, which variants share: only one of them generates at a time.

    Args:
        steps: the steps requested of each slot.
        folder: images go to `folder/step{N}/{slot}.{format}`.
    """

    def __init__(self, model: Any, steps: Sequence[int], folder: Path):
        self.model, self.pipe, self.recipe = model, model.pipe, model.recipe
        self.steps, self.folder = sorted(steps), folder
        for step in self.steps:
            (folder / f"step{step}").mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def ready(self, slots: Sequence[Slot]) -> Iterator[None]:
        """Around `generate`: what is not part of it, before and after.

        Scripts load the whole pipeline in one dtype; it casts the VAE for a decode itself where it must.
        """
        with vae_in(self.pipe, self.recipe.dtype):
            yield

    def generate(self, slots: Sequence[Slot]) -> None:
        """Generate these slots' images; returns when they are done, also on a GPU."""
        raise NotImplementedError

    def warm_up(self, slots: Sequence[Slot]) -> None:
        """Generate something short with the shapes of these slots, so that nothing is loaded or tuned while timed."""
        raise NotImplementedError

    def show(self) -> None:
        """Save images that `generate` left unsaved, for comparison; not part of it."""

    def _run(self, prompt: str, seed: int, num_inference_steps: int, **more: Any) -> Any:
        """The pipeline as a script calls it: one prompt, its image at the end."""
        return self.pipe(
            prompt=prompt,
            generator=torch.Generator("cpu").manual_seed(seed),
            num_inference_steps=num_inference_steps,
            guidance_scale=self.recipe.guidance_scale,
            height=self.recipe.height,
            width=self.recipe.width,
            output_type="pil",
            **self.model.call_arguments(),
            **({"negative_prompt": self.recipe.negative_prompt} if self.recipe.negative_prompt else {}),
            **more,
        ).images[0]

    def _save(self, image: Any, step: int, slot: int) -> None:
        options = {} if self.recipe.image_quality is None else {"quality": self.recipe.image_quality}
        image.save(self.folder / f"step{step}" / f"{slot}.{self.recipe.image_format}", **options)


class Separate(Variant):
    """One run per number of steps, prompt by prompt; the finished images of N-step runs."""

    def generate(self, slots: Sequence[Slot]) -> None:
        for number, prompt, seed in slots:
            for step in self.steps:
                self._save(self._run(prompt, seed, step), step, number)

    def warm_up(self, slots: Sequence[Slot]) -> None:
        for _, prompt, seed in slots[:1]:
            self._run(prompt, seed, 1)


class CallbackScript(Variant):
    """One run per prompt; at a requested step the callback casts the VAE up, decodes, casts it down and saves."""

    def generate(self, slots: Sequence[Slot]) -> None:
        for number, prompt, seed in slots:
            self._generate(number, prompt, seed)

    def warm_up(self, slots: Sequence[Slot]) -> None:
        def decode(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            self._decoded(tensors["latents"])
            return tensors

        for _, prompt, seed in slots[:1]:
            self._run(prompt, seed, 1, callback_on_step_end=decode)

    def _generate(self, number: int, prompt: str, seed: int) -> None:
        def save(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if index + 1 in self.steps:
                self._save(self._decoded(tensors["latents"]), index + 1, number)
            return tensors

        self._run(prompt, seed, self.recipe.num_inference_steps, callback_on_step_end=save)  # decodes the last again

    @torch.no_grad()
    def _decoded(self, latents: torch.Tensor) -> Any:
        vae = self.pipe.vae
        before = vae.dtype
        if vae.config.force_upcast:
            vae.to(torch.float32)
        pixels = self.model.decode(latents)
        vae.to(before)
        return self.pipe.image_processor.postprocess(pixels.detach(), output_type="pil")[0]


class Limit(Variant):
    """The lower bound of any variant's time: the pipeline's loop over full batches, and the decodes. Saves no images.

    Prompts are encoded before, latents are copied at the requested steps, decoded after it, and stay on the device.

    Args:
        optimization: the optimization that is applied while it is measured.
        batch_size: another one than the recipe's.
    """

    def __init__(
        self,
        model: Any,
        steps: Sequence[int],
        folder: Path,
        optimization: Optimization = contextlib.nullcontext,
        batch_size: int | None = None,
    ):
        super().__init__(model, steps, folder)
        self.recipe = dataclasses.replace(self.recipe, batch_size=batch_size or self.recipe.batch_size)
        self._optimization = optimization
        self.latents: dict[int, torch.Tensor] = {}
        """Of the last batch, by step."""
        self._pixels: dict[int, torch.Tensor] = {}
        self._numbers: list[int] = []
        self._embeddings: dict[str, Any] = {}

    @contextlib.contextmanager
    def ready(self, slots: Sequence[Slot]) -> Iterator[None]:
        with vae_in(self.pipe, self.recipe.vae_dtype):
            self._embeddings = {prompt: self.model.encode(prompt) for _, prompt, _ in slots}
            with self._optimization(self.model):
                yield
            self._embeddings = {}

    def generate(self, slots: Sequence[Slot]) -> None:
        size = self.recipe.batch_size
        for start in range(0, len(slots), size):
            self._generate(slots[start : start + size], self.steps)
        if self.recipe.device == "cuda":
            torch.cuda.synchronize()

    def warm_up(self, slots: Sequence[Slot]) -> None:
        if slots:
            self._generate(slots[: self.recipe.batch_size], [1])

    def show(self) -> None:
        """The last batch's images, as PNG."""
        for step, pixels in self._pixels.items():
            images = self.pipe.image_processor.postprocess(pixels, output_type="pil")
            for number, image in zip(self._numbers, images, strict=False):  # the rest fills the batch
                image.save(self.folder / f"step{step}" / f"{number}.png")

    def _generate(self, slots: Sequence[Slot], steps: Sequence[int]) -> None:
        self.latents, self._pixels, self._numbers = {}, {}, [number for number, _, _ in slots]
        slots = [*slots, *[slots[-1]] * (self.recipe.batch_size - len(slots))]

        def keep(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if index + 1 in steps:
                self.latents[index + 1] = tensors["latents"].clone()
                pipe._interrupt = index + 1 == max(steps)
            return tensors

        embeddings = [self._embeddings[prompt] for _, prompt, _ in slots]
        seeds = [seed for _, _, seed in slots]
        pipelines.denoise(self.model, embeddings, seeds, self.recipe.num_inference_steps, keep)
        pixels = self.recipe.height * self.recipe.width
        chunk = max(1, LIMIT_DECODES // pixels) if self.recipe.device == "cuda" else len(slots)
        for step, latents in self.latents.items():
            self._pixels[step] = torch.cat([self.model.decode(part) for part in latents.split(chunk)])


@contextlib.contextmanager
def vae_in(pipe: Any, dtype: str) -> Iterator[None]:
    """The VAE in another dtype, and back with the weights it had: casting back would leave them rounded."""
    before = pipe.vae.dtype
    if before == getattr(torch, dtype):
        yield
        return
    exact = {name: weight.clone() for name, weight in pipe.vae.state_dict().items()}
    pipe.vae.to(getattr(torch, dtype))
    yield
    pipe.vae.to(before)
    pipe.vae.load_state_dict(exact)


@contextlib.contextmanager
def usual_malloc(model: Any) -> Iterator[None]:
    """Memory of large tensors is returned to the system, which is the C library's default."""
    memory.set_mallopt(memory.GLIBC_DEFAULTS)
    yield
    memory.keep_freed()


@contextlib.contextmanager
def vae_bfloat16(model: Any) -> Iterator[None]:
    """A VAE in a dtype of half the size."""
    with vae_in(model.pipe, "bfloat16"):
        yield


@contextlib.contextmanager
def vae_float16(model: Any) -> Iterator[None]:
    """Likewise, in the dtype that a VAE must be made for: others overflow in it."""
    with vae_in(model.pipe, "float16"):
        yield


@contextlib.contextmanager
def channels_last(model: Any) -> Iterator[None]:
    """The weights of convolutions, and so their inputs, in the order for which some kernels are faster."""
    parts = (model.denoiser, model.pipe.vae)
    for part in parts:
        part.to(memory_format=torch.channels_last)
    yield
    for part in parts:
        part.to(memory_format=torch.contiguous_format)


@contextlib.contextmanager
def fused_qkv(model: Any) -> Iterator[None]:
    """One matrix for queries, keys and values instead of three."""
    model.denoiser.fuse_qkv_projections()
    yield
    model.denoiser.unfuse_qkv_projections()


@contextlib.contextmanager
def compiled(model: Any) -> Iterator[None]:
    """Compiled as with `--compile`, in the warm-up, so the time that compiling takes is not counted."""
    model.compile()
    yield
    for module in (*model.denoiser.modules(), *model.pipe.vae.decoder.modules()):
        module._compiled_call_impl = None  # set by compiling in place


VARIANTS: dict[str, Callable[[Any, Sequence[int], Path], Variant]] = {
    "separate": Separate,
    "callback": CallbackScript,
    "limit": Limit,
    "batch_of_one": functools.partial(Limit, batch_size=1),
    "usual_malloc": functools.partial(Limit, optimization=usual_malloc),
    "vae_bfloat16": functools.partial(Limit, optimization=vae_bfloat16),
    "vae_float16": functools.partial(Limit, optimization=vae_float16),
    "channels_last": functools.partial(Limit, optimization=channels_last),
    "fused_qkv": functools.partial(Limit, optimization=fused_qkv),
    "compiled": functools.partial(Limit, optimization=compiled),
}
