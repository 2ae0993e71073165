"""The command `submit`: generate's flags are checked here, then the job is shipped, started and followed.
Knows what a job of this project needs; how it is shipped and run is in `job_package` and `job_server`."""

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from actors import tiny
from ray_app import text_table
from ray_app.annotations import circo
from ray_app.arguments import parse
from ray_app.errors import INTERRUPTED, OK, InputRefused
from ray_app.generation.options import Generate
from ray_app.index import runs
from ray_app.messages import summarize
from ray_app.submission import job_package
from ray_app.submission.job_server import STOP_SECONDS, JobServer
from ray_app.submission.options import Submit

PASSED_ON = ("HF_TOKEN", "HF_ENDPOINT")
PASSED_ON_PREFIXES = ("AWS_", "AZURE_")
NAMES_FILES = ("_PROFILE", "_FILE", "_DIR", "_PATH", "_CA_BUNDLE")
"""Endings of variables that name this machine's files: passed on, they would hide the cluster's own credentials."""
SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CONNECTION")


def submit(options: Submit) -> int:
    """Submit, attach, stop or list; the exit code.

    Raises:
        Refused: flags of the job that generate would refuse, files that can't be shipped, no cluster there.
    """
    environment = passed_on(os.environ)
    secrets = frozenset(value for name, value in environment.items() if _is_secret(name, value))
    if options.command:
        return _submit(options, environment, secrets)
    server = JobServer(options.address, secrets)
    if options.list:
        print("\n".join(_table(server.list())))
        return OK
    if options.stop:
        print(f"{options.stop}: {server.stop(options.stop).lower()}")
        return OK
    return _follow(server, options.attach or "")


def passed_on(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables of this shell that are passed to the job."""
    return {
        name: value
        for name, value in sorted(variables.items())
        if name in PASSED_ON or (name.startswith(PASSED_ON_PREFIXES) and not name.endswith(NAMES_FILES))
    }


def _is_secret(name: str, value: str) -> bool:
    return len(value) >= 4 and any(word in name for word in SECRET)


def _submit(options: Submit, environment: dict[str, str], secrets: frozenset[str]) -> int:
    working_dir = Path(os.path.abspath(os.path.expanduser(options.working_dir)))
    if not working_dir.is_dir():
        raise InputRefused(f"--working_dir {options.working_dir}: no such folder")
    arguments, annotations = check_job(options.command, working_dir)
    packages = job_package.find_packages(working_dir)
    job = f"proxyqueue-{runs.new_id()}"
    with tempfile.TemporaryDirectory() as folder:
        shipped = f"the sources in {packages[0].parent}"
        if annotations:
            name = job_package.name_in_job(annotations)
            shutil.copyfile(annotations, Path(folder) / name)
            shipped += f", and {name}"
        server = JobServer(options.address, secrets)
        summarize(f"job              {job}")
        summarize(f"ships            {shipped}")
        summarize(f"passes on        {', '.join(environment) or 'no variables'}")
        variables = {**environment, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
        runtime_env = {**job_package.runtime_env(packages, Path(folder)), "env_vars": variables}
        server.submit(job, shlex.join(["python", "-m", "jobs.generate", *arguments]), runtime_env)
    if options.detach:
        print(_next_commands(server, job))
        return OK
    return _follow(server, job)


def check_job(command: tuple[str, ...], working_dir: Path) -> tuple[list[str], Path | None]:
    """The arguments that the job's generate gets, and the annotations to ship, if any.

    Raises:
        Refused: what generate would refuse of the flags and the annotations, and paths that the job would not find.
    """
    name, *arguments = command
    if name != "generate":
        raise InputRefused(f"{name}: can't be submitted; only generate can: proxyqueue submit -- generate …flags")
    requested: Generate = parse("proxyqueue generate", Generate, arguments)
    requested.check_flags()
    if _is_relative(requested.output_base_path):
        raise InputRefused(
            f"--output_base_path {requested.output_base_path}: would be lost with the job's own folder;"
            " name an absolute path on the cluster, or s3://bucket/prefix"
        )
    model = requested.model()
    if model != tiny.NAME and _is_relative(model) and (model.startswith(".") or (working_dir / model).exists()):
        raise InputRefused(f"{model}: models are not shipped; name a hub id, or an absolute path that every node has")
    annotations = job_package.find_annotations(requested.json_file, working_dir)
    if annotations:
        loaded = circo.load(str(annotations), requested.prompt_field, requested.num_prompts, requested.strict)
        loaded.queries(requested.query_ids, requested.limit, requested.idx, requested.gpu_num)
        name = job_package.name_in_job(annotations)
        if Path(name) != Path(requested.json_file):
            arguments += ["--json_file", name]  # the last one counts
    return arguments, annotations


def _is_relative(path: str) -> bool:
    return "://" not in path and not os.path.isabs(path) and not path.startswith("~")


def _follow(server: JobServer, job: str) -> int:
    try:
        return server.follow(job)
    except KeyboardInterrupt:
        print(f"\nproxyqueue: detached; {job} keeps running\n{_next_commands(server, job)}", file=sys.stderr)
        return INTERRUPTED


def _next_commands(server: JobServer, job: str) -> str:
    command = f"proxyqueue submit --address {server.address}"
    commands = (("follow it", f"--attach {job}"), ("stop it", f"--stop {job}"), ("see all", "--list"))
    return "\n".join(f"{purpose:<16} {command} {flags}" for purpose, flags in commands)


def _table(jobs: list[dict[str, str]]) -> list[str]:
    """Jobs in aligned columns, with a header."""
    if not jobs:
        return ["no jobs"]
    return text_table.align([list(jobs[0]), *(list(job.values()) for job in jobs)])
