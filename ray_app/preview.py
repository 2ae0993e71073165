"""The verb `preview`: one prompt, its steps as png files, drawn in this process."""

import sys
from pathlib import Path

from actors.errors import ModelError
from actors.recipe import Capture
from ray_app import recipes
from ray_app.errors import OK, Refused, one_line
from ray_app.options import Generate, Preview, check_text, parse_steps


def preview(options: Preview) -> int:
    """Draw and save; the exit code.

    Raises:
        Refused: bad options, a model that can't be loaded, a folder that can't be written.
    """
    check_text(options)
    models = ("sdxl", "flux") if options.model == "both" else (options.model,)
    for model in models:
        _preview(options, model)
    return OK


def _preview(options: Preview, model: str) -> None:
    shared = ("max_inference_steps", "guidance_scale", "sdxl_path", "flux_path", "model_path", "height", "width")
    shared += ("seed", "snapshot", "device", "save_steps")
    asked = Generate(
        model_type=model,  # type: ignore[arg-type]
        image_format="png",
        batch_size=1,
        **{name: getattr(options, name) for name in shared},
    )
    asked.check()
    recipe = recipes.resolve(asked)
    last = options.max_inference_steps
    steps = sorted({*parse_steps(options.save_steps, last), last})
    folder = Path(options.output_dir) / f"{model}_multistep"
    from actors.generator import ImageGenerator, encode

    try:
        folder.mkdir(parents=True, exist_ok=True)
        generator = ImageGenerator(recipe, [])
        captures = [Capture(step, options.snapshot) for step in steps]
        drawn = generator.pixels([options.prompt], [options.seed], captures)
        for capture in captures:
            png = encode(drawn[capture][0], "png", None)
            (folder / f"step_{capture.step:02}.png").write_bytes(png)
        (folder / "final.png").write_bytes(png)
    except ModelError as error:
        raise Refused(str(error)) from error
    except OSError as error:
        raise Refused(f"--output_dir {folder}: can't be written: {error.strerror or one_line(error)}") from error
    print(f"{folder}: {', '.join(f'step_{step:02}.png' for step in steps)}, final.png", file=sys.stdout)
