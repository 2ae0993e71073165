"""A command's arguments become its options: parsing, and the bounds of single flags.
Knows no command and no flag; each command's flags are a subclass of `Options`."""

import contextlib
import dataclasses
import io
import math
import re
import typing
from collections.abc import Iterator
from typing import Any

import tyro

from ray_app.errors import InputRefused


class Bound:
    """What a flag's value must be. It is annotated beside the flag: `limit: Annotated[int | None, AtLeast(1)]`."""

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


class Options:
    """The flags of a command. Groups of flags that several commands take are its subclasses, and their base classes;
    `--help` lists the flags of a base class before those of the classes that stand to its left."""

    def check_flags(self) -> None:
        """Raise Refused for the first flag whose value makes no sense, whatever files and models there are."""
        for name, value in vars(self).items():
            for text in _each(value):
                if isinstance(text, str) and not _is_text(text):
                    raise InputRefused(f"--{name} {text!r}: has a NUL, or bytes that are not UTF-8", flag=name)
        for name, bound in _bounds(type(self)):
            for value in _each(getattr(self, name)):
                fault = None if value is None else bound.find_fault(value)
                if fault:
                    raise InputRefused(f"--{name} {fault}", flag=name)


def _each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _bounds(options_class: type) -> Iterator[tuple[str, Bound]]:
    """Each bound with the flag that it is annotated beside."""
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
    """
    if "--" in arguments and hasattr(options_class, "command"):
        split = arguments.index("--")
        options = parse(program, options_class, arguments[:split])
        return dataclasses.replace(options, command=tuple(arguments[split + 1 :]))
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
    except SystemExit as end:
        if not end.code:
            raise
        lines = (line.strip("│╭╮╰╯─ ") for line in box.getvalue().splitlines()[1:])
        text = " ".join(line for line in lines if line.strip("-"))  # dashes: the box where the terminal has ASCII only
        raise InputRefused(f"{_shorten(text)} (see {program} --help)") from None


def _shorten(text: str) -> str:
    """What tyro's box says, without the help text it repeats; a value that can't be read as flag, value and type."""
    text = text.split(" For full helptext")[0].rstrip(". ")
    if missing := re.match(r"Missing from .*?: (--\w+) (\S+)", text):
        return f"{missing[1]}: is missing; it takes {missing[2]}"
    unread = re.match(r"Error parsing (--\w+): (.*) Argument helptext: --\w+ (\[.*?\]\]|\S+)", text)
    if unread is None:
        return text
    flag, reason, kind = unread.groups()
    values = ", ".join(re.findall(r"'([^']*)'", reason.rsplit(": ", 1)[-1]))
    return f"{flag} {values[:80]}: takes {kind.removeprefix('{None}|')}"
