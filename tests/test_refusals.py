"""Bad input and arguments, each with the exact line it gets: exit code 2, that line alone, and nothing written."""

import pytest

from ray_app.cli import COMMANDS, main
from tests.support.refusals import (
    FIELD,
    Row,
    a_file_called,
    annotations,
    argument,
    asked,
    edit,
    entry,
    flag,
    model,
    output,
    text,
    unusable,
    without,
    write,
)

HELP = "(see proxyqueue generate --help)"
TINY = ["--model_path", "tiny"]


def other_field(field: str, message: str) -> Row:
    """A --prompt_field that no query has, of annotations with two fields that hold lists."""
    told = f"test.json: no query has the field {field!r} (--prompt_field); {message}"
    return lambda here, models: write(here, [entry(tags=["x"])]), asked(f"--prompt_field {field}"), told


ANNOTATIONS = [
    annotations(b"", "not JSON: line 1 column 1: Expecting value"),
    annotations(b"[{}", "not JSON: line 1 column 4: Expecting ',' delimiter"),
    annotations(b'["\xff"]', "not UTF-8 text at byte 2"),
    annotations("[]".encode("utf-16"), "not UTF-8 text at byte 0"),
    annotations(b"[" * 10**5, "not JSON that can be read: nested too deeply"),
    annotations(
        b"[" + b"9" * 5_000 + b"]",
        "not JSON that can be read: Exceeds the limit (4300 digits) for integer string conversion: value has 5000"
        " digits",
    ),
    annotations({"id": 1}, "an object, not a list of queries"),
    annotations(None, "null, not a list of queries"),
    annotations([], "an empty list; it needs at least one query"),
    annotations([entry(), 5], "entry 1 is a number, not an object"),
    annotations([entry("../1")], "entry 0: 'id' '../1' has a slash; it must be a whole number"),
    annotations([entry("a\nb")], "entry 0: 'id' 'a\\nb' has a control character; it must be a whole number"),
    annotations([entry(0, "a/b")], "query 0: 'reference_img_id' 'a/b' has a slash; it must be a plain name"),
    annotations([entry(0, "a\\b")], "query 0: 'reference_img_id' 'a\\\\b' has a slash; it must be a plain name"),
    annotations([entry(0, "..")], "query 0: 'reference_img_id' '..' begins with a dot; it must be a plain name"),
    annotations([entry(0, "")], "query 0: 'reference_img_id' '' is empty; it must be a plain name"),
    annotations(
        [entry(0, "a\0b")], "query 0: 'reference_img_id' 'a\\x00b' has a control character; it must be a plain name"
    ),
    annotations(
        [entry(0, "\ud800")], "query 0: 'reference_img_id' '\\ud800' has a control character; it must be a plain name"
    ),
    annotations(
        [entry(0, "é" * 101)],
        f"query 0: 'reference_img_id' '{'é' * 80}' is longer than 200 bytes; it must be a plain name",
    ),
    annotations([entry(prompts=[])], f"no usable query: test.json: query 0: '{FIELD}' is empty; skipped"),
    unusable(entry(prompts=[]), f"query 0: '{FIELD}' is empty"),
    unusable(entry(prompts="a"), f"query 0: '{FIELD}' is a string, not a list of prompts"),
    unusable(entry(prompts=["a", 5]), f"query 0: '{FIELD}'[1] is a number, not a string"),
    unusable(entry(prompts=["\ud800"]), f"query 0: '{FIELD}'[0] is not valid Unicode (half a surrogate pair)"),
    unusable({"id": 1, "reference_img_id": 7}, f"query 1: no '{FIELD}'; name the prompts' field with --prompt_field"),
    other_field("multi_gpt", f"did you mean {FIELD}? (fields with lists: {FIELD}, tags)"),
    other_field("captions", f"take one of {FIELD}, tags"),
    unusable({"id": 3, FIELD: ["a"]}, "query 3: no 'reference_img_id'"),
    unusable(entry(0, 1.5), "query 0: 'reference_img_id' is a number, not a whole number or string"),
    unusable({FIELD: ["a"], "reference_img_id": 1}, "entry 1: no 'id'"),
    unusable(entry(7), "entry 1: duplicate 'id' 7"),
    unusable(entry(-1), "entry 1: 'id' '-1' is not a whole number from 0 to 2^63-1"),
    unusable(entry([1]), "entry 1: 'id' is a list, not a whole number from 0 to 2^63-1"),
]

