"""A command's arguments become its options: parsing, and the bounds of single flags.
Knows no command and no flag; each command's flags are a subclass of `Options`."""

import contextlib
import dataclasses
import io
import itertools
import math
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import tyro

from ray_app.errors import OK, InputRefused
from ray_app.help_text import print_help
from ray_app.suggestions import suggest, suggest_nearest

UNKNOWN = "Unrecognized options: "
"""How tyro's line about arguments begins that belong to no flag."""


class Bound:
    """What a flag's value must be. It is part of the flag's annotation: `limit: Annotated[int | None, AtLeast(1)]`."""

    def find_fault(self, value: Any) -> str | None:
        """What is wrong with a value, the end of a line that begins with the flag; None if nothing is."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class AtLeast(Bound):
    """A number from `low`."""

    low: int

    def find_fault(self, value: Any) -> str | None:
        return f"{value}: must be at least {self.low}" if value < self.low else None


@dataclasses.dataclass(frozen=True)
class Within(Bound):
    """A number from `low` to `high`; `unless` is allowed too."""

    low: int
    high: int
    unless: int | None = None
    meaning: str = ""
    """What `unless` does, for the message."""

    def find_fault(self, value: Any) -> str | None:
        if value == self.unless or self.low <= value <= self.high:
            return None
        return f"{value}: must be from {self.low} to {self.high}{self.meaning}"


@dataclasses.dataclass(frozen=True)
class NotNegative(Bound):
    """A finite number from 0."""

    def find_fault(self, value: Any) -> str | None:
        return None if math.isfinite(value) and value >= 0 else f"{value}: must be 0 or more"


@dataclasses.dataclass(frozen=True)
class Seconds(Bound):
    """A time above 0 and below `limit`."""

    limit: float = math.inf
    meaning: str = ""
    """How `limit` is said."""

    def find_fault(self, value: Any) -> str | None:
        return None if 0 < value < self.limit else f"{value:g}: must be above 0{self.meaning}"


@dataclasses.dataclass(frozen=True)
class StepNumber(Bound):
    """A denoising step, 1-based."""

    def find_fault(self, value: Any) -> str | None:
        return f"{value}: steps begin at 1" if value < 1 else None


@dataclasses.dataclass(frozen=True)
class Fraction(Bound):
    """A fraction of 1, or a whole number."""

    of: str

    def find_fault(self, value: Any) -> str | None:
        if value > 0 and (value <= 1 or value % 1 == 0):
            return None
        return f"{value}: must be a fraction of one {self.of}, or whole {self.of}s"


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags of a command. Groups of flags that several commands take are its subclasses, and their base classes;
    `--help` lists the flags of the last base class first, within the groups of `help_text`."""

    BARE: ClassVar[Mapping[str, str]] = {}
    """What a flag stands for that is given without its value."""

    quiet: bool = False
    """Print errors and requested results only: no warnings, no progress, no summary."""

    def check_flags(self) -> None:
        """Raise Refused for the first flag whose value is invalid, whatever files and models exist."""
        for name, value in vars(self).items():
            for text in _each(value):
                if isinstance(text, str) and not _is_text(text):
                    raise InputRefused(f"--{name} {text!r}: has a NUL, or bytes that are not UTF-8", flag=name)
        for name, bound in _bounds(type(self)):
            for value in _each(getattr(self, name)):
                fault = None if value is None or isinstance(value, str) else bound.find_fault(value)
                if fault:
                    raise InputRefused(f"--{name} {fault}", flag=name)


def _each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _bounds(options_class: type) -> Iterator[tuple[str, Bound]]:
    """Each bound with the flag whose annotation has it."""
    for name, annotation in typing.get_type_hints(options_class, include_extras=True).items():
        for extra in getattr(annotation, "__metadata__", ()):
            if isinstance(extra, Bound):
                yield name, extra


