"""A VAE that replaces a model's own, as its config describes it: whether it fits the model, and its default dtype.
Knows folders and the hub; imports neither torch nor diffusers."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors import hub, weights
from actors.errors import ModelError
from actors.families import Family
from ray_app import model_folders
from ray_app.errors import ModelRefused
from ray_app.generation.model_card import ModelCard
from ray_app.messages import LOG
from ray_app.model_folders import read_json, vae_factor

LATENTS: Mapping[str, Any] = {
    "_class_name": None,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
}
"""Keys of a VAE's config that say which latents it decodes, with diffusers' defaults."""


@dataclasses.dataclass(frozen=True)
class VaeCard:
    """A VAE's folder, config, and the files that are read; `commit` is the hub's, None for a local folder."""

    path: str
    commit: str | None
    folder: Path
    files: tuple[str, ...]
    config: dict[str, Any]

    def revision(self) -> str:
        """A hub commit, or for a local folder "sha256:…", for which its weights are read once.

        Raises:
            Refused: a file can't be read.
        """
        return self.commit or model_folders.revision(self.path, self.folder, self.files)

    def check_fits(self, model: ModelCard) -> None:
        """Raise Refused for a VAE that decodes other latents than the model's own."""
        for key, default in LATENTS.items():
            own, other = model.vae_config.get(key, default), self.config.get(key, default)
            if own != other:
                raise self._refusal(f"its {key.removeprefix('_')} is {str(other)[:80]}, that of {model.path} is {own}")
        factor = vae_factor(self.path, weights.VAE_CONFIG, self.config)
        if factor != model.vae_factor:
            raise self._refusal(f"it decodes {factor} pixels per latent, that of {model.path} {model.vae_factor}")

    def _refusal(self, why: str) -> ModelRefused:
        return ModelRefused(
            f"--vae_path {self.path}: a VAE of other latents: {why}; take one that was made for this model",
            flag="vae_path",
        )


def read_vae(path: str, revision: str | None) -> VaeCard:
    """Read a VAE's card.

    Args:
        path: a local folder, or a hub id (its config is downloaded to the hub's cache).
        revision: a branch, tag or commit of the hub; None is its default branch.

    Raises:
        Refused: no such VAE, or weights that are not safetensors.
    """
    folder = Path(os.path.expanduser(path))
    if path and folder.is_dir():
        if revision is not None:
            raise ModelRefused(f"--vae_revision {revision}: {path} is not a hub id; leave it out", flag="vae_revision")
        if (folder / weights.INDEX).is_file():
            raise ModelRefused(f"--vae_path {path}: holds a pipeline; take its folder vae", flag="vae_path")
        path, names, commit = str(folder.resolve()), weights.names_in(folder), None
    elif model_folders.is_hub_id(path):
        try:
            snapshot = hub.look_up(path, revision, LOG.warning, index=weights.VAE_CONFIG)
        except ModelError as error:
            raise ModelRefused(str(error)) from None
        folder, names, commit = snapshot.folder, list(snapshot.sizes), snapshot.commit
    else:
        raise ModelRefused(
            f"--vae_path {path or repr(path)}: not a folder, and not a hub id (owner/name)", flag="vae_path"
        )
    config = read_json(path, folder, weights.VAE_CONFIG, "a folder of a diffusers VAE")
    try:
        files = weights.read_of_vae(names)
    except ModelError as error:
        raise ModelRefused(f"{path}: {error}", path=path) from None
    return VaeCard(path, commit, folder, tuple(files), config)


def default_dtype(family: Family, model_dtype: str, vae_config: Mapping[str, Any]) -> str:
    """The dtype that a VAE runs in by default: the model's, unless the family's VAEs overflow in it and this one too.

    Args:
        vae_config: that of the VAE that decodes; empty where it is not known.
    """
    if family.vae_dtype and vae_config.get("force_upcast", True):
        return family.vae_dtype
    return model_dtype
