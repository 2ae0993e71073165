"""The flags of `convergence`.
Knows names, defaults and bounds; nothing of files."""

import dataclasses

from ray_app.errors import InputRefused
from ray_app.flags import (
    ClusterFlags,
    FamilyFlags,
    OutputFlags,
    SnapshotFlags,
    StepFlags,
)


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
