"""Patience: how long a process waits for trouble with a filesystem that may pass.
Knows errors and seconds; nothing of what is written."""

import os
import time

from ray_app.errors import is_transient
from ray_app.messages import LOG, TOPIC

PAUSES = (0.2, 0.5, 1.0, 2.0, 4.0, 7.0)
"""Seconds before each further try, 15 in all: a server's hiccup is bridged, a full disk is told before long."""


class Patience:
    """What is left of one process's pauses. Spent once and for all by a trouble that outlasts them."""

    def __init__(self) -> None:
        self._taken = 0
        self._spent = False
        self._said = False

    def wait(self, error: OSError, path: object) -> bool:
        """Pause, and say on stderr why, once; False without a pause if the error can't pass or none is left."""
        if not is_transient(error):
            return False
        self._spent = self._spent or self._taken >= len(PAUSES)
        if self._spent:
            return False
        if not self._said:
            why, seconds = error.strerror or os.strerror(error.errno or 0), round(sum(PAUSES))
            LOG.warning(f"{path}: {why}; trying again for {seconds} seconds", extra={TOPIC: why})
            self._said = True
        pause = PAUSES[self._taken]
        self._taken += 1  # before the pause: a thread that beats may wait for the same disk
        time.sleep(pause)
        return True

    def restore(self) -> None:
        """A write went well: the next trouble gets all pauses again."""
        self._taken = 0
