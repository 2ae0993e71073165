"""A dashboard without a cluster: Ray's job API over real HTTP and WebSockets; it starts nothing."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator

import ray
from aiohttp import web
from ray.job_submission import JobDetails, JobStatus, JobType


class Dashboard:
    """What it was sent, and what it answers.

    A submitted job ends as `end` says, after printing `log`. A job that is asked to stop, stops. With `fault` every
    question about jobs is answered with status 500 and this text, with `fault_after_log` from the end of a log on.
    """

    def __init__(self) -> None:
        self.address = ""
        self.jobs: dict[str, JobDetails] = {}
        self.packages: dict[str, bytes] = {}
        self.uploads = 0
        self.max_bytes = 2**30
        self.submitted: list[dict] = []
        self.log: list[str] = []
        self.end = {"status": JobStatus.SUCCEEDED, "driver_exit_code": 0}
        self.fault = self.fault_after_log = ""

    def add(self, job: str, entrypoint: str = "python -m jobs.generate", **details) -> None:
        """A job that was submitted before."""
        known = {"submission_id": job, "entrypoint": entrypoint, "start_time": 1_700_000_000_000}
        self.jobs[job] = JobDetails(type=JobType.SUBMISSION, **{**known, **details})

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/version", self._version),
            web.get("/api/packages/{protocol}/{name}", self._has_package),
            web.put("/api/packages/{protocol}/{name}", self._put_package),
            web.post("/api/jobs/", self._submit),
            web.get("/api/jobs/", self._list),
            web.get("/api/jobs/{job}", self._info),
            web.post("/api/jobs/{job}/stop", self._stop),
            web.get("/api/jobs/{job}/logs/tail", self._tail),
        ]

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": ray.__version__, "ray_commit": ray.__commit__})

    async def _has_package(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if request.match_info["name"] in self.packages else 404)

    async def _put_package(self, request: web.Request) -> web.Response:
        data = await request.read()
        if len(data) > self.max_bytes:
            raise web.HTTPRequestEntityTooLarge(max_size=self.max_bytes, actual_size=len(data))
        self.packages[request.match_info["name"]] = data
        self.uploads += 1
        return web.Response()

    async def _submit(self, request: web.Request) -> web.Response:
        sent = await request.json()
        self.submitted.append(sent)
        self.add(sent["submission_id"], sent["entrypoint"], **self.end)
        return web.json_response({"job_id": sent["submission_id"], "submission_id": sent["submission_id"]})

    async def _list(self, request: web.Request) -> web.Response:
        return self._answer([job.model_dump(mode="json") for job in self.jobs.values()])

    async def _info(self, request: web.Request) -> web.Response:
        job = self.jobs.get(request.match_info["job"])
        if job is None:
            return web.Response(status=404, text=f"Job {request.match_info['job']} does not exist")
        return self._answer(job.model_dump(mode="json"))

    async def _stop(self, request: web.Request) -> web.Response:
        self.jobs[request.match_info["job"]].status = JobStatus.STOPPED
        return self._answer({"stopped": True})

    async def _tail(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for text in self.log:
            await socket.send_str(text)
        self.fault = self.fault_after_log
        await socket.close()
        return socket

    def _answer(self, value: object) -> web.Response:
        return web.Response(status=500, text=self.fault) if self.fault else web.json_response(value)


@contextlib.contextmanager
def dashboard() -> Iterator[Dashboard]:
    """A dashboard on a free port of the loopback address, in a thread of its own."""
    board, loop = Dashboard(), asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        application = web.Application(client_max_size=2**30)
        application.add_routes(board.routes())
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        board.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    runner = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield board
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
