"""A GPU that fails costs no prompt: real actors on a Ray that claims to have two GPUs."""

import contextlib
import io
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from actors.errors import DeviceLost
from actors.recipe import Capture, Recipe
from ray_app.cluster import connection, ray_workarounds
from ray_app.errors import OK, REFUSED, Refused
from ray_app.generation.generate import generate
from ray_app.generation.options import Generate
from ray_app.generation.worker import ImageWorker
from ray_app.work_queue import watchdog
from tests.conftest import read_tree, run_python
from tests.support.synthetic import Row, SyntheticGenerator, SyntheticWorker

PROMPTS = [f"a dog number {number}" for number in range(40)]


class FailingCardGenerator(SyntheticGenerator):
    """On a bad card it is lost from some prompt on, in the middle of a batch, for this process and the next ones."""

    def __init__(self, recipe: Recipe, captures: Sequence[Capture], prompts: int):
        super().__init__(recipe, captures)
        self._prompts_left = prompts

    def generate(self, batch: dict[str, Sequence[Any]]) -> list[list[Row]]:
        time.sleep(0.1)
        return super().generate(batch)

    def _row(self, prompt: str, seed: int, capture: Capture) -> Row:
        self._prompts_left -= capture.step == 1
        if self._prompts_left < 0:
            raise DeviceLost("CUDA error: an illegal memory access was encountered")
        return super()._row(prompt, seed, capture)


class FailingCardWorker(SyntheticWorker):
    """Its device is lost on some of the GPUs."""

    PROMPTS: ClassVar[int]
    BAD: ClassVar[tuple[str, ...]] = ("0",)

    def load(self, recipe: Recipe, captures: Sequence[Capture], threads: int | None) -> Any:
        card = self.card()
        is_bad = card is not None and card.ids[0] in self.BAD
        return FailingCardGenerator(recipe, captures, self.PROMPTS if is_bad else 1_000)


class FirstBatch(FailingCardWorker):
    PROMPTS = 2


class LaterBatch(FailingCardWorker):
    PROMPTS = 9


class BothCards(FailingCardWorker):
    PROMPTS, BAD = 5, ("0", "1")


WORKERS = [FirstBatch, LaterBatch]


def asked(folder: Path) -> Generate:
    folder.mkdir(exist_ok=True)
    entries = [{"id": 0, "reference_img_id": 1, "multi_gpt-3.5_opt": PROMPTS}]
    (folder / "test.json").write_text(json.dumps(entries))
    fixed: dict[str, Any] = {"model_path": "tiny", "max_inference_steps": 2, "save_steps": ("1", "2")}
    fixed |= {"num_prompts": len(PROMPTS), "batch_size": 4, "gpus_per_actor": 1.0}
    return Generate(json_file=str(folder / "test.json"), output_base_path=str(folder / "out"), **fixed)


def run_all(root: str) -> None:
    """In a process of its own: a run of each worker; exit codes and lines on stderr, as JSON."""
    import ray

    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    watchdog.POLL_SECONDS = 0.1
    found = {}
    with ray_workarounds.quiet_node_messages(), contextlib.redirect_stdout(io.StringIO()):
        ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, **connection.QUIET)
        for worker in (SyntheticWorker, *WORKERS, BothCards):
            found[worker.__name__] = run_one(asked(Path(root) / worker.__name__), worker)
        found["rerun"] = run_one(asked(Path(root) / BothCards.__name__), SyntheticWorker)
        ray.shutdown()
    print(json.dumps(found))


def run_one(options: Generate, worker: type[ImageWorker]) -> dict[str, Any]:
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            code = generate(options, worker)
        except Refused as error:
            code = REFUSED
            print(error, file=said)
    return {"code": code, "said": said.getvalue().splitlines()}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cards")


@pytest.fixture(scope="module")
def outcomes(root) -> dict[str, Any]:
    return json.loads(run_python(f"from tests.generation.test_card_failure import *; run_all({str(root)!r})"))


@pytest.mark.slow
@pytest.mark.parametrize("worker", [worker.__name__ for worker in WORKERS])
def test_a_card_that_fails_costs_no_image_and_changes_no_byte(outcomes, root, worker):
    assert outcomes[worker]["code"] == OK
    tree = read_tree(root / worker / "out")
    assert len(tree) == 80
    assert tree == read_tree(root / "SyntheticWorker" / "out")


@pytest.mark.slow
def test_the_card_is_named_once_when_it_is_left_out_and_recorded(outcomes, root):
    out = [line for line in outcomes["FirstBatch"]["said"] if "is left out of this run" in line]
    assert len(out) == 1
    (record,) = (root / "FirstBatch" / "out" / "runs").iterdir()
    assert out[0].removeprefix("proxyqueue: ") in json.loads(record.read_text())["notices"]
    assert out[0].startswith("proxyqueue: GPU 0 of node ")
    assert out[0].endswith(": CUDA error: an illegal memory access was encountered")


@pytest.mark.slow
def test_without_a_card_that_works_the_run_ends_and_the_next_one_resumes(outcomes, root):
    assert outcomes["BothCards"]["code"] == REFUSED
    assert outcomes["BothCards"]["said"][-1].startswith("the run has left out all its 2 GPUs; the last was GPU ")
    assert outcomes["rerun"]["code"] == OK
    assert read_tree(root / "BothCards" / "out") == read_tree(root / "SyntheticWorker" / "out")
