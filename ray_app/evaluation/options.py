"""The flags of `convergence` and `evaluate`.
Knows names, defaults and bounds; nothing of files."""

import dataclasses
from typing import Annotated, Literal

from ray_app.arguments import AtLeast, Within
from ray_app.errors import InputRefused
from ray_app.flags import (
    INT16,
    ClusterFlags,
    FamilyFlags,
    OutputFlags,
    SnapshotFlags,
    StepFlags,
)

MethodName = Literal["text", "proxy", "text+proxy", "ipcir"]
MOST_WEIGHTS = 101


@dataclasses.dataclass(frozen=True)
class Convergence(ClusterFlags, SnapshotFlags, StepFlags, FamilyFlags, OutputFlags):
    """Measure how similar each step's image is to the last step's: PSNR and SSIM (scikit-image), per slot and step.

    Writes OUTPUT/convergence/convergence.parquet and a plot in the same folder, and prints the medians. Images of the
    same slot and denoising pass are compared, in Ray Data tasks; slots whose last step failed or is missing are
    skipped. The last of --steps is the reference.

    Example: proxyqueue convergence --output_base_path out --model_type sdxl

    Exit codes: 0 measured, 1 some images could not be compared (they are named), 2 refused, 130 interrupted.
    """

    def check_flags(self) -> None:
        """Raise Refused for steps that can't be compared."""
        super().check_flags()
        if len(set(self.steps)) == 1:
            raise InputRefused(
                f"--steps {self.steps[0]}: name at least two; the others are compared with the last one", flag="steps"
            )


@dataclasses.dataclass(frozen=True)
class Evaluate(SnapshotFlags, StepFlags, FamilyFlags, OutputFlags):
    """Score retrieval with each step's proxies: mAP and recall with intervals, beside controls that cannot help.

    Reads the vectors of OUTPUT/features and writes OUTPUT/evaluation: evaluation.parquet, plots, index.html. Without
    ground truth it measures the overlap with the last step's top 50, and writes submission files for the server.
    Text alone is always scored. A slot counts if every step has its vector; other queries are named and left out.

    Example: proxyqueue evaluate --output_base_path out --json_file val.json --encoder clip-vit-large-patch14

    Exit codes: 0 scored, 2 refused, 130 interrupted.
    """

    _: dataclasses.KW_ONLY
    json_file: str
    """Annotations: a JSON list of queries, with gt_img_ids, target_img_id and semantic_aspects where known."""
    encoder: str | None = None
    """Whose vectors; default the only one of OUTPUT/features."""
    methods: tuple[MethodName, ...] = ()
    """Default all for which there are vectors: ipcir needs those of reference photos and of their captions."""
    weights: tuple[str, ...] = ("0:1:0.1",)
    """Weights to sweep, numbers from 0 to 1 or FIRST:LAST:STEP. text+proxy: share of the proxy; ipcir: its lambda."""
    prompt_field: str = "multi_gpt-3.5_opt"
    """Field of the annotations with a query's prompts. Their vectors' mean, of those that have one, is its text."""
    caption_field: str = "multi_caption_opt"
    """Field with captions of the reference photo, one per prompt; for ipcir."""
    num_prompts: Annotated[int, AtLeast(1), Within(1, INT16 + 1)] = INT16 + 1
    """Prompts whose images make a query's proxy, the first N; default all that the index has."""
    image_index: Annotated[int, Within(0, INT16)] = 0
    """Which image of each prompt makes the proxy; the next one, where there is one, is the control of another seed."""
    gallery: str | None = None
    """File with the gallery's image ids, one per line; default every named image that the output did not generate."""
    images: str | None = None
    """Photos of the gallery, for the page: a folder, or a Parquet file as features takes it."""
    show_queries: tuple[int, ...] = ()
    """Queries that the page shows with their images; default the first three."""
    results: str | None = None
    """CSV with the server's scores, for the table: columns file (a name in evaluation/submissions), metric, value."""
    bootstrap: Annotated[int, Within(100, 1_000_000)] = 10_000
    """Draws of queries for each interval."""
    seed: Annotated[int, AtLeast(0)] = 0
    """Of the draws, the shuffle and the noise."""

    def check_flags(self) -> None:
        """Raise Refused for the first flag whose value is invalid."""
        super().check_flags()
        self.swept_weights()

    def swept_weights(self) -> list[float]:
        """The weights, ascending, each once."""
        weights: set[float] = set()
        for text in self.weights:
            weights.update(_weights(text))
        if not weights or len(weights) > MOST_WEIGHTS:
            raise InputRefused(f"--weights: {len(weights)} of them; name 1 to {MOST_WEIGHTS}", flag="weights")
        return sorted(weights)


def _weights(text: str) -> list[float]:
    """The numbers of "0.5" or of "0:1:0.1", both ends included."""
    fault = InputRefused(f"--weights {text}: a number from 0 to 1, or FIRST:LAST:STEP such as 0:1:0.1", flag="weights")
    try:
        numbers = [float(part) for part in text.split(":")]
    except ValueError:
        raise fault from None
    if len(numbers) == 1:
        numbers = [numbers[0], numbers[0], 1.0]
    if len(numbers) != 3:
        raise fault
    first, last, step = numbers
    if not (0 <= first <= last <= 1 and step >= 1 / (MOST_WEIGHTS - 1) - 1e-9):
        raise fault
    count = int((last - first) / step + 1e-6) + 1
    return [round(first + step * number, 6) for number in range(count)]