ARGUMENTS = [
    argument(["frobnicate"], f"frobnicate: no such command; take one of {', '.join(COMMANDS)}"),
    argument(["genrate"], "genrate: no such command; did you mean generate?"),
    argument(["generate", "--json_fil", "x"], f"--json_fil: no such flag; did you mean --json_file? {HELP}"),
    argument(["generate", "--json-fil=x"], f"--json-fil: no such flag; did you mean --json_file? {HELP}"),
    argument(["generate", "--dry_run", "x"], f"x: no flag takes this {HELP}"),
    argument(
        ["query", "--preset", "step"], "--preset step: no such value; did you mean steps? (see proxyqueue query --help)"
    ),
    argument(
        ["query", "--preset", "x"],
        "--preset x: no such value; take one of steps, failures, timing, duplicates, shared_references"
        " (see proxyqueue query --help)",
    ),
    argument(
        ["export", "--format", "webdatset"],
        "--format webdatset: no such value; did you mean webdataset? (see proxyqueue export --help)",
    ),
    argument(["generate", *TINY], "./test1.json: no such file; name the annotations with --json_file"),
    argument(["generate", "--json_file", ""], "--json_file '': not the name of a file"),
    argument(["generate", "--json_file", "."], ".: can't be read: Is a directory"),
    argument(
        ["generate", "--json_file", "~nobody-here/x"],
        "~nobody-here/x: no such file; name the annotations with --json_file",
    ),
    argument(["generate", "--json_file", "a\nb"], "a b: no such file; name the annotations with --json_file"),
    argument(["generate", "--json_file", "\udcff"], "--json_file '\\udcff': has a NUL, or bytes that are not UTF-8"),
    argument(["generate", "--bogus", "3"], f"--bogus: no such flag {HELP}"),
    argument(["generate", "--seed"], f"--seed: has no value {HELP}"),
    argument(
        ["generate", "--model_type", "sd"],
        f"--model_type sd: no such value; did you mean sdxl? {HELP}",
    ),
    argument(
        ["completion", "tcsh"],
        "shell tcsh: no such value; take one of bash, zsh, fish (see proxyqueue completion --help)",
    ),
    argument(["completion"], "a value is missing; take one of bash, zsh, fish (see proxyqueue completion --help)"),
    argument(["generate", "--idx", "x"], f"--idx x: takes INT {HELP}"),
    argument(["generate", "--guidance_scale", "much"], f"--guidance_scale much: takes FLOAT {HELP}"),
    argument(["generate", "--limit", "1.5"], f"--limit 1.5: takes INT {HELP}"),
    flag("--limit 0", "--limit 0: must be at least 1"),
    flag("--num_prompts 40000", "--num_prompts 40000: must be from 1 to 32768"),
    flag("--max_inference_steps 0", "--max_inference_steps 0: must be at least 1"),
    flag(
        "--max_inference_steps 61",
        "--max_inference_steps 61: EulerAncestralDiscreteScheduler would run 62 steps; take another number",
    ),
    flag("--max_inference_steps 1001", "--max_inference_steps 1001: tiny supports at most 1000 steps"),
    flag("--save_steps 64", "--save_steps 64: outside 1..32 (--max_inference_steps)"),
    flag("--save_steps 4 1.5", "--save_steps 1.5: not a step (a whole number, or a share as 25%)"),
    flag("--save_steps 101%", "--save_steps 101%: a share is above 0% and at most 100%"),
    flag("--save_steps", "--save_steps: name at least one step"),
    flag("--idx 2 --gpu_num 2", "--idx 2: must be from 0 to 1"),
    flag("--seed -1", "--seed -1: must be from 0 to 4294967295"),
    flag(
        "--seed 4294967295 --img_per_prompt 2",
        "--seed 4294967295: with 2 images per prompt seeds would pass 4294967295; take a smaller one",
    ),
    flag("--guidance_scale nan", "--guidance_scale nan: must be 0 or more"),
    flag("--height 65", "--height 65: must be a multiple of 8 for sdxl"),
    flag("--width 16384", "--width 16384: must be from 1 to 16383"),
    flag("--model_type flux --width 68", "--width 68: must be a multiple of 8 for flux"),
    flag("--model_type flux --negative_prompt x", "--negative_prompt: Flux takes none; leave it out"),
    flag("--max_sequence_length 513", "--max_sequence_length 513: must be from 1 to 512"),
    flag("--num_workers 3:2", "--num_workers 3:2: not a number of actors, N or MIN:MAX, from 1"),
    flag("--gpus_per_actor 1.5", "--gpus_per_actor 1.5: must be a fraction of one GPU, or whole GPUs"),
    flag("--image_quality 0", "--image_quality 0: must be from 1 to 100"),
    flag("--query_ids 0 99", "--query_ids 99: no usable query with this id in the annotations"),
    flag("--revision main", "--revision main: tiny is not a hub id; leave it out"),
    argument(["preview"], "--prompt: is missing; it takes STR (see proxyqueue preview --help)"),
    argument(
        ["preview", "--prompt", "a", "--model_path", "/none"],
        "/none: not a folder, and not a hub id (owner/name); set --model_path",
    ),
    argument(["preview", "--prompt", "a", *TINY, "--height", "7"], "--height 7: must be a multiple of 8 for sdxl"),
    argument(["preview", "--prompt", "\udcff", *TINY], "--prompt '\\udcff': has a NUL, or bytes that are not UTF-8"),
    argument(
        ["preview", "--prompt", "a", *TINY, "--save_steps", "33"],
        "--save_steps 33: outside 1..32 (--max_inference_steps)",
    ),
    (
        a_file_called("file"),
        ["preview", "--prompt", "a", *TINY, "--output_dir", "file"],
        "--output_dir file/sdxl_multistep: can't be written: Not a directory",
    ),
    argument(["demo", "--bogus"], "--bogus: no such flag (see proxyqueue demo --help)"),
]

