"""The jobs of a Ray cluster over HTTP: submit, follow, stop, list; each failure is one line with what to do.
Knows Ray's job server; nothing of what a job does."""

import asyncio
import contextlib
import datetime
import logging
import os
import socket
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

from ray_app.errors import INTERRUPTED, OK, PROBLEMS, ClusterRefused, one_line
from ray_app.messages import LOG

HERE = "http://127.0.0.1:8265"
CONNECT_SECONDS = 10.0
MAX_BYTES = 100 * 2**20
"""Ray's dashboard accepts no larger upload, and Ray does not compress them."""
STOP_SECONDS = 60
"""How long a stopped job has to end by itself; Ray's own default of 3 s would kill it in the middle of a batch."""
START_SECONDS = 60.0
"""A head that has just started accepts no jobs before its agent is up; for this long, submitting is retried."""
LOST_SECONDS = 60.0
"""How long a connection that drops while a job is followed is retried."""
SILENT_SECONDS = 120.0
"""A run prints a line every ten seconds: after a silence of this length, it reconnects."""
BROKEN_TIMES = 3
"""How often a job's log is requested again after the job's end."""
POLL_SECONDS = 1.0


class JobServer:
    """The job server behind a cluster's dashboard.

    Args:
        address: http://HOST:PORT; None for RAY_API_SERVER_ADDRESS, for RAY_ADDRESS if it is one, or this machine.
        secrets: texts that are never to be shown.

    Raises:
        Refused: nothing answers there, or it requires a token that this machine does not have.
    """

    def __init__(self, address: str | None, secrets: frozenset[str] = frozenset()):
        self.address = _checked(address)
        self._secrets = secrets
        # Ray lets both override an address that is given
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        from ray.job_submission import JobSubmissionClient

        for name in ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what goes wrong is raised
        with self._explained():
            self._client = JobSubmissionClient(self.address)

    def submit(self, job: str, entrypoint: str, runtime_env: dict[str, Any]) -> None:
        """Upload what the cluster lacks of the job's files, and start a job of that id with them."""
        deadline = time.monotonic() + START_SECONDS
        with self._explained():
            while True:
                try:
                    self._client.submit_job(submission_id=job, entrypoint=entrypoint, runtime_env=runtime_env)
                    return
                except RuntimeError as error:
                    if "try again later" not in str(error) or time.monotonic() > deadline:
                        raise
                time.sleep(POLL_SECONDS)

    def follow(self, job: str) -> int:
        """Print the job's log from its first line until the job ends; its exit code.

        Raises:
            KeyboardInterrupt: Ctrl-C; the job keeps running.
            Refused: there is no such job, or the connection is lost for good.
        """
        info = self._info(job)
        self._shown, broken, lost_since = 0, 0, 0.0
        while True:
            try:
                asyncio.run(self._print_log(job))
                broken = 0
            except Exception:  # a tunnel that broke, a dashboard that restarts: aiohttp raises many kinds
                broken += 1
            try:
                info = self._client.get_job_info(job)
                lost_since = 0.0
            except Exception as error:
                lost_since = lost_since or time.monotonic()
                if time.monotonic() > lost_since + LOST_SECONDS:
                    reason = self._masked(one_line(error, 200))
                    raise ClusterRefused(
                        f"{self.address}: the connection is lost, the job may still be running ({reason})"
                    ) from None
            if info.status.is_terminal() and (not broken or broken > BROKEN_TIMES):
                return self._exit_code(info)
            time.sleep(POLL_SECONDS)

    async def _print_log(self, job: str) -> None:
        """Print what was not shown yet; a log is always sent from its beginning."""
        received = 0
        lines = self._client.tail_job_logs(job)
        while True:
            try:
                text = await asyncio.wait_for(anext(lines), SILENT_SECONDS)
            except StopAsyncIteration:
                return
            print(self._masked(text[max(0, self._shown - received) :]), end="", flush=True)
            received += len(text)
            self._shown = max(self._shown, received)

    def _exit_code(self, info: Any) -> int:
        code = info.driver_exit_code
        if code is not None:
            return code if code >= 0 else 128 - code
        if info.status == "SUCCEEDED":
            return OK
        if info.status == "STOPPED":
            LOG.warning(f"{info.submission_id}: was stopped; rerun the same command to resume")
            return INTERRUPTED
        started = "was lost" if self._shown else "could not start"
        reason = self._masked(one_line(Exception(info.message or ""), 500))
        LOG.warning(f"{info.submission_id}: {started}: {reason}")
        return PROBLEMS

    def stop(self, job: str) -> str:
        """Stop a job and wait for its end; its last state."""
        info = self._info(job)
        with self._explained(job):
            if not info.status.is_terminal():
                self._client.stop_job(job)
            deadline = time.monotonic() + STOP_SECONDS + CONNECT_SECONDS
            while not info.status.is_terminal() and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
                info = self._client.get_job_info(job)
        return info.status.value

    def list(self) -> list[dict[str, str]]:
        """The submitted jobs, oldest first: id, state, start, exit code, command."""
        with self._explained():
            jobs = [job for job in self._client.list_jobs() if job.submission_id]
        return [
            {
                "job": job.submission_id or "",
                "state": job.status.value,
                "started": _moment(job.start_time),
                "exit": "" if job.driver_exit_code is None else str(job.driver_exit_code),
                "command": self._masked(job.entrypoint),
            }
            for job in sorted(jobs, key=lambda job: job.start_time or 0)
        ]

    def _info(self, job: str) -> Any:
        with self._explained(job):
            return self._client.get_job_info(job)

    def _masked(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    @contextlib.contextmanager
    def _explained(self, job: str | None = None) -> Iterator[None]:
        """Raise Refused for what Ray's client raises."""
        import ray.exceptions
        import requests

        try:
            yield
        except ray.exceptions.AuthenticationError as error:
            what = "rejects this machine's token" if "failed" in str(error) else "requires a token"
            raise ClusterRefused(
                f"--address {self.address}: {what}; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with"
                " the cluster's token (~/.ray/auth_token by default)"
            ) from None
        except (ConnectionError, requests.exceptions.RequestException) as error:
            raise ClusterRefused(f"--address {self.address}: {self._masked(one_line(error, 200))}") from None
        except (RuntimeError, ValueError) as error:
            text = self._masked(one_line(error, 300))
            if job and "does not exist" in text:
                text = f"no such job: {job}; proxyqueue submit --list names them"
            elif "status code 413" in text:
                text = (
                    f"the annotations or a package's folder exceed Ray's limit of {MAX_BYTES / 2**20:.0f} MiB for"
                    " an upload; put annotations where the cluster reads them, other files out of the packages' folders"
                )
            elif "status code 404" in text or "Expecting value" in text:
                text = f"no Ray dashboard: {text}"
            raise ClusterRefused(f"--address {self.address}: {text}") from None


def _checked(address: str | None) -> str:
    """The dashboard's address, something listening on it."""
    known = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS", "")
    address = address or (known if known.startswith("http") else HERE)
    url = urllib.parse.urlsplit(address if "://" in address else f"http://{address}")
    try:
        host, port = url.hostname, url.port or (443 if url.scheme == "https" else 80)
    except ValueError:
        host, port = None, 0
    if url.scheme not in ("http", "https") or not host:
        raise ClusterRefused(f"--address {address}: not the address of a dashboard, http://HEAD:8265")
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterRefused(
            f"--address {address}: no dashboard answers there: {one_line(error)};"
            " for a cluster of cluster.yaml run `ray dashboard cluster.yaml` in another terminal"
        ) from None
    return f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}"


def _moment(milliseconds: int | None) -> str:
    if not milliseconds:
        return ""
    return f"{datetime.datetime.fromtimestamp(milliseconds / 1000):%Y-%m-%d %H:%M:%S}"
