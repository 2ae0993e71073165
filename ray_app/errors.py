"""What ends a command with one line and an exit code instead of a traceback, by kind, and the exit codes themselves."""

import errno

from actors import errors

OK = 0
PROBLEMS = 1
REFUSED = 2
SOME_FAILED = 3
INTERRUPTED = 130

RERUN = "rerun the same command to resume"
"""What to do about a transient error."""

TRANSIENT_ERRNOS = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT,  # others may be making room
        errno.EAGAIN, errno.EBUSY, errno.ENOLCK, errno.ENOMEM, errno.ENFILE, errno.EMFILE,  # what is short comes back
        errno.EIO, errno.ETIMEDOUT, errno.ESTALE,  # a file server that restarts
        errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH,  # or its network
        errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN, errno.ESHUTDOWN,
    }
)  # fmt: skip
"""All others stay until a person acts: no permission, a read-only filesystem, a file in the way, a name too long."""


class Refused(Exception):
    """Ends a command with exit code 2. Raise one of its kinds.

    Args:
        message: one line: which file, query, field or flag, what is wrong with it, and what to do.
        path: the file, folder or URL that is to blame.
        query: the id of the query in question.
        field: the field of the annotations or of a configuration file.
        flag: the flag to change, without its dashes.
        transient: the same command may succeed later; the message then ends with how to resume.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        query: int | None = None,
        field: str | None = None,
        flag: str | None = None,
        transient: bool = False,
    ):
        super().__init__(message)
        self.path, self.query, self.field, self.flag, self.transient = path, query, field, flag, transient

    def __str__(self) -> str:
        """On one line even if a name in it has line breaks."""
        line = " ".join(super().__str__().splitlines())
        return f"{line}; {RERUN}" if self.transient else line


class InputRefused(Refused):
    """A flag, an annotations file or another input of the user's."""


class ModelRefused(Refused):
    """A model that can't be loaded, or can't do what is requested of it."""


class OutputRefused(Refused):
    """A place that can't be read or written, or whose content does not fit."""


class ClusterRefused(Refused):
    """A Ray cluster that can't be started or joined, or lacks what a run needs."""


def write_failure(error: OSError) -> OutputRefused:
    """The refusal of an output that a run can't write to: what exists stays valid, and rerunning resumes."""
    return OutputRefused(f"{error.filename}: {error.strerror}", path=error.filename, transient=True)


def is_transient(error: OSError) -> bool:
    """Whether waiting may help."""
    return error.errno in TRANSIENT_ERRNOS


def one_line(error: BaseException, limit: int = 500) -> str:
    """An exception's message on one line, its type where it has none."""
    return errors.one_line(error)[:limit]
