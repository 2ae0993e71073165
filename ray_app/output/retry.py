"""The retry policy: how long a process retries after a filesystem's transient errors.
Knows errors and seconds; nothing of what is written."""

import os
import time

from ray_app.errors import is_transient
from ray_app.messages import LOG, TOPIC

PAUSES = (0.2, 0.5, 1.0, 2.0, 4.0, 7.0)
"""Seconds before each retry, 15 in total: enough for a server's short outage, and a full disk is reported soon."""


class RetryPolicy:
    """The pauses that one process has left. Once an error has used them all up, it never pauses again."""

    def __init__(self) -> None:
        self._taken = 0
        self._spent = False
        self._said = False

    def wait(self, error: OSError, path: object) -> bool:
        """Pause, and say why on stderr, once; False, without a pause, if the error is permanent or no pause is left."""
        if not is_transient(error):
            return False
        self._spent = self._spent or self._taken >= len(PAUSES)
        if self._spent:
            return False
        if not self._said:
            why, seconds = error.strerror or os.strerror(error.errno or 0), round(sum(PAUSES))
            LOG.warning(f"{path}: {why}; retrying for {seconds} seconds", extra={TOPIC: why})
            self._said = True
        pause = PAUSES[self._taken]
        self._taken += 1  # before the pause: the heartbeat's thread may wait for the same disk
        time.sleep(pause)
        return True

    def restore(self) -> None:
        """A write succeeded: the next error gets all pauses again."""
        self._taken = 0
