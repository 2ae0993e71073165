"""The command line: one module per command, errors on one line, exit codes.
Imports a command's module only when it is called: `--help` answers before torch or Ray could be loaded."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from ray_app import machine, streams
from ray_app.arguments import parse
from ray_app.completion import Completion, completion
from ray_app.errors import INTERRUPTED, OK, REFUSED, InputRefused, Refused
from ray_app.evaluation.options import Convergence, Evaluate
from ray_app.export.options import Export
from ray_app.features.options import Features
from ray_app.gallery.options import Gallery
from ray_app.generation.options import Demo, Generate, Preview
from ray_app.interrupts import Interrupts
from ray_app.maintenance.options import Clean, Compact, Verify
from ray_app.messages import LOG, reporting
from ray_app.query.options import Query, Status
from ray_app.submission.options import Doctor, Submit
from ray_app.suggestions import suggest

FIRST_STEPS = """proxyqueue: text-to-image proxies for composed image retrieval, all requested steps in one pass

  proxyqueue demo                                                   all of it on this machine, offline, tiny models
  proxyqueue generate --json_file test.json --output_base_path out  generate and index the images of the annotations
  proxyqueue status --output_base_path out                          images done, failed and missing; time left
  proxyqueue gallery --output_base_path out                         a page that shows the images
  proxyqueue query --preset steps --output_base_path out            query the index with SQL
  proxyqueue verify --output_base_path out                          check that index and files match

proxyqueue --help lists all commands; proxyqueue COMMAND --help lists the flags of one."""

USAGE = """usage: proxyqueue COMMAND [FLAGS]

generate images
  generate     generate and index the images of all annotations
  preview      generate one prompt, its steps as png files
  demo         all of it on this machine, offline, with tiny models

look at an output
  status       images done, failed and missing; the runs; time left
  query        query the index with SQL
  gallery      write a page that shows the images: one row per slot, one column per step
  convergence  measure how close each step is to the last: table and plot
  features     encode images and texts with CLIP or SigLIP, each once
  evaluate     score retrieval with each step's images, with intervals and controls
  export       export images to formats that other tools read

maintain an output
  verify       check that index and files match; --repair fixes what needs no GPU
  clean        remove images with their rows and caches
  compact      merge the index's many small Parquet files into few

clusters
  doctor       check what a cluster offers, and what would keep a run from working there
  submit       run generate as a job of a Ray cluster

this program
  completion   print a script with which a shell completes commands and flags

proxyqueue COMMAND --help lists a command's flags; proxyqueue --version says what is installed."""


def _generate(options: Generate) -> int:
    from ray_app.generation.generate import generate

    return generate(options)


def _preview(options: Preview) -> int:
    from ray_app.generation.preview import preview

    return preview(options)


def _demo(options: Demo) -> int:
    from ray_app.demo import demo

    return demo(options)


def _verify(options: Verify) -> int:
    from ray_app.maintenance.verify import verify

    return verify(options)


def _clean(options: Clean) -> int:
    from ray_app.maintenance.clean import clean

    return clean(options)


def _compact(options: Compact) -> int:
    from ray_app.maintenance.compact import compact

    return compact(options)


def _submit(options: Submit) -> int:
    from ray_app.submission.submit import submit

    return submit(options)


def _doctor(options: Doctor) -> int:
    from ray_app.submission.doctor import doctor

    return doctor(options)


def _query(options: Query) -> int:
    from ray_app.query.query import query

    return query(options)


def _status(options: Status) -> int:
    from ray_app.query.status import status

    return status(options)


def _gallery(options: Gallery) -> int:
    from ray_app.gallery.pages import gallery

    return gallery(options)


def _export(options: Export) -> int:
    from ray_app.export.export import export

    return export(options)


def _features(options: Features) -> int:
    from ray_app.features.features import features

    return features(options)


def _convergence(options: Convergence) -> int:
    from ray_app.evaluation.convergence import convergence

    return convergence(options)


def _evaluate(options: Evaluate) -> int:
    from ray_app.evaluation.evaluate import evaluate

    return evaluate(options)


def _completion(options: Completion) -> int:
    return completion(options, {name: options_class for name, (options_class, _) in COMMANDS.items()})


COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "generate": (Generate, _generate),
    "preview": (Preview, _preview),
    "demo": (Demo, _demo),
    "verify": (Verify, _verify),
    "clean": (Clean, _clean),
    "compact": (Compact, _compact),
    "submit": (Submit, _submit),
    "doctor": (Doctor, _doctor),
    "query": (Query, _query),
    "status": (Status, _status),
    "gallery": (Gallery, _gallery),
    "export": (Export, _export),
    "features": (Features, _features),
    "convergence": (Convergence, _convergence),
    "evaluate": (Evaluate, _evaluate),
    "completion": (Completion, _completion),
}


VERSIONS = ("proxyqueue", "python", "torch", "CUDA", "ray", "diffusers")
"""What --version shows, in its order."""

ONLY_PRINT = ("query", "status", "doctor")
"""Commands that may end when nobody reads what they print; the others have work to do."""

RESUME = ("generate", "demo", "features", "clean")
"""Commands that continue where they were interrupted when they are run again; the others start again."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `proxyqueue COMMAND …`; the exit code: 0, 1 problems found, 2 refused, 3 some failed, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = arguments[0] if arguments else ""
    return _exit_code(
        lambda: _run(command, arguments[1:]), resumes=command in RESUME, only_prints=command in ONLY_PRINT
    )


def run_module(
    module: str,
    options_class: type,
    call: Callable[[Any], int],
    arguments: Sequence[str] | None = None,
    resumes: bool = False,
) -> int:
    """Run `python -m MODULE …`, a command that is not part of `proxyqueue`, as `main` runs a command; the exit code.

    Args:
        options_class: its flags; a dataclass with `check_flags`.
        resumes: after a signal, say that rerunning the same command resumes.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return _exit_code(lambda: _call(f"python -m {module}", options_class, call, arguments), resumes, only_prints=False)


def _exit_code(run: Callable[[], int], resumes: bool, only_prints: bool) -> int:
    """What `run` returns; where it raises, one line on stderr and the code that goes with it."""
    try:
        with streams.lasting(quits=only_prints):
            return _one_line_errors(run, resumes)
    except BrokenPipeError:
        return OK


def _one_line_errors(run: Callable[[], int], resumes: bool) -> int:
    try:
        return run()
    except Refused as refused:
        LOG.error(str(refused))
        return REFUSED
    except KeyboardInterrupt:
        LOG.warning("interrupted; rerun the same command to resume" if resumes else "interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as error:
        LOG.error(f"{error.filename or 'system'}: {error.strerror or error}")
        return REFUSED


def _run(command: str, arguments: list[str]) -> int:
    if not command:
        print(FIRST_STEPS)
        return OK
    if command in ("--help", "-h", "help"):
        print(USAGE)
        return OK
    if command == "--version":
        print(_describe_versions())
        return OK
    if command not in COMMANDS:
        raise InputRefused(f"{command}: no such command{suggest(command, COMMANDS)}")
    options_class, call = COMMANDS[command]
    return _call(f"proxyqueue {command}", options_class, call, arguments)


def _describe_versions() -> str:
    installed = machine.versions() | {"CUDA": machine.cuda_version()}
    return "\n".join(f"{name:<10} {installed[name]}" for name in VERSIONS)


def _call(program: str, options_class: type, call: Callable[[Any], int], arguments: list[str]) -> int:
    options = parse(program, options_class, arguments)
    options.check_flags()
    with reporting(options.quiet, to_stderr=getattr(options, "format", None) == "json"), Interrupts():
        return call(options)
