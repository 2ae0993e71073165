"""What generating costs: `python -m jobs.benchmarks.speed` and `python -m jobs.benchmarks.scale`, run from a clone."""
