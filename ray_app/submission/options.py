"""The flags of the verbs that look at a cluster from outside or before a run: submit, doctor.
Knows names and defaults; nothing of clusters."""

import dataclasses

import tyro

from ray_app.arguments import Options
from ray_app.errors import InputRefused
from ray_app.flags import DEFAULT_MODEL_TYPE, ClusterFlags, FamilyFlags, ModelFlags, ModelType, OutputFlags, PoolFlags


@dataclasses.dataclass(frozen=True)
class Submit(Options):
    """Run generate as a job of a Ray cluster, from any machine that reaches the cluster's dashboard.

    Ships the project's sources and the annotations, follows the job's log, and ends as the job does. Ctrl-C leaves the
    job running. HF_TOKEN, AWS_* and AZURE_* of this shell reach the job, but for names of this machine's files.

    Example: proxyqueue submit --address http://HEAD:8265 -- generate --json_file test.json --output_base_path s3://b/out

    Exit codes: the job's own, 0, 2 or 3; 1 the job was lost, 2 refused here, 130 detached, or the job was stopped.
    """

    address: str | None = None
    """Dashboard of the cluster, http://HEAD:8265; default RAY_API_SERVER_ADDRESS, else port 8265 of this machine."""
    working_dir: str = "."
    """Where relative paths of the job begin, and whose sources are shipped; without any there, the installed ones."""
    detach: bool = False
    """Don't follow the job: print its id and leave."""
    attach: str | None = None
    """Follow a job that was submitted before, from its first line."""
    stop: str | None = None
    """Stop a job; it gets a minute to write down what it has. The same command goes on from there later."""
    list: bool = False
    """Show the cluster's jobs."""
    command: tyro.conf.Suppress[tuple[str, ...]] = ()
    """What stands behind `--`."""

    def check_flags(self) -> None:
        """Raise Refused unless exactly one thing is requested."""
        super().check_flags()
        actions = {"attach": self.attach, "stop": self.stop, "list": self.list, "detach": self.detach}
        named = [f"--{name}" for name, value in actions.items() if value]
        if len(named) > 1 or (self.command and named not in ([], ["--detach"])):
            named += ["-- …"] if self.command else []
            raise InputRefused(f"{' '.join(named)}: take one of them")
        if not self.command and named in ([], ["--detach"]):
            raise InputRefused("no job is named; write it behind --: proxyqueue submit -- generate …flags")


@dataclasses.dataclass(frozen=True)
class Doctor(ClusterFlags, PoolFlags, ModelFlags, OutputFlags, FamilyFlags):
    """Say what a cluster offers, and what would keep a run on it from starting, ending or using all of it.

    Give it the flags of the run that you mean to start. It draws nothing and loads no model.

    Example: proxyqueue doctor --address auto --model_type flux --output_base_path /mnt/shared/out --shared_filesystem

    Exit codes: 0 nothing found, 1 problems found, 2 refused, 130 interrupted.
    """

    model_type: ModelType = DEFAULT_MODEL_TYPE
    """Family of the model."""
