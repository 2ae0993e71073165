"""The command `demo`: from the annotations of a small benchmark to the answer, with the tiny models on this machine.
Knows the order of commands and what to show of each; each thing is done elsewhere."""

import contextlib
import functools
import io
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors import tiny
from ray_app import extras, text_table
from ray_app.cluster import connection
from ray_app.errors import OK
from ray_app.evaluation import answer
from ray_app.evaluation.options import Evaluate
from ray_app.features.options import Features
from ray_app.flags import DEFAULT_MODEL_TYPE
from ray_app.gallery.options import Gallery
from ray_app.generation.options import Demo, Generate
from ray_app.index import runs
from ray_app.messages import summarize
from ray_app.output import layout
from ray_app.output.open import open_output
from ray_app.query.options import Query
from ray_app.query.query import query

EMOJI_CIR = Path(__file__).with_name("emoji_cir")
QUERIES = EMOJI_CIR / "demo.json"
"""The part of the benchmark that the demo takes."""
IMAGES = EMOJI_CIR / "images.parquet"
SHEET = "images.png"
"""Of some queries' images, in OUTPUT; written last."""

PROMPTS = 2
"""Of each query, from which images are generated."""
TEXTS = ("multi_gpt-3.5_opt",)
WEIGHT = "0.5"
"""Share of the proxy where text and proxy are added: chosen beforehand, not on these queries."""
SHOWN = (0, 3, 22)
"""Which of the queries' images the contact sheet shows."""
SQL = f"""SELECT step, count(*) AS images, round(avg(sigma), 2) AS noise_left, round(avg(denoise_seconds), 2) AS seconds
FROM images WHERE model = '{DEFAULT_MODEL_TYPE}' AND snapshot = 'xt' GROUP BY step ORDER BY step"""
GAINS = f"""SELECT snapshot, method, step, value, low, high FROM evaluation WHERE model = '{DEFAULT_MODEL_TYPE}'\
 AND control = 'none' AND metric = '{answer.METRIC}' AND compared_with = 'text' ORDER BY ALL"""
"""What each step's images gain over text alone."""


def demo(options: Demo) -> int:
    """Run it, or what is left of it; the exit code of the worst of its commands."""
    out = options.output_base_path
    summarize("Which step is enough? Offline, on this machine's CPUs, with tiny models that know emoji.")
    if _is_done(out):
        summarize(f"nothing to generate: all {_count_images(out):,} images exist, with their vectors and scores")
    else:
        code = _work(out)
        if code != OK:
            return code
    _show(out)
    return OK


def _work(out: str) -> int:
    """Generate, encode, evaluate; the exit code of the first command that fails, or 0."""
    from ray_app.evaluation.evaluate import evaluate
    from ray_app.features.features import features
    from ray_app.generation.generate import generate

    with connection.connected("local"):
        for flags in _generating(out):
            what = f"{flags.model_type}, {PROMPTS} prompts of each query, xt and x0 as of steps 1 to 32"
            if code := _run(f"generate  {what}", functools.partial(generate, flags)):
                return code
        if code := _run("features  of all images and prompts", functools.partial(features, _encoding(out))):
            return code
    if code := _run("evaluate  text alone, proxies alone, both", functools.partial(evaluate, _evaluating(out))):
        return code
    return _run("sheet     of the images of three queries", functools.partial(_draw, out))


def _generating(out: str) -> list[Generate]:
    return [
        Generate(
            model_type=model_type,  # pyright: ignore[reportArgumentType]
            model_path=tiny.NAME,
            json_file=str(QUERIES),
            num_prompts=PROMPTS,
            snapshot="both",
            output_base_path=out,
        )
        for model_type in tiny.model_types()
    ]


def _encoding(out: str) -> Features:
    return Features(
        encoder=tiny.NAME,
        images=str(IMAGES),
        json_file=str(QUERIES),
        texts=TEXTS,
        output_base_path=out,
    )


