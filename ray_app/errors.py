"""What ends a run with one line and an exit code instead of a traceback, and the exit codes themselves."""

OK = 0
PROBLEMS = 1
REFUSED = 2
SOME_FAILED = 3
INTERRUPTED = 130

GOES_ON = "the same command goes on from what is indexed"
"""What to do about an output that can't be written for now."""


class Refused(Exception):
    """Bad input, or a place that can't be used. The message is one line: file, query, field and what to do."""

    def __str__(self) -> str:
        """On one line even if a name in it has line breaks."""
        return " ".join(super().__str__().splitlines())


def one_line(error: BaseException, limit: int = 500) -> str:
    """An exception's message on one line, its type where it has none."""
    return (" ".join(str(error).split()) or type(error).__name__)[:limit]
