"""The flags of `features`.
Knows names, defaults and bounds; nothing of files."""

import dataclasses
from typing import Annotated, Literal

from actors import encoders, tiny
from ray_app.arguments import AtLeast, Seconds
from ray_app.errors import InputRefused
from ray_app.flags import ClusterFlags, FamilyFlags, OutputFlags, PoolFlags, SnapshotFlags, StepFlags

BATCH_SIZES = {"cuda": 256, "cpu": 32}


@dataclasses.dataclass(frozen=True)
class Features(ClusterFlags, PoolFlags, SnapshotFlags, StepFlags, FamilyFlags, OutputFlags):
    """Encode every image with CLIP or SigLIP, each once: OUTPUT/features/encoder=NAME, one vector per image or text.

    Of OUTPUT's own images, of other images (--images) and of the annotations' texts (--texts). Equal bytes are encoded
    once, and images that were generated again with other bytes are encoded again; the same command again encodes
    nothing. Vectors are not normalised.

    Example: proxyqueue features --output_base_path out --encoder L --images coco/unlabeled2017

    Exit codes: 0 all vectors exist, 2 refused (bad input), 3 some failed, 130 interrupted.
    """

    _: dataclasses.KW_ONLY
    encoder: str
    """CLIP or SigLIP of transformers: a hub id, a local folder, or L or G, as retrieval scripts call
    openai/clip-vit-large-patch14 and laion/CLIP-ViT-g-14-laion2B-s12B-b42K; tiny is the built-in CLIP, which knows
    emoji. Safetensors only, never remote code."""
    revision: str | None = None
    """Branch, tag or commit of a hub encoder; what it resolves to is recorded and loaded everywhere."""
    preprocessing: Literal["targetpad", "model"] = "targetpad"
    """targetpad: as retrieval scripts prepare images, padded with black to a ratio of 1.25, resized, centre crop;
    model: as the encoder's own processor does."""
    images: str | None = None
    """Other images to encode, such as a gallery or reference photos: a folder, a Parquet file or a folder of them
    (columns path, or bytes or image with name or id); also in an object store."""
    json_file: str | None = None
    """Annotations whose texts are encoded: a JSON list of queries; a path, or the URL of an object store."""
    texts: tuple[str, ...] = ()
    """Fields of the annotations to encode: strings, or lists of strings."""
    batch_size: Annotated[int | None, AtLeast(1)] = None
    """Images or texts encoded together. Default 256 on GPUs, 32 on CPUs."""
    device: Literal["cuda", "cpu"] | None = None
    """Default cuda, in float16; cpu, and with tiny the default, in float32."""
    batch_timeout: Annotated[float | None, Seconds()] = None
    """Seconds until a batch counts as hung and its actor is replaced. Default: 20 times the median, at least 600."""
    dry_run: bool = False
    """Print the plan and stop."""

    def encoder_path(self) -> str:
        """The hub id or folder of --encoder."""
        return encoders.full_name(self.encoder)

    def target_device(self) -> Literal["cuda", "cpu"]:
        """Where to encode."""
        return self.device or ("cpu" if self.encoder == tiny.NAME else "cuda")

    def gpus(self) -> float:
        """GPUs that each actor reserves; 0 if it takes a CPU instead."""
        if self.gpus_per_actor is not None:
            return self.gpus_per_actor
        return 1.0 if self.target_device() == "cuda" else 0.0

    def check_flags(self) -> None:
        """Raise Refused for flags that don't go together."""
        super().check_flags()
        self.worker_bounds()
        if self.texts and self.json_file is None:
            raise InputRefused(f"--texts {self.texts[0]}: name the annotations with --json_file", flag="texts")
        if self.json_file is not None and not self.texts:
            raise InputRefused("--json_file: name the fields to encode with --texts", flag="texts")