def _evaluating(out: str) -> Evaluate:
    return Evaluate(
        json_file=str(QUERIES),
        images=str(IMAGES),
        methods=("proxy", "text+proxy"),
        weights=(WEIGHT,),
        output_base_path=out,
    )


def _is_done(out: str) -> bool:
    """Whether an earlier demo has done everything; starts no Ray."""
    if not (Path(out).expanduser() / SHEET).is_file():
        return False
    from ray_app.features import features
    from ray_app.generation import job

    if any(job.prepare(flags).plan.images_to_generate for flags in _generating(out)):
        return False
    return features.prepare(_encoding(out)).plan.is_done


def _count_images(out: str) -> int:
    return sum(PROMPTS * len(_queries()) * len(flags.captures()) for flags in _generating(out))


def _queries() -> list[dict[str, Any]]:
    return json.loads(QUERIES.read_text(encoding="utf-8"))


def _run(title: str, command: Callable[[], int]) -> int:
    """Run a command; its progress is shown, its summary is not. The exit code."""
    summarize(f"  {title} …")
    started = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):
        code = command()
    told = f"failed, exit code {code}" if code else f"{time.monotonic() - started:.0f} s"
    summarize(f"            {told}")
    return code


def _draw(out: str) -> int:
    """The plot of the answer, where matplotlib is installed, and then a sheet of images."""
    from ray_app.gallery.pages import gallery

    if extras.is_installed("matplotlib"):
        output = open_output(out)
        with output.writing(runs.new_id()) as writer:
            writer.write(layout.EVALUATION_ANSWER, answer.plot(_scores(out)))
    shown = tuple(_queries()[place]["id"] for place in SHOWN)
    sheet = Path(out).expanduser() / SHEET
    return gallery(Gallery(output_base_path=out, json_file=str(QUERIES), query_ids=shown, contact_sheet=str(sheet)))


def _scores(out: str) -> answer.Scores:
    import pyarrow.parquet as pq

    return answer.Scores(pq.read_table(Path(out).expanduser() / layout.EVALUATION_TABLE).to_pylist())


def _show(out: str) -> None:
    """Where the images are, the scores by step, one query of the index, and what to try next."""
    scores, folder = _scores(out), Path(out)
    table = text_table.align(answer.table(scores), right=range(1, 9))
    beside = "" if scores.text is None else f"; text alone has {scores.text['value']:.1f}"
    summarize(f"\nimages  {folder / SHEET}")
    if (folder.expanduser() / layout.EVALUATION_ANSWER).is_file():
        summarize(f"plot    {folder / layout.EVALUATION_ANSWER}")
    summarize(f"page    {folder / layout.EVALUATION_PAGE}")
    summarize(f"\n{answer.METRIC} of {len(_queries())} queries with the images alone{beside}")
    summarize("\n".join([*table, *answer.sentences(scores)]))
    summarize(f'\nproxyqueue query --output_base_path {shlex.quote(out)} "{SQL}"')
    query(Query(sql=SQL, output_base_path=out))
    summarize("\nTry next:")
    for command in next_commands(out):
        summarize(f"  {command}")


def next_commands(out: str) -> list[str]:
    """Three commands that work on the demo's output."""
    here = f"--output_base_path {shlex.quote(out)}"
    call = _callable_name()
    queries, images = shlex.quote(str(QUERIES)), shlex.quote(str(IMAGES))
    return [
        f"{call} gallery {here} --json_file {queries}",
        f"{call} evaluate {here} --json_file {queries} --images {images}",
        f'{call} query {here} "{GAINS}"',
    ]


def _callable_name() -> str:
    """`proxyqueue` as this shell finds it: by its name, or by its path in an environment that is not activated."""
    if shutil.which("proxyqueue"):
        return "proxyqueue"
    script = Path(sys.executable).with_name("proxyqueue")
    return shlex.quote(str(script)) if script.is_file() else f"{shlex.quote(sys.executable)} -m ray_app"