INDEX, STEPS = "model_index.json", "scheduler/scheduler_config.json"
NO_X0 = edit(INDEX, scheduler=["diffusers", "DPMSolverMultistepScheduler"])
MODELS = [
    flag("--model_path model", "model: not a folder, and not a hub id (owner/name); set --model_path"),
    model(
        lambda folder: None,
        "holds a StableDiffusionXLPipeline, but --model_type flux needs a FluxPipeline; use --model_type sdxl",
        "--model_type flux",
    ),
    model(
        lambda folder: None,
        "holds a FluxPipeline, but --model_type sdxl needs a StableDiffusionXLPipeline; use --model_type flux",
        kind="flux",
    ),
    model(
        edit(INDEX, _class_name="KolorsPipeline"),
        "holds a KolorsPipeline, but --model_type sdxl needs a StableDiffusionXLPipeline",
    ),
    model(without(INDEX), f"no {INDEX}; this is not a folder of a diffusers pipeline"),
    model(
        text(INDEX, "{"),
        f"{INDEX} can't be read: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
    ),
    model(text(INDEX, "[" * 10**5), f"{INDEX} can't be read: nested too deeply"),
    model(text(INDEX, "[]"), f"{INDEX} is not a JSON object"),
    model(without("unet"), "no .safetensors weights in unet/; other formats are not loaded"),
    model(without("scheduler"), f"no {STEPS}; this is not a folder of a diffusers pipeline"),
    model(edit(INDEX, scheduler=None), f"{INDEX}: 'scheduler' is 'None', not a library and a class"),
    model(edit(INDEX, scheduler=["lab", "Own"]), f"{INDEX}: a scheduler of lab; only those of diffusers are loaded"),
    model(
        edit(STEPS, num_train_timesteps="many"),
        f"{STEPS}: 'num_train_timesteps' is 'many', not a whole number from 1",
    ),
    model(
        edit("unet/config.json", sample_size=[8, 8]),
        "unet/config.json: 'sample_size' is '[8, 8]', not a whole number from 1",
    ),
    model(
        edit("vae/config.json", block_out_channels=3),
        "vae/config.json: 'block_out_channels' is not a list of 1 to 10 blocks",
    ),
    flag("--batch_size auto", "--batch_size auto: is for GPUs; on CPUs give a number"),
    flag("--batch_size four", f"--batch_size four: takes INT or auto {HELP}"),
    flag("--compile maybe", f"--compile maybe: no such value; take one of off, on, auto {HELP}"),
    flag("--vae_revision main", "--vae_revision main: is for --vae_path; leave it out"),
    (
        model(without("unet"), "")[0],
        asked("--vae_path model"),
        "--vae_path model: holds a pipeline; take its folder vae",
    ),
    (
        model(NO_X0, "")[0],
        asked("--snapshot x0", "model"),
        "--snapshot x0: DPMSolverMultistepScheduler gives no predicted clean image; use xt",
    ),
]

