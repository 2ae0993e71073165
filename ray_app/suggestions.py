"""What a wrong name was probably meant to be, for the line that refuses it.
Knows names alone; commands, flags, choices and fields all use it."""

import difflib
from collections.abc import Iterable

MOST_LISTED = 20


def suggest(wrong: str, known: Iterable[str]) -> str:
    """The rest of a line about a name that does not exist: the nearest name, or all that exist.

    Args:
        wrong: the name that was given.
        known: the names that exist, in the order in which they are listed.
    """
    names = list(known)
    return suggest_nearest(wrong, names) or (f"; take one of {list_names(names)}" if names else "")


def suggest_nearest(wrong: str, known: Iterable[str]) -> str:
    """The same where the known names are too many to list: nothing if none is near."""
    by_lower_case = {name.lower(): name for name in known}
    near = difflib.get_close_matches(wrong.lower(), by_lower_case, n=1)
    return f"; did you mean {by_lower_case[near[0]]}?" if near else ""


def list_names(names: list[str]) -> str:
    """Names as a list of words, cut where there are too many for a line."""
    more = len(names) - MOST_LISTED
    return ", ".join([*names[:MOST_LISTED], *([f"and {more:,} more"] if more > 0 else [])])
