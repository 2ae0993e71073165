"""What a model's config files say, read before anything is loaded: family, scheduler, default size.
Knows folders and the hub; imports neither torch nor diffusers."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from actors import hub, random_weights, tiny, weights
from actors.errors import ModelError
from actors.families import FAMILIES, Family
from actors.recipe import fingerprint
from ray_app import model_folders
from ray_app.errors import ModelRefused
from ray_app.messages import LOG
from ray_app.model_folders import positive_int, read_json, vae_factor

SCHEDULER = "scheduler/scheduler_config.json"
VAE = "vae/config.json"
VAE_FACTOR = 8
"""Pixels per latent, in both directions, of the published models' VAE; a model's own follows from its blocks."""


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """A model as its files describe it.

    `commit` is the hub's or "builtin:…", None for a local folder; `folder` and `files` are what a pipeline reads;
    `prompt_tokens` is the most that the last tokenizer takes, None if its config does not say.
    """

    model_type: str
    path: str
    commit: str | None
    variant: str | None
    scheduler: str
    scheduler_config: dict[str, Any]
    default_size: int
    prompt_tokens: int | None
    vae_factor: int = VAE_FACTOR
    vae_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    folder: Path = Path()
    files: tuple[str, ...] = ()

    def revision(self) -> str:
        """A hub commit, "builtin:…", or for a local folder "sha256:…", for which its weights are read once.

        Raises:
            Refused: a file can't be read.
        """
        return self.commit or model_folders.revision(self.path, self.folder, self.files)

    def scheduler_fingerprint(self) -> str:
        """A hash of what decides the scheduler's steps."""
        settings = {name: value for name, value in self.scheduler_config.items() if not name.startswith("_")}
        return fingerprint(settings)

    def check_steps(self, num_inference_steps: int) -> None:
        """Raise Refused if the scheduler would run another number of steps than the requested one."""
        trained = int(self.scheduler_config.get("num_train_timesteps", 1000))
        if num_inference_steps > trained:
            raise ModelRefused(
                f"--max_inference_steps {num_inference_steps}: {self.path} supports at most {trained} steps"
            )
        if self.scheduler_config.get("timestep_spacing") == "trailing":
            # as diffusers spaces them: floating point gives one step more for some numbers, such as 61
            actual_steps = _arange_length(trained, trained / num_inference_steps)
            if actual_steps != num_inference_steps:
                raise ModelRefused(
                    f"--max_inference_steps {num_inference_steps}: {self.scheduler} would run {actual_steps} steps;"
                    " take another number"
                )

    def check_size(self, height: int, width: int) -> None:
        """Raise Refused for a size in pixels that the model can't generate."""
        multiple = FAMILIES[self.model_type].size_multiple(self.vae_factor)
        for name, value in (("height", height), ("width", width)):
            if value <= 0 or value % multiple:
                raise ModelRefused(f"--{name} {value}: must be a multiple of {multiple} for {self.model_type}")


def read_card(model_type: str, path: str, revision: str | None, half: bool, variant: str | None = None) -> ModelCard:
    """Read a model's card.

    Args:
        path: "tiny", a local folder, or a hub id (its config files are downloaded to the hub's cache).
        revision: a branch, tag or commit of the hub; None is its default branch.
        half: whether the weights run in float16, so that fp16 files are preferred where they exist.
        variant: the requested variant of the weights.

    Raises:
        Refused: no such model, another family, weights that are not safetensors.
    """
    family = FAMILIES[model_type]
    if path == tiny.NAME:
        _check_built_in(path, revision, variant, model_type in tiny.model_types(), family)
        built_in = read_card(model_type, str(tiny.folder(model_type)), None, half)
        return dataclasses.replace(built_in, path=path, commit=tiny.revision(model_type), default_size=tiny.SIZE)
    if path in random_weights.NAMES:
        _check_built_in(path, revision, variant, path in family.random_configs, family)
        scheduler = random_weights.scheduler(model_type)
        return ModelCard(
            model_type=model_type,
            path=path,
            commit=random_weights.REVISION,
            variant=None,
            scheduler=scheduler.pop("_class_name"),
            scheduler_config=scheduler,
            default_size=random_weights.default_size(path, model_type),
            prompt_tokens=None,
            vae_config=dict(family.random_configs[path]["vae"]),
        )
    folder, commit = Path(os.path.expanduser(path)), None
    if path and folder.is_dir():
        _no_revision(path, revision)
        names = weights.names_in(folder)
        path = str(folder.resolve())
    elif path and folder.is_file():
        raise ModelRefused(
            f"{path}: is a file, and --model_path takes the folder of a diffusers pipeline; make one with"
            f" {family.pipeline}.from_single_file({path!r}).save_pretrained(FOLDER)"
        )
    elif model_folders.is_hub_id(path):
        snapshot = _of_hub(path, revision)
        folder, names, commit = snapshot.folder, list(snapshot.sizes), snapshot.commit
    else:
        raise ModelRefused(f"{path or repr(path)}: not a folder, and not a hub id (owner/name); set --model_path")
    index = read_json(path, folder, "model_index.json")
    _check_family(path, model_type, index.get("_class_name"))
    scheduler = read_json(path, folder, SCHEDULER)
    vae_config = read_json(path, folder, VAE)
    factor = vae_factor(path, VAE, vae_config)
    try:
        variant = weights.choose(names, model_type, variant, half)
    except ModelError as error:
        raise ModelRefused(f"{path}: {error}", path=path) from None
    positive_int(path, SCHEDULER, scheduler, "num_train_timesteps", 1000)  # `check_steps` relies on this
    return ModelCard(
        model_type=model_type,
        path=path,
        commit=commit,
        variant=variant,
        scheduler=_scheduler(path, index),
        scheduler_config=scheduler,
        default_size=_default_latents(family, path, folder) * factor,
        prompt_tokens=_prompt_tokens(family, folder),
        vae_factor=factor,
        vae_config=vae_config,
        folder=folder,
        files=tuple(weights.read_by(names, model_type, variant)),
    )