def _is_text(text: str) -> bool:
    """Whether it can be a name and be recorded."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def parse(program: str, options_class: type, arguments: list[str]) -> Any:
    """A command's options; a wrong argument is one line instead of tyro's box. What follows `--` is their `command`.

    Args:
        program: what a user calls, "proxyqueue generate" say.

    Raises:
        Refused: an argument that the command does not take, or a value that can't be read.
        SystemExit: --help, which is answered here.
    """
    if "--" in arguments and hasattr(options_class, "command"):
        split = arguments.index("--")
        options = parse(program, options_class, arguments[:split])
        return dataclasses.replace(options, command=tuple(arguments[split + 1 :]))
    arguments = _complete_bare(options_class, arguments)
    if not {"-h", "--help"}.isdisjoint(arguments):
        print_help(program, options_class)
        raise SystemExit(OK)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(
                options_class,
                prog=program,
                args=arguments,
                use_underscores=True,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit:
        lines = (line.strip("│╭╮╰╯─ ") for line in box.getvalue().splitlines()[1:])
        text = " ".join(line for line in lines if line.strip("-"))  # dashes: the box where the terminal has ASCII only
        raise InputRefused(f"{_explain(text, options_class, arguments)} (see {program} --help)") from None


def _complete_bare(options_class: type, arguments: list[str]) -> list[str]:
    """The arguments, with a value for each flag of `Options.BARE` that has none."""
    complete: list[str] = []
    for argument, next_argument in itertools.zip_longest(arguments, arguments[1:]):
        complete.append(argument)
        value = getattr(options_class, "BARE", {}).get(argument.removeprefix("--")) if argument[:2] == "--" else None
        if value is not None and (next_argument is None or next_argument.startswith("--")):
            complete.append(value)
    return complete


def _explain(text: str, options_class: type, arguments: list[str]) -> str:
    """What is wrong with the arguments, by what tyro's box says: one line that names the flag and its value."""
    if text.startswith(UNKNOWN):
        return _explain_unknown(text, options_class, arguments)
    if missing := re.match(r"Missing from .*?: (--\w+) (\S+)", text):
        return f"{missing[1]}: is missing; it takes {missing[2]}"
    if missing := re.match(r"Missing from .*?: \{(\S+)\}", text):
        return f"a value is missing; take one of {missing[1].replace(',', ', ')}"
    if empty := re.match(r"Missing value for argument '(--\w+)'", text):
        return f"{empty[1]}: has no value"
    if choice := re.match(r"invalid choice '(.*?)' for argument '((?:--)?)(\w+)'", text):
        wrong, dashes, name = choice.groups()
        annotation = typing.get_type_hints(options_class, include_extras=True)[name]
        return f"{dashes}{name} {wrong}: no such value{suggest(wrong, _find_choices(annotation))}"
    if unread := re.match(r"Error parsing (--\w+): (.*) Argument helptext: --\w+ (\[.*?\]\]|\S+)", text):
        flag, reason, kind = unread.groups()
        given = re.search(r"instantiated from \[(.*?)\]", reason)
        values = ", ".join(re.findall(r"'([^']*)'", given[1] if given else reason.rsplit(": ", 1)[-1]))
        return f"{flag} {values[:80]}: takes {kind.removeprefix('{None}|').replace('|{auto}', ' or auto')}"
    return text.split(" For full helptext")[0].rstrip(". ")


def _explain_unknown(text: str, options_class: type, arguments: list[str]) -> str:
    """The first flag that the command does not have, or else the first value that no flag takes."""
    names = (field.name for field in dataclasses.fields(options_class))  # type: ignore[arg-type]
    flags = [name.removesuffix("_") for name in names]
    for argument in arguments:
        name = argument.partition("=")[0].lstrip("-")
        if argument.startswith("--") and name.replace("-", "_") not in flags:
            return f"--{name}: no such flag{suggest_nearest(f'--{name}', [f'--{flag}' for flag in flags])}"
    value = text.removeprefix(UNKNOWN).split(" Perhaps you meant")[0].split(" For full helptext")[0]
    return f"{value}: no flag takes this"


def _find_choices(annotation: Any) -> list[str]:
    """The values that a flag's type lists, in their order."""
    if typing.get_origin(annotation) is Literal:
        return [str(value) for value in typing.get_args(annotation)]
    return [choice for inner in typing.get_args(annotation) for choice in _find_choices(inner)]
