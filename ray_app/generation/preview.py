"""The command `preview`: one prompt, its steps as png files, generated in this process."""

import dataclasses
from pathlib import Path

from actors.errors import DeviceLost, ModelError
from actors.families import FAMILIES
from actors.recipe import Capture
from ray_app.errors import OK, SOME_FAILED, InputRefused, one_line
from ray_app.files import whole_file
from ray_app.generation import recipes
from ray_app.generation.options import Generate, Preview, parse_steps
from ray_app.messages import LOG, summarize


def preview(options: Preview) -> int:
    """Generate and save; the exit code. Steps that fail are reported and not saved.

    Raises:
        Refused: bad options, a model that can't be loaded, a folder that can't be written.
    """
    models = FAMILIES if options.model == "both" else (options.model,)
    return max(_preview(options, model) for model in models)


def _preview(options: Preview, model: str) -> int:
    flags_of_generate = {field.name for field in dataclasses.fields(Generate)}
    shared_flags = {name: value for name, value in vars(options).items() if name in flags_of_generate}
    generate_options = Generate(model_type=model, image_format="png", batch_size=1, **shared_flags)
    generate_options.check_flags()
    recipe = recipes.resolve(generate_options)
    last = options.max_inference_steps
    steps = sorted({*parse_steps(options.save_steps, last), last})
    folder = Path(options.output_dir) / f"{model}_multistep"
    from actors.generator import ImageGenerator

    saved = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        generator = ImageGenerator(recipe, [Capture(step, options.snapshot) for step in steps])
        batch = {"prompt": [options.prompt], "seed": [options.seed], "captures": [list(range(len(steps)))]}
        images = generator(batch)
        columns = [images[name] for name in ("step", "image", "error_type", "error_message")]
        for step, png, error_type, message in zip(*columns, strict=True):
            if png is None:
                LOG.warning(f"{recipe.model_path}: step {step}: {error_type}: {message}")
                continue
            names = [f"step_{step:02}.png"]
            if step == last:
                names.append("final.png")
            for name in names:
                with whole_file(folder / name) as staged:
                    staged.write_bytes(png)
                saved.append(name)
    except ModelError as error:
        raise InputRefused(str(error)) from error
    except DeviceLost as error:
        raise InputRefused(f"--device {recipe.device}: can't be used: {error}", flag="device") from error
    except OSError as error:
        raise InputRefused(
            f"--output_dir {folder}: can't be written: {error.strerror or one_line(error)}", flag="output_dir"
        ) from error
    if saved:
        summarize(f"{folder}: {', '.join(saved)}")
    return OK if len(saved) == len(steps) + 1 else SOME_FAILED
