"""The command line: one verb a module, errors on one line, exit codes.
Imports a verb's module only when it is called: `--help` answers before torch or Ray could be loaded."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from ray_app import __version__, streams
from ray_app.arguments import parse
from ray_app.errors import INTERRUPTED, OK, REFUSED, InputRefused, Refused
from ray_app.evaluation.options import Convergence
from ray_app.export.options import Export
from ray_app.features.options import Features
from ray_app.gallery.options import Gallery
from ray_app.generation.options import Demo, Generate, Preview
from ray_app.interrupts import Interrupts
from ray_app.maintenance.options import Clean, Compact, Verify
from ray_app.messages import LOG
from ray_app.query.options import Query, Status
from ray_app.submission.options import Doctor, Submit

USAGE = """proxyqueue: draw text-to-image proxies for composed image retrieval, every denoising step asked for at once.

  proxyqueue generate --json_file test.json --output_base_path out   draw and index all images of the annotations
  proxyqueue preview --prompt "a dog on a beach"                     one prompt, its steps as png files
  proxyqueue demo                                                    the whole thing here, offline, with tiny models
  proxyqueue verify --output_base_path out                           do index and files say the same? --repair
  proxyqueue clean --output_base_path out --model_type sdxl          remove images with their rows and caches
  proxyqueue compact --output_base_path out                          many small parts of the index into few
  proxyqueue submit --address http://HEAD:8265 -- generate …flags    generate as a job of a Ray cluster
  proxyqueue doctor --address auto                                   what a cluster offers, and what is wrong with it
  proxyqueue query --preset steps --output_base_path out             ask the index with SQL
  proxyqueue status --output_base_path out --watch                   what is there of what was asked, time left
  proxyqueue gallery --output_base_path out                          a page to look at: a row a slot, a column a step
  proxyqueue export --format imagefolder --output_base_path out      for datasets, webdataset, retrieval scripts
  proxyqueue features --encoder L --output_base_path out             each image's CLIP or SigLIP vector, encoded once
  proxyqueue convergence --output_base_path out                      how near is each step to the last: table and plot

Each verb has its own --help."""


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


VERBS: dict[str, tuple[type, Callable[[Any], int]]] = {
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
}


ONLY_PRINT = ("query", "status", "doctor")
"""Verbs that may end when nobody reads what they print; the others have work to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `proxyqueue VERB …`; the exit code: 0, 1 problems found, 2 refused, 3 some failed, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    verb = arguments[0] if arguments else "--help"
    return _exit_code(lambda: _run(verb, arguments[1:]), resumes=True, only_prints=verb in ONLY_PRINT)


def run_module(
    module: str,
    options_class: type,
    call: Callable[[Any], int],
    arguments: Sequence[str] | None = None,
    resumes: bool = False,
) -> int:
    """Run `python -m MODULE …`, a command that is not part of `proxyqueue`, as `main` runs a verb; the exit code.

    Args:
        options_class: its flags; a dataclass with `check_flags`.
        resumes: after a signal, say that the same command continues where this one stopped.
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
        LOG.warning("interrupted; the same command goes on from here" if resumes else "interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as error:
        LOG.warning(f"{error.filename or 'system'}: {error.strerror or error}")
        return REFUSED


def _run(verb: str, arguments: list[str]) -> int:
    if verb in ("--help", "-h", "help"):
        print(USAGE)
        return OK
    if verb == "--version":
        print(f"proxyqueue {__version__}")
        return OK
    if verb not in VERBS:
        raise InputRefused(f"{verb}: no such verb; there are {', '.join(VERBS)}")
    options_class, call = VERBS[verb]
    return _call(f"proxyqueue {verb}", options_class, call, arguments)


def _call(program: str, options_class: type, call: Callable[[Any], int], arguments: list[str]) -> int:
    options = parse(program, options_class, arguments)
    options.check_flags()
    with Interrupts():
        return call(options)
