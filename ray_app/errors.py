"""What ends a run with one line and an exit code instead of a traceback, and the exit codes themselves."""

OK = 0
REFUSED = 2
SOME_FAILED = 3
INTERRUPTED = 130


class Refused(Exception):
    """Bad input, or a place that can't be used. The message is one line: file, query, field and what to do."""


def one_line(error: BaseException, limit: int = 500) -> str:
    """An exception's message on one line, its type where it has none."""
    return (" ".join(str(error).split()) or type(error).__name__)[:limit]
