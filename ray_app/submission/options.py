"""The flags of the commands that reach a cluster from outside or check it before a run: submit, doctor.
Knows names and defaults; nothing of clusters."""

import dataclasses

import tyro

from ray_app.arguments import Options
from ray_app.errors import InputRefused
from ray_app.flags import (
    DEFAULT_MODEL_TYPE,
    ClusterFlags,
    FamilyFlags,
    ModelFlags,
    ModelType,
    OutputFlags,
    PoolFlags,
    ReportFlags,
)


@dataclasses.dataclass(frozen=True)
class Submit(Options):
    """Run generate as a job of a Ray cluster, from any machine that reaches the cluster's dashboard.

    Ships the project's sources and the annotations, follows the job's log, and ends as the job does. Ctrl-C leaves the
    job running. HF_TOKEN, AWS_* and AZURE_* of this shell are passed to the job, except names of local files.

    Example: proxyqueue submit --address http://HEAD:8265 -- generate --json_file test.json --output_base_path s3://b/out

    Exit codes: the job's own, 0, 2 or 3; 1 the job was lost, 2 refused here, 130 detached, or the job was stopped.
    """

    address: str | None = None
    """Dashboard of the cluster, http://HEAD:8265; default RAY_API_SERVER_ADDRESS, else port 8265 of this machine."""
    working_dir: str = "."
    """Base of the job's relative paths; its sources are shipped, or the installed ones if it has none."""
    detach: bool = False
    """Don't follow the job: print its id and exit."""
    attach: str | None = None
    """Follow a job that was submitted earlier, from its first line."""
    stop: str | None = None
    """Stop a job; it gets a minute to save its images. Rerun the same command to resume."""
    list: bool = False
    """Show the cluster's jobs."""
    command: tyro.conf.Suppress[tuple[str, ...]] = ()
    """What follows `--`."""

    def check_flags(self) -> None:
        """Raise Refused unless exactly one thing is requested."""
        super().check_flags()
        actions = {"attach": self.attach, "stop": self.stop, "list": self.list, "detach": self.detach}
        named = [f"--{name}" for name, value in actions.items() if value]
        if len(named) > 1 or (self.command and named not in ([], ["--detach"])):
            named += ["-- …"] if self.command else []
            raise InputRefused(f"{' '.join(named)}: give one of them")
        if not self.command and named in ([], ["--detach"]):
            raise InputRefused("no job is named; write it after --: proxyqueue submit -- generate …flags")


@dataclasses.dataclass(frozen=True)
class Doctor(ReportFlags, ClusterFlags, PoolFlags, ModelFlags, OutputFlags, FamilyFlags):
    """Show what a cluster offers, and what would prevent a run from starting, finishing or using all of it.

    Takes the flags of the planned run. It generates nothing and loads no model.

    Example: proxyqueue doctor --address auto --model_type flux --output_base_path /mnt/shared/out --shared_filesystem

    Exit codes: 0 nothing found, 1 problems found, 2 refused, 130 interrupted.
    """

    model_type: ModelType = DEFAULT_MODEL_TYPE
    """Family of the model."""
