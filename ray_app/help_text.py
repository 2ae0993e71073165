"""What a command's `--help` prints: its flags in groups, those that most users need first.
Knows the flags' names, types and sentences; nothing of what a command does with them."""

import ast
import dataclasses
import inspect
import itertools
import os
import textwrap
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import tyro

GROUPS = {
    "model": (
        "sdxl_path", "flux_path", "variant", "revision", "vae_path", "vae_revision", "device", "guidance_scale",
        "negative_prompt", "height", "width", "Generate.seed", "Preview.seed", "seed_mode", "mode", "preprocessing",
        "max_sequence_length", "vae_dtype", "compile", "deterministic", "batch_size",
    ),
    "output": (
        "format", "output", "output_dir", "image_format", "image_quality", "gallery_path", "thumbnails",
        "contact_sheet", "export_path", "shard_images", "show_queries", "quiet",
    ),
    "cluster": ("address", "shared_filesystem", "num_workers", "gpus_per_actor"),
    "rarely needed": (
        "idx", "gpu_num", "strict", "denoise_timeout", "skip_failed", "force", "redraw", "Verify.seed", "threads",
        "index_only", "seconds", "by_query", "bootstrap", "Evaluate.seed", "results",
    ),
}  # fmt: skip
"""The flags of each group after the first, of any command, or as `Class.flag` of one. Others are in the first group."""

_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}


def print_help(program: str, options_class: type) -> None:
    """Print a command's help on standard output.

    Args:
        program: what a user calls, "proxyqueue generate" say.
        options_class: the command's flags, a dataclass.
    """
    tyro._experimental_options["ansi_codes"] = not os.environ.get("NO_COLOR")
    try:
        tyro.cli(
            grouped(options_class),
            prog=program,
            args=["--help"],
            use_underscores=True,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
        )
    except SystemExit:
        pass
    finally:
        tyro._experimental_options["ansi_codes"] = True


def grouped(options_class: type) -> type:
    """A class like a command's options, whose flags are in an inner class for each group, for `--help` and shells."""
    sentences = _read_sentences(options_class)
    annotations = typing.get_type_hints(options_class, include_extras=True)
    fields_of_group: dict[str, list[Any]] = {"": [], **{group: [] for group in GROUPS}}
    for field in dataclasses.fields(options_class):
        group = _GROUP_OF.get(f"{options_class.__name__}.{field.name}", _GROUP_OF.get(field.name, ""))
        shown = tyro.conf.arg(
            help=sentences.get(field.name),
            help_behavior_hint=_describe_default(field.default),
            metavar=_metavar(annotations[field.name]),
        )
        annotation = Annotated[annotations[field.name], shown]
        fields_of_group[group].append((field.name, annotation, dataclasses.field(default=field.default, kw_only=True)))
    outer = fields_of_group.pop("")
    for number, (group, fields) in enumerate(fields_of_group.items()):
        if fields:
            inner = dataclasses.make_dataclass(f"Group{number}", fields)
            inner.__doc__ = ""
            outer.append((f"group{number}", Annotated[inner, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name=group)]))
    shown_class = dataclasses.make_dataclass(options_class.__name__, outer)
    shown_class.__doc__ = inspect.getdoc(options_class)
    return shown_class


def _read_sentences(options_class: type) -> dict[str, str]:
    """The sentence below each field in the source of its class, that of the class itself before that of its bases."""
    sentences: dict[str, str] = {}
    for declaring in reversed(options_class.__mro__):
        if dataclasses.is_dataclass(declaring):
            (parsed,) = ast.parse(textwrap.dedent(inspect.getsource(declaring))).body
            assert isinstance(parsed, ast.ClassDef)
            sentences |= dict(_pairs(parsed))
    return sentences


def _pairs(parsed: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, below in itertools.pairwise(parsed.body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(sentence))):
                yield name, " ".join(sentence.split())


def _describe_default(default: Any) -> Callable[[str], str] | None:
    """What follows a flag's sentence; nothing where its absence is the default, which the sentence explains."""
    has_none = default is None or default is False or default == ()
    return (lambda label: "") if has_none else None


def _metavar(annotation: Any) -> str | None:
    """How several numbers or texts are written; None leaves it to tyro."""
    values = typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation
    if typing.get_origin(values) is tuple and typing.get_args(values)[0] in (int, str):
        return f"{typing.get_args(values)[0].__name__.upper()} ..."
    return None
