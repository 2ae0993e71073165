"""The verb `demo`: generate on the bundled sample with both tiny models, then show the tree and ask the index."""

from pathlib import Path

import duckdb

from actors import tiny
from ray_app import cluster, layout
from ray_app.errors import OK
from ray_app.generate import generate
from ray_app.options import Demo, Generate

SAMPLE = Path(__file__).with_name("sample.json")

IMAGES_VIEW = """
CREATE VIEW images AS SELECT * FROM read_parquet('{index}', hive_partitioning = true)
QUALIFY row_number() OVER (PARTITION BY model, query_id, prompt_index, image_index, snapshot, step
                           ORDER BY created_at DESC) = 1"""

QUERIES = {
    "How many images of each step, and what did one cost?": """
SELECT model, step, count(*) AS images, count(DISTINCT denoise_id) AS denoises,
       round(avg(denoise_seconds), 3) AS denoise_seconds, round(avg(sigma), 2) AS noise_left
FROM images WHERE status = 'ok' GROUP BY ALL ORDER BY ALL""",
    "Which images of query 5 show step 32?": """
SELECT prompt, path FROM images WHERE model = 'sdxl' AND query_id = 5 AND step = 32 ORDER BY prompt_index""",
    "Which slots were served by one and the same denoise?": """
SELECT denoise_id, list(DISTINCT query_id) AS query_ids, any_value(prompt) AS prompt
FROM images WHERE model = 'sdxl' GROUP BY denoise_id HAVING count(DISTINCT query_id) > 1""",
}


def demo(options: Demo) -> int:
    """Run it; the exit code of the worse of the two runs."""
    codes = []
    with cluster.connected("local"):
        for model_type in ("sdxl", "flux"):
            print(f"\n# proxyqueue generate --model_type {model_type} --model_path tiny", flush=True)
            asked = Generate(
                model_type=model_type,
                json_file=str(SAMPLE),
                output_base_path=options.output_base_path,
                model_path=tiny.NAME,
            )
            codes.append(generate(asked))
    print("\n# The tree")
    print("\n".join(_tree(Path(options.output_base_path))))
    connection = duckdb.connect()
    connection.execute(IMAGES_VIEW.format(index=f"{options.output_base_path}/{layout.INDEX}/**/*.parquet"))
    for question, sql in QUERIES.items():
        print(f"\n# {question}{sql}")
        connection.sql(sql).show()
    return max(codes, default=OK)


def _tree(root: Path) -> list[str]:
    """The output's folders with the number of files in each."""
    lines = [f"{root}/"]
    for folder in sorted(path for path in root.rglob("*") if path.is_dir()):
        files = sum(path.is_file() for path in folder.iterdir())
        depth = len(folder.relative_to(root).parts)
        lines.append(f"{'  ' * depth}{folder.name}/" + (f"  {files} files" if files else ""))
    return lines
