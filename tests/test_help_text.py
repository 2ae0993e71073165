"""What `--help` prints: every flag once, in groups, what most need first, without Python's words."""

import dataclasses
import re

import pytest

from jobs.benchmarks.options import Scale, Speed
from jobs.training.train import Train
from ray_app.cli import COMMANDS
from ray_app.help_text import GROUPS

CLASSES = [*(options_class for options_class, _ in COMMANDS.values()), Scale, Speed, Train]


def flags_of(options_class: type) -> list[str]:
    return [field.name for field in dataclasses.fields(options_class) if field.name not in ("sql", "shell", "command")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_shown_once(command, helps):
    shown = re.findall(r"^│ --(\w+)", helps[command], flags=re.MULTILINE)
    assert sorted(shown) == sorted(flags_of(COMMANDS[command][0]))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_says_what_it_does(command, helps):
    entries = re.split(r"^│ (?=--)", helps[command], flags=re.MULTILINE)[1:]
    short = [entry for entry in entries if len(re.findall(r"[A-Za-z0-9]{2,}", entry)) < 4]
    assert short == []


def test_groups_follow_what_most_need(helps):
    titles = re.findall(r"^╭─ (.+?) ─", helps["generate"], flags=re.MULTILINE)
    assert titles == ["options", *(f"{group} options" for group in GROUPS)]
    first, *_, last = helps["generate"].split("╭─")[1:]
    assert "--json_file" in first
    assert "--idx" in last


def test_help_says_nothing_in_pythons_words(helps):
    text = "".join(helps[command] for command in COMMANDS)
    assert [word for word in ("None", "default: False", "default: )", "[INT") if word in text] == []


def test_groups_name_flags_that_exist():
    known = {name for options_class in CLASSES for name in flags_of(options_class)}
    known |= {f"{options_class.__name__}.{name}" for options_class in CLASSES for name in flags_of(options_class)}
    assert {name for names in GROUPS.values() for name in names} - known == set()
