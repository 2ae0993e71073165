"""One prompt never costs another: real segfaults, real SIGKILLs, a real hang, real lack of memory."""

import dataclasses
import json
import os
import resource
from pathlib import Path

import pytest

from actors import memory
from actors.generator import ImageGenerator
from actors.recipe import Capture
from ray_app.errors import OK, SOME_FAILED, Refused
from ray_app.generation.generate import generate
from ray_app.generation.options import Generate
from ray_app.index.rows import read_rows
from ray_app.output.open import open_output
from tests.conftest import read_tree, run_python
from tests.support.poison import DyingLoader, PoisonedWorker
from tests.support.synthetic import SyntheticWorker

PROMPTS = [f"a dog number {number}" for number in range(10)]


def asked(folder: Path, prompts: list[str], **flags) -> Generate:
    entries = [{"id": 0, "reference_img_id": 1, "multi_gpt-3.5_opt": prompts}]
    (folder / "test.json").write_text(json.dumps(entries))
    fixed = {"model_path": "tiny", "max_inference_steps": 2, "save_steps": ("1", "2"), "num_prompts": 20}
    output = str(folder / "out")
    return Generate(
        json_file=str(folder / "test.json"), output_base_path=output, **{**fixed, "num_workers": "2", **flags}
    )


def failed(folder: Path) -> dict[int, tuple[str, str]]:
    rows = read_rows(
        open_output(str(folder / "out")), "sdxl", ["prompt_index", "status", "error_type", "error_message"]
    )
    newest = {row["prompt_index"]: row for row in rows.to_pylist()}
    return {n: (row["error_type"], row["error_message"]) for n, row in newest.items() if row["status"] == "failed"}


@pytest.fixture(scope="module")
def clean_tree(ray_local, tmp_path_factory) -> dict[str, bytes]:
    """What the harmless prompts give in a run without poison."""
    folder = tmp_path_factory.mktemp("clean")
    assert generate(asked(folder, PROMPTS), SyntheticWorker) == OK
    return read_tree(folder / "out")


@pytest.mark.slow
def test_prompts_that_kill_the_process_are_given_up_and_no_other(clean_tree, tmp_path, capsys):
    """A segfault and a SIGKILL in two batches of four; their prompts run again one by one, with the same bytes."""
    prompts = [*PROMPTS]
    prompts[2], prompts[5] = "SEGFAULT", "SIGKILL"
    assert generate(asked(tmp_path, prompts), worker=PoisonedWorker) == SOME_FAILED
    tree = read_tree(tmp_path / "out")
    harmless = {name: data for name, data in clean_tree.items() if not name.endswith(("_2.jpg", "_5.jpg"))}
    assert tree == harmless
    assert {number: kind for number, (kind, _) in failed(tmp_path).items()} == {2: "WorkerDied", 5: "WorkerDied"}
    assert failed(tmp_path)[2][1] == "Run on its own, this prompt crashed the worker 2 times (crash or out of memory)."
    record = json.loads(next((tmp_path / "out" / "runs").iterdir()).read_text())
    assert record["state"] == "some failed"
    assert record["summary"]["batches_replayed"] >= 4

    assert generate(asked(tmp_path, prompts, skip_failed=True), worker=PoisonedWorker) == SOME_FAILED
    assert (
        "nothing to generate: 16 of 20 requested images exist; 4 failed in an earlier run and"
        " are skipped (--skip_failed)" in capsys.readouterr().out
    )
    assert (
        generate(asked(tmp_path, prompts), SyntheticWorker) == OK
    )  # the rerun tries them again, and now nothing kills
    assert set(read_tree(tmp_path / "out")) == set(clean_tree)
    assert failed(tmp_path) == {}


@pytest.mark.slow
def test_a_prompt_that_hangs_is_given_up_after_the_timeout(clean_tree, tmp_path, capsys):
    prompts = [*PROMPTS]
    prompts[4] = "HANG"
    hanging = asked(tmp_path, prompts, denoise_timeout=4.0)
    assert generate(hanging, worker=PoisonedWorker) == SOME_FAILED
    assert failed(tmp_path) == {
        4: ("DenoiseTimeout", "Run on its own, this prompt exceeded the time limit 2 times (--denoise_timeout).")
    }
    harmless = {name: data for name, data in clean_tree.items() if not name.endswith("_4.jpg")}
    assert read_tree(tmp_path / "out") == harmless
    assert "(limit 4 s, --denoise_timeout); restarting the worker." in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_that_kills_every_worker_while_loading_ends_the_run(ray_local, tmp_path):
    with pytest.raises(Refused, match=r"tiny: \d+ workers died while loading it \(out of memory\?\)"):
        generate(asked(tmp_path, PROMPTS), worker=DyingLoader)
    assert read_tree(tmp_path / "out") == {}


