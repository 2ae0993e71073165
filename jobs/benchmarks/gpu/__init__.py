"""What BENCHMARKS.md says of a GPU, measured in pieces: `python -m jobs.benchmarks.gpu`, run from a clone."""
