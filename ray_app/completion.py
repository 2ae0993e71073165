"""The command `completion`: a script with which a shell completes commands, flags and their values.
Knows that tyro writes such scripts; the commands are given to it."""

import contextlib
import dataclasses
import functools
import inspect
import operator
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import tyro

from ray_app.arguments import Options
from ray_app.errors import OK
from ray_app.help_text import grouped


@dataclasses.dataclass(frozen=True)
class Completion(Options):
    """Print a script that makes a shell complete proxyqueue's commands, flags and values.

    bash, zsh or fish; where each looks for the script is in the documentation, page "Getting started".

    Example: proxyqueue completion bash > ~/.local/share/bash-completion/completions/proxyqueue

    Exit codes: 0 printed, 2 refused.
    """

    _: dataclasses.KW_ONLY
    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional]
    """Which shell."""


def completion(options: Completion, commands: Mapping[str, type]) -> int:
    """Print the script; the exit code.

    Args:
        commands: the flags of each command.
    """
    subcommands: list[Any] = []
    for name, options_class in commands.items():
        sentence = (inspect.getdoc(options_class) or name).splitlines()[0]
        shown = tyro.conf.subcommand(name=name, description=sentence)
        subcommands.append(Annotated[grouped(options_class), shown])
    with contextlib.suppress(SystemExit):
        tyro.cli(
            functools.reduce(operator.or_, subcommands),
            prog="proxyqueue",
            args=["--tyro-print-completion", options.shell],
            use_underscores=True,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
        )
    return OK