def test_latents_that_go_bad_on_the_way_keep_the_good_steps(recipe_for):
    """From the UNet's third call on, the second sample's output is infinite."""
    recipe = recipe_for(model_path="tiny", max_inference_steps=6)
    captures = [Capture(step, snapshot) for snapshot in ("xt", "x0") for step in (1, 2, 3, 6)]
    generator = ImageGenerator(recipe, captures, threads=1)
    batch = {"prompt": PROMPTS[:3], "seed": [0, 0, 0], "captures": [list(range(8))] * 3}
    good = generator(batch)
    calls = []

    def spoil(module, arguments, output):
        calls.append(1)
        if len(calls) >= 3:
            output[0][1] = float("inf")
        return output

    generator.model.pipe.unet.register_forward_hook(spoil)
    spoiled = generator(batch)
    for number in range(len(good["row"])):
        row, step = good["row"][number], good["step"][number]
        if row == 1 and step >= 3:
            assert (spoiled["status"][number], spoiled["error_type"][number]) == ("failed", "NonFiniteLatents")
            assert spoiled["error_message"][number] == "the latents are not finite from step 3 on"
            assert spoiled["image"][number] is None
        else:
            assert spoiled["image"][number] == good["image"][number]


@pytest.mark.parametrize(
    ("value", "error_type", "steps"), [(float("nan"), "NonFinitePixels", (1, 2)), (0.5, "FlatImage", (2,))]
)
def test_invalid_pixels_are_failures(recipe_for, value, error_type, steps):
    recipe = recipe_for(model_path="tiny", max_inference_steps=2, save_steps=("1", "2"))
    generator = ImageGenerator(recipe, [Capture(1), Capture(2)], threads=1)

    def spoil(module, arguments, output):
        output[0] = value
        return output

    generator.model.pipe.vae.decoder.conv_out.register_forward_hook(spoil)
    drawn = generator({"prompt": PROMPTS[:2], "seed": [0, 0], "captures": [[0, 1]] * 2})
    bad = [drawn["row"][i] == 0 and drawn["step"][i] in steps for i in range(4)]
    assert [kind == error_type for kind in drawn["error_type"]] == bad
    assert [status == "failed" for status in drawn["status"]] == bad


Drawn = tuple[list[str], list[int], list[str | None], int, int]
"""Status, batch size and error of each image, and how many the generator denoises and decodes at a time after that."""


def draw_with_little_memory() -> None:
    """In a process of its own: a batch of eight at 256 px with few megabytes more than the model; as JSON on stdout.

    Each try is a fork, since a process that was short of memory is not as it was before.
    """
    from actors.generator import ImageGenerator
    from ray_app.generation import recipes

    flags = {"model_path": "tiny", "max_inference_steps": 1, "save_steps": ("1",), "height": 256, "width": 256}
    recipe = recipes.resolve(Generate(batch_size=8, **flags))
    generator = ImageGenerator(recipe, [Capture(1)], threads=1)
    small = ImageGenerator(dataclasses.replace(recipe, height=64, width=64), [Capture(1)], threads=1)
    batch = {"prompt": PROMPTS[:8], "seed": [0] * 8, "captures": [[0]] * 8}

    def draw_with(megabytes: int) -> Drawn:
        reads, writes = os.pipe()
        if not os.fork():
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, resource.RLIM_INFINITY))
            drawn = generator(batch)
            sizer = generator._sizer
            found = drawn["status"], drawn["batch_size"], drawn["error_type"], sizer.size, sizer.decode_size
            os.write(writes, json.dumps(found).encode())
            os._exit(0)
        os.close(writes)
        with os.fdopen(reads) as answer:
            drawn = json.loads(answer.read())
        os.wait()
        return drawn

    memory.release_free_memory("cpu")  # what loading needed would be enough
    small(batch)  # threads, lazily loaded code and caches take their address space now
    none = draw_with(0)
    # and so does code that is made for a size: memory that was freed keeps its addresses
    alone = ImageGenerator(dataclasses.replace(recipe, batch_size=1), [Capture(1)], threads=1)
    alone({name: values[:1] for name, values in batch.items()})
    for megabytes in (160, 80, 40, 20, 10):  # how much is too little for eight differs between processors
        some = draw_with(megabytes)
        if min(some[3:]) < 8:
            break
    print(json.dumps({"not for one": none, "not for eight": some}))


@pytest.fixture(scope="module")
def with_little_memory() -> dict[str, Drawn]:
    return json.loads(run_python("from tests.generation.test_poison import *; draw_with_little_memory()"))


def test_with_little_memory_less_is_done_at_a_time(with_little_memory):
    statuses, sizes, errors, size, decode_size = with_little_memory["not for eight"]
    assert (statuses, errors) == (["ok"] * 8, [None] * 8)
    assert set(sizes) <= {8, 4, 2, 1}
    assert min(sizes) == size
    assert 1 <= decode_size <= size
    assert decode_size < 8


def test_lack_of_memory_for_one_is_a_failure(with_little_memory):
    statuses, sizes, errors, size, decode_size = with_little_memory["not for one"]
    assert (statuses, errors) == (["failed"] * 8, ["OutOfMemory"] * 8)
    assert (sizes, size, decode_size) == ([1] * 8, 1, 1)