def _check_family(path: str, model_type: str, class_name: Any) -> None:
    """Raise Refused if a pipeline's class is not the family's, naming the family that it belongs to."""
    needed_class = FAMILIES[model_type].pipeline
    if class_name == needed_class:
        return
    other_type = next((name for name, family in FAMILIES.items() if family.pipeline == class_name), None)
    advice = f"; use --model_type {other_type}" if other_type else ""
    raise ModelRefused(f"{path}: holds a {class_name}, but --model_type {model_type} needs a {needed_class}{advice}")


def _check_built_in(path: str, revision: str | None, variant: str | None, exists: bool, family: Family) -> None:
    """Raise Refused for a built-in model that the family does not have, or with what only other models have."""
    if not exists:
        raise ModelRefused(
            f"--model_path {path}: {family.title} has no such model; take a local folder or a hub id", flag="model_path"
        )
    _no_revision(path, revision)
    if variant is not None:
        raise ModelRefused(f"--variant {variant}: {path} has none; leave it out", flag="variant")


def _no_revision(path: str, revision: str | None) -> None:
    if revision is not None:
        raise ModelRefused(f"--revision {revision}: {path} is not a hub id; leave it out", flag="revision")


def _scheduler(path: str, index: dict[str, Any]) -> str:
    """The class that diffusers loads, from the pipeline's index: the scheduler's own config may name another."""
    named = index.get("scheduler")
    if not isinstance(named, list) or len(named) != 2 or not all(isinstance(word, str) for word in named):
        raise ModelRefused(
            f"{path}: model_index.json: 'scheduler' is {str(named)[:80]!r}, not a library and a class", path=path
        )
    if named[0] != "diffusers":
        raise ModelRefused(
            f"{path}: model_index.json: a scheduler of {named[0]}; only those of diffusers are loaded", path=path
        )
    return named[1]


def _default_latents(family: Family, path: str, folder: Path) -> int:
    """The default size of an image in latents; the pipeline's own if the denoiser's config gives none."""
    if not family.config_has_size:
        return family.default_latents
    name = f"{family.denoiser}/config.json"
    config = read_json(path, folder, name)
    given = {key: value for key, value in config.items() if value is not None}
    return positive_int(path, name, given, "sample_size", family.default_latents)


def _prompt_tokens(family: Family, folder: Path) -> int | None:
    """The last tokenizer's limit; None without a limit, which is a missing file or one that says 1e30."""
    tokenizer = list(family.encoders.values())[-1]
    try:
        longest = json.loads((folder / tokenizer / "tokenizer_config.json").read_text()).get("model_max_length")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return longest if isinstance(longest, int) and 0 < longest < 2**31 else None


def _of_hub(path: str, revision: str | None) -> hub.Snapshot:
    try:
        return hub.look_up(path, revision, LOG.warning)
    except ModelError as error:
        raise ModelRefused(str(error)) from None


def _arange_length(start: float, step: float) -> int:
    import numpy

    return len(numpy.arange(start, 0, -step))
