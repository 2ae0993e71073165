"""The processes that write are started, and have imported what they need, while the workers load."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_app.cluster.capacity import Request
from ray_app.work_queue import file_processes, watchdog
from ray_app.work_queue.queue import Pool, Queue, Work
from tests.support.processes import comes_true
from tests.work_queue.test_queue import TERMS, Squares


@dataclasses.dataclass
class Noted:
    """Writes nothing; notes each process that gets it."""

    folder: Path

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        (self.folder / f"{os.getpid()}.ready").touch()

    def __call__(self, table: pa.Table, notice: Any) -> pa.Table:
        (self.folder / f"{os.getpid()}.wrote").touch()
        return table


class PatientSquares(Squares):
    """Loads until a process is ready to write."""

    def load(self, folder: str, mode: str) -> Any:
        assert comes_true(lambda: any(Path(folder).glob("*.ready")), 60)
        return super().load(folder, mode)


@pytest.mark.slow
def test_processes_are_ready_to_write_before_the_first_batch(ray_local, tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog, "POLL_SECONDS", 0.1)
    work = Work(PatientSquares, (str(tmp_path), ""), 3, Noted(tmp_path), "squares", TERMS)
    rows: list[dict[str, Any]] = []
    Queue(work, Pool(Request(0.0, (1, 1))), [pa.table({"number": [3]})]).run(
        lambda table: rows.extend(table.to_pylist()), lambda: None
    )
    assert [row["square"] for row in rows] == [9]
    assert len(list(tmp_path.glob("*.wrote"))) == 1


def test_what_can_not_be_imported_there_is_left_to_the_first_batch(ray_local):
    import ray

    class Broken:
        def __reduce__(self) -> Any:
            return os.stat, ("/nowhere",)

    assert ray.get(file_processes.start(Broken(), 2, {})) == [None, None]
