"""The command `demo`: images of the sample with both tiny models, the output's tree, three queries, and a gallery."""

from pathlib import Path

from actors import tiny
from ray_app.cluster import connection
from ray_app.errors import OK
from ray_app.flags import DEFAULT_MODEL_TYPE
from ray_app.gallery.options import Gallery
from ray_app.gallery.pages import gallery
from ray_app.generation.generate import generate
from ray_app.generation.options import Demo, Generate
from ray_app.messages import summarize
from ray_app.output import layout
from ray_app.query.options import Query
from ray_app.query.query import query

SAMPLE = Path(__file__).with_name("sample.json")

FAMILY = DEFAULT_MODEL_TYPE
"""The family that the queries are about."""
QUERIES = {
    "How many images of each step, and what did one cost?": """
SELECT model, step, count(*) AS images, count(DISTINCT denoise_id) AS denoises,
       round(avg(denoise_seconds), 3) AS denoise_seconds, round(avg(sigma), 2) AS noise_left
FROM images WHERE status = 'ok' GROUP BY ALL ORDER BY ALL""",
    "Which images of query 5 show step 32?": f"""
SELECT prompt, path FROM images WHERE model = '{FAMILY}' AND query_id = 5 AND step = 32 ORDER BY prompt_index""",
    "Which slots were served by one and the same denoise?": f"""
SELECT denoise_id, list(DISTINCT query_id) AS query_ids, any_value(prompt) AS prompt
FROM images WHERE model = '{FAMILY}' GROUP BY denoise_id HAVING count(DISTINCT query_id) > 1""",
}


def demo(options: Demo) -> int:
    """Run it; the exit code of the worse of the two runs."""
    codes = []
    with connection.connected("local"):
        for model_type in tiny.model_types():
            summarize(f"\n# proxyqueue generate --model_type {model_type} --model_path tiny")
            generate_options = Generate(
                model_type=model_type,
                json_file=str(SAMPLE),
                output_base_path=options.output_base_path,
                model_path=tiny.NAME,
            )
            codes.append(generate(generate_options))
    summarize("\n# The tree")
    summarize("\n".join(_tree(Path(options.output_base_path))))
    for question, sql in QUERIES.items():
        summarize(f"\n# {question}{sql}")
        query(Query(sql=sql, output_base_path=options.output_base_path))
    summarize("\n# A gallery of all images")
    gallery(Gallery(output_base_path=options.output_base_path, json_file=str(SAMPLE)))
    return max(codes, default=OK)


def _tree(root: Path) -> list[str]:
    """The output's folders with the number of files in each."""
    lines = [f"{root}/"]
    for folder in sorted(path for path in root.rglob("*") if path.is_dir()):
        if folder.relative_to(root).parts[0] == layout.GALLERY:  # from an earlier demo
            continue
        files = sum(path.is_file() for path in folder.iterdir())
        depth = len(folder.relative_to(root).parts)
        count = f"  {files} files" if files else ""
        lines.append(f"{'  ' * depth}{folder.name}/{count}")
    return lines