OUTPUTS = [
    flag(
        "--output_base_path ftp://host/out",
        "ftp://host/out: ftp:// is not known; give a path, or one of s3, gs, abfs (as s3://…)",
    ),
    (
        lambda here, models: write(here),
        [*asked(), "--output_base_path", ""],
        "--output_base_path '': not the name of a folder",
    ),
    (a_file_called("out"), asked(), "--output_base_path HERE/out: can't be written: HERE/out is a file"),
    (
        a_file_called("file"),
        asked("--output_base_path file/out"),
        "--output_base_path HERE/file/out: can't be written: HERE/file is a file",
    ),
    flag(
        f"--output_base_path {'x' * 300}", f"--output_base_path HERE/{'x' * 300}: can't be written: File name too long"
    ),
    (
        lambda here, models: write(here),
        [*asked(), "--output_base_path", "o\0ut"],
        "--output_base_path 'o\\x00ut': has a NUL, or bytes that are not UTF-8",
    ),
    output(
        "holds sdxl images of another recipe: --max_inference_steps: this output has 32, this run requests 16;"
        " --guidance_scale: this output has 0.0, this run requests 5.0",
        "--guidance_scale 5 --max_inference_steps 16",
    ),
    output(
        "holds sdxl images of another recipe: --image_format: this output has 'jpg', this run requests 'png';"
        " --image_quality: this output has 95, this run requests None",
        "--image_format png",
    ),
    output(
        "query 0, prompt 0: seed: this output has 0, this run requests 4 (other --seed or --seed_mode)",
        "--seed 4",
    ),
    output(
        "--img_per_prompt: this output has 1, this run requests 2: file numbers would collide",
        "--img_per_prompt 2",
    ),
    output(
        "query 0, prompt 1: prompt: this output has 'b', this run requests 'z' (other annotations or --prompt_field)",
        content=[entry(prompts=["a", "z"])],
    ),
    output(
        "query 0, prompt 0: reference_img_id: this output has 'r7', this run requests 'r9' (other annotations)",
        content=[entry(0, "r9")],
    ),
    output(
        "reference r7 belongs to query 0 in this output, but to query 5 in these annotations",
        content=[entry(5, "r7")],
    ),
]

ROWS = [*ANNOTATIONS, *ARGUMENTS, *MODELS, *OUTPUTS]


@pytest.mark.parametrize(("prepare", "arguments", "message"), ROWS, ids=[message[:60] for _, _, message in ROWS])
def test_bad_input_gets_exactly_this_line(prepare, arguments, message, tmp_path, models, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path, models)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code = main(arguments)
    out, err = capsys.readouterr()
    assert err.replace(f"{tmp_path}/", "HERE/") == f"proxyqueue: {message}\n"
    assert (code, out) == (2, "")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
